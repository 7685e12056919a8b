//! Words and numbers with a known meaning, which keep those they do not know.
//!
//! A state written by another version may hold a kind we never heard of. Reading it as an error
//! would lose the sandbox, reading it as zero would lose the kind; so each of these has an `Other`
//! that is written back as it came.

use serde::de::{Error, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;

/// An enum of words. The first variant is Go's zero, the empty text.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $text:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
        pub enum $name {
            /// Go's zero: the empty text.
            #[default]
            Unset,
            $($(#[$vdoc])* $variant,)*
            /// A word we do not know, kept as it is.
            Other(String),
        }

        impl $name {
            /// Every word there is a variant for.
            pub const WORDS: &[&str] = &["", $($text),*];

            /// The word on the wire.
            #[must_use]
            pub fn as_str(&self) -> &str {
                match self {
                    $name::Unset => "",
                    $($name::$variant => $text,)*
                    $name::Other(text) => text,
                }
            }
        }

        impl From<&str> for $name {
            fn from(text: &str) -> Self {
                match text {
                    "" => $name::Unset,
                    $($text => $name::$variant,)*
                    other => $name::Other(other.to_owned()),
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.as_str())
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Word;
                impl Visitor<'_> for Word {
                    type Value = $name;
                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str("a string")
                    }
                    fn visit_str<E: Error>(self, text: &str) -> Result<$name, E> {
                        Ok($name::from(text))
                    }
                }
                deserializer.deserialize_str(Word)
            }
        }
    };
}

/// An enum of numbers. The first variant is Go's zero.
macro_rules! numbers {
    ($(#[$doc:meta])* $name:ident: $int:ty {
        $(#[$zdoc:meta])* $zero:ident = 0, $($(#[$vdoc:meta])* $variant:ident = $number:literal,)*
    }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
        pub enum $name {
            $(#[$zdoc])*
            #[default]
            $zero,
            $($(#[$vdoc])* $variant,)*
            /// A number we do not know, kept as it is.
            Other($int),
        }

        impl From<$int> for $name {
            fn from(number: $int) -> Self {
                match number {
                    0 => $name::$zero,
                    $($number => $name::$variant,)*
                    other => $name::Other(other),
                }
            }
        }

        impl From<$name> for $int {
            fn from(kind: $name) -> $int {
                match kind {
                    $name::$zero => 0,
                    $($name::$variant => $number,)*
                    $name::Other(number) => number,
                }
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                <$int>::from(*self).serialize(serializer)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                <$int>::deserialize(deserializer).map($name::from)
            }
        }
    };
}

words! {
    /// What a sandbox or a container is doing.
    StateText {
        /// Made, not started.
        Ready = "ready",
        /// Started.
        Running = "running",
        /// Frozen.
        Paused = "paused",
        /// Over.
        Stopped = "stopped",
    }
}

words! {
    /// Which driver serves a device.
    DeviceKind {
        /// A character device that is passed through by name.
        Generic = "generic",
        /// A block device.
        Block = "block",
        /// A device of the host's, handed through.
        Vfio = "vfio",
        /// SCSI served by a process.
        VhostUserScsi = "vhost-user-scsi-pci",
        /// A block device served by a process.
        VhostUserBlk = "vhost-user-blk-pci",
        /// A network served by a process.
        VhostUserNet = "virtio-net-pci",
        /// A file system served by a process. Kata 1.12 drops it when it loads.
        VhostUserFs = "vhost-user-fs-pci",
    }
}

words! {
    /// What kind of node a device has, in the letters of `mknod`.
    NodeKind {
        /// Character.
        Character = "c",
        /// Unbuffered character.
        Unbuffered = "u",
        /// Block.
        Block = "b",
        /// Pipe.
        Pipe = "p",
    }
}

words! {
    /// Which kind of network interface an endpoint is.
    EndpointKind {
        /// [`PhysicalEndpoint`](super::PhysicalEndpoint).
        Physical = "physical",
        /// [`VethEndpoint`](super::VethEndpoint).
        Veth = "virtual",
        /// [`VhostUserEndpoint`](super::VhostUserEndpoint).
        VhostUser = "vhost-user",
        /// [`BridgedMacvlanEndpoint`](super::BridgedMacvlanEndpoint).
        BridgedMacvlan = "macvlan",
        /// [`MacvtapEndpoint`](super::MacvtapEndpoint).
        Macvtap = "macvtap",
        /// [`TapEndpoint`](super::TapEndpoint).
        Tap = "tap",
        /// [`IpVlanEndpoint`](super::IpVlanEndpoint).
        IpVlan = "ipvlan",
        /// [`TuntapEndpoint`](super::TuntapEndpoint).
        Tuntap = "tuntap",
    }
}

words! {
    /// Which VMM.
    HypervisorKind {
        /// QEMU.
        Qemu = "qemu",
        /// Firecracker.
        Firecracker = "firecracker",
        /// Cloud Hypervisor.
        CloudHypervisor = "clh",
        /// ACRN.
        Acrn = "acrn",
        /// Kata's stand-in for tests.
        Mock = "mock",
    }
}

words! {
    /// Which agent runs in the guest.
    AgentKind {
        /// Kata's.
        Kata = "kata",
        /// None.
        Noop = "noop",
    }
}

words! {
    /// Which bus a bridge is.
    BridgeKind {
        /// PCI.
        Pci = "pci",
        /// PCI express.
        Pcie = "pcie",
        /// Channel I/O of s390x.
        Ccw = "ccw",
    }
}

numbers! {
    /// How the interface of a container is joined to that of the VM.
    InterworkingModel: i64 {
        /// What the runtime is built with: tc filters.
        Default = 0,
        /// A macvtap on the container's interface.
        Macvtap = 1,
        /// Traffic is mirrored between both by tc.
        TcFilter = 2,
        /// Not at all.
        None = 3,
        /// An invalid model.
        Invalid = 4,
    }
}

numbers! {
    /// What is handed through by VFIO.
    VfioKind: u32 {
        /// Unknown.
        Error = 0,
        /// A whole function.
        Normal = 1,
        /// A mediated device.
        Mediated = 2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_word_is_written_as_it_was_read() {
        for word in DeviceKind::WORDS.iter().chain(&["a kind of tomorrow"]) {
            let json = serde_json::to_string(word).unwrap();
            let kind: DeviceKind = serde_json::from_str(&json).unwrap();
            assert_eq!(serde_json::to_string(&kind).unwrap(), json);
        }
    }

    #[test]
    fn an_unknown_number_is_written_as_it_was_read() {
        for number in [0, 1, 2, 3, 4, 5, -1, i64::MAX] {
            assert_eq!(i64::from(InterworkingModel::from(number)), number);
        }
        assert_eq!(serde_json::from_str::<VfioKind>("7").unwrap(), VfioKind::Other(7));
        assert!(serde_json::from_str::<VfioKind>("4294967296").is_err());
    }

    #[test]
    fn a_known_word_is_never_another() {
        assert_eq!(StateText::from("running"), StateText::Running);
        assert_eq!(EndpointKind::from("virtual"), EndpointKind::Veth);
        assert_eq!(StateText::from(""), StateText::default());
    }
}
