//! What can be plugged into a sandbox, as it is asked for and as it is shown. Plain data.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The kinds of things that can be plugged in.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A disk image or a block device.
    Disk,
    /// A file mapped into the VM's memory, read-only.
    Pmem,
    /// A directory or file of the host.
    Share,
    /// A socket of the host.
    Pipe,
    /// A PCI device of the host.
    Device,
}

impl Kind {
    /// Its name, as in `coracle disk`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Disk => "disk",
            Self::Pmem => "pmem",
            Self::Share => "share",
            Self::Pipe => "pipe",
            Self::Device => "device",
        }
    }
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// How a share is served.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ShareType {
    /// By virtiofsd, fast; it cannot be healed when its server dies.
    #[default]
    VirtioFs,
    /// By our 9P server, slower, with nothing but a stream between.
    #[serde(rename = "9p")]
    Plan9,
}

/// What the source of a device begins with that is a disk another process serves.
pub(crate) const VHOST_USER_DISK: &str = "vhost-user-blk:";

/// Something to plug in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PlugSpec {
    /// What it is.
    pub kind: Kind,
    /// The path on the host, or a device's address.
    pub source: String,
    /// Where containers see it; a disk or a device need not be seen anywhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destination: Option<String>,
    /// Refuse writes.
    #[serde(default)]
    pub read_only: bool,
    /// How a share is served.
    #[serde(default)]
    pub share_type: ShareType,
    /// What is on a disk or pmem device: `ext4`, `xfs`, `erofs`; none: look.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filesystem: Option<String>,
    /// How a disk's file is laid out: `raw`, `qcow2`, `vhd`, `vhdx`; none: by the file's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<String>,
}

impl PlugSpec {
    /// A thing with nothing special about it.
    pub fn new(kind: Kind, source: impl Into<String>) -> Self {
        Self {
            kind,
            source: source.into(),
            destination: None,
            read_only: false,
            share_type: ShareType::default(),
            filesystem: None,
            format: None,
        }
    }

    /// Reads `SOURCE:DESTINATION[:ro]`, as `run -v` and `run --disk` have it. The source may hold
    /// no colon.
    ///
    /// # Errors
    /// What is wrong with the text.
    pub fn parse(kind: Kind, text: &str) -> Result<Self, String> {
        let mut words = text.split(':');
        let source = words.next().unwrap_or_default();
        let destination = words.next().unwrap_or_default();
        let read_only = match words.next() {
            None | Some("rw") => false,
            Some("ro") => true,
            Some(other) => return Err(format!("{other:?} is neither `ro` nor `rw`")),
        };
        if words.next().is_some() {
            return Err(format!("{text:?} has too many colons: write SOURCE:DESTINATION[:ro]"));
        }
        if source.is_empty() || destination.is_empty() {
            return Err(format!("{text:?} is not of the form SOURCE:DESTINATION[:ro]"));
        }
        let destination = Some(destination.to_owned());
        Ok(Self { destination, read_only, ..Self::new(kind, source) })
    }
}

impl PlugSpec {
    /// Reads `SOURCE`, or `vhost-user-blk:SOCKET:DESTINATION[:ro]`, as `run --device` has it.
    ///
    /// # Errors
    /// What is wrong with the text.
    pub fn parse_device(text: &str) -> Result<Self, String> {
        match text.strip_prefix(VHOST_USER_DISK) {
            Some(rest) if rest.contains(':') => {
                let spec = Self::parse(Kind::Device, rest)?;
                Ok(Self { source: format!("{VHOST_USER_DISK}{}", spec.source), ..spec })
            }
            Some(_) | None => Ok(Self::new(Kind::Device, text)),
        }
    }

    /// Whether it is a disk that containers see as it is, not mounted: one whose destination is in
    /// `/dev`.
    pub(crate) fn is_block_device(&self) -> bool {
        let in_dev = |path: &String| path.starts_with("/dev/");
        self.kind == Kind::Disk && self.destination.as_ref().is_some_and(in_dev)
    }

    /// Whether it is a device of the host, for which all of the VM's memory is pinned.
    pub(crate) fn pins_memory(&self) -> bool {
        let is_ours = |prefix: &str| self.source.starts_with(prefix);
        self.kind == Kind::Device && !is_ours("vhost-user-") && !is_ours("emulated:")
    }
}

/// Something that is plugged in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Plugged {
    /// What was asked for.
    #[serde(flatten)]
    pub spec: PlugSpec,
    /// Where it is in the VM: a mount point, a socket, a PCI address; empty for a disk without one.
    pub guest_path: String,
    /// Its slot, where it has one: `0:5` is unit 5 of SCSI controller 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slot: Option<String>,
    /// `ok`, or what is the matter with it.
    pub state: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn source_destination_and_mode_are_read_as_podman_reads_them() {
        let share = PlugSpec::parse(Kind::Share, "/a:/b:ro").unwrap();
        assert_eq!((share.source.as_str(), share.destination.as_deref()), ("/a", Some("/b")));
        assert!(share.read_only);
        assert!(!PlugSpec::parse(Kind::Share, "/a:/b").unwrap().read_only);
        for bad in ["/a", ":/b", "/a:", "/a:/b:x", "/a:/b:ro:z"] {
            assert!(PlugSpec::parse(Kind::Share, bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_device_has_colons_of_its_own() {
        let read = |text| PlugSpec::parse_device(text).unwrap();
        for (text, pins) in [("0000:3b:00.0", true), ("/sys/bus/mdev/devices/u", true)] {
            assert_eq!((read(text).source.as_str(), read(text).pins_memory()), (text, pins));
        }
        let disk = read("vhost-user-blk:/run/d.sock:/data:ro");
        assert_eq!(disk.source, "vhost-user-blk:/run/d.sock");
        assert_eq!((disk.destination.as_deref(), disk.read_only), (Some("/data"), true));
        assert!(!disk.pins_memory());
        assert_eq!(read("vhost-user-blk:/run/d.sock").destination, None);
    }

    #[test]
    fn what_is_plugged_in_survives_json() {
        let spec = PlugSpec::parse(Kind::Disk, "/a:/b:ro").unwrap();
        let there =
            Plugged { spec, guest_path: "/run/m".into(), slot: None, state: "ok".to_owned() };
        let text = serde_json::to_string(&there).unwrap();
        assert_eq!(serde_json::from_str::<Plugged>(&text).unwrap(), there);
        assert!(text.contains(r#""kind":"disk""#), "{text}");
    }
}
