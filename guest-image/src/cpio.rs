//! A writer of `newc` cpio archives, the format of an initrd.
//!
//! The kernel reads this one format (Documentation/driver-api/early-userspace/
//! buffer-format.rst), and we write only the few kinds of entries an initrd
//! needs. Everything that would differ from one build to the next is fixed:
//! entries come in the caller's order, inode numbers count up from one, times,
//! owners and device numbers are zero.

/// The path a cpio archive ends with.
const TRAILER: &str = "TRAILER!!!";

/// What an entry is.
#[derive(Debug, Clone, Copy)]
pub enum Kind<'a> {
    /// A directory.
    Directory,
    /// A regular file with its content, less than 4 GiB.
    File(&'a [u8]),
    /// A symbolic link with its target.
    Symlink(&'a str),
    /// A character device with its major and minor number.
    CharDevice(u32, u32),
}

impl Kind<'_> {
    /// The file type bits of `st_mode`.
    fn type_bits(self) -> u32 {
        match self {
            Kind::Directory => 0o040_000,
            Kind::File(_) => 0o100_000,
            Kind::Symlink(_) => 0o120_000,
            Kind::CharDevice(..) => 0o020_000,
        }
    }
}

/// An archive in the making.
#[derive(Debug, Default)]
pub struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    /// Appends an entry; `path` is relative to the root and `mode` holds the permission bits.
    /// A directory must come before what lies in it.
    pub fn add(&mut self, path: &str, mode: u16, kind: Kind<'_>) {
        self.entries += 1;
        let (content, device): (&[u8], _) = match kind {
            Kind::Directory => (&[], (0, 0)),
            Kind::File(content) => (content, (0, 0)),
            Kind::Symlink(target) => (target.as_bytes(), (0, 0)),
            Kind::CharDevice(major, minor) => (&[], (major, minor)),
        };
        self.header(self.entries, path, kind.type_bits() | u32::from(mode), content.len(), device);
        self.bytes.extend_from_slice(content);
        self.pad(4);
    }

    /// Ends the archive, padded to 512 bytes as cpio itself pads it.
    pub fn finish(mut self) -> Vec<u8> {
        self.header(0, TRAILER, 0, 0, (0, 0));
        self.pad(512);
        self.bytes
    }

    fn header(&mut self, inode: u32, path: &str, mode: u32, size: usize, device: (u32, u32)) {
        let links = 1;
        let fields = [
            inode as usize,
            mode as usize,
            0, // uid
            0, // gid
            links,
            0, // mtime
            size,
            0, // major and minor of the device the file lies on
            0,
            device.0 as usize,
            device.1 as usize,
            path.len() + 1,
            0, // checksum, unused in newc
        ];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(path.as_bytes());
        self.bytes.push(0);
        self.pad(4);
    }

    fn pad(&mut self, multiple: usize) {
        self.bytes.resize(self.bytes.len().next_multiple_of(multiple), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One entry as the format has it: magic, thirteen fields of eight digits, name, content.
    fn entry(fields: [&str; 13], name: &[u8], content: &[u8]) -> Vec<u8> {
        [b"070701", fields.concat().as_bytes(), name, content].concat()
    }

    #[test]
    fn an_archive_has_exactly_these_bytes() {
        let mut archive = Archive::default();
        archive.add("dev", 0o755, Kind::Directory);
        archive.add("dev/console", 0o600, Kind::CharDevice(5, 1));
        archive.add("init", 0o755, Kind::File(b"hello"));
        archive.add("sh", 0o777, Kind::Symlink("busybox"));
        const O: &str = "00000000";
        const I: &str = "00000001";
        let mut expected = [
            entry([I, "000041ed", O, O, I, O, O, O, O, O, O, "00000004", O], b"dev\0\0\0", b""),
            entry(
                ["00000002", "00002180", O, O, I, O, O, O, O, "00000005", I, "0000000c", O],
                b"dev/console\0\0\0",
                b"",
            ),
            entry(
                ["00000003", "000081ed", O, O, I, O, "00000005", O, O, O, O, "00000005", O],
                b"init\0\0",
                b"hello\0\0\0",
            ),
            entry(
                ["00000004", "0000a1ff", O, O, I, O, "00000007", O, O, O, O, "00000003", O],
                b"sh\0\0\0\0",
                b"busybox\0",
            ),
            entry([O, O, O, O, I, O, O, O, O, O, O, "0000000b", O], b"TRAILER!!!\0\0\0\0", b""),
        ]
        .concat();
        expected.resize(expected.len().next_multiple_of(512), 0);
        let actual = archive.finish();
        assert_eq!(String::from_utf8_lossy(&actual), String::from_utf8_lossy(&expected));
    }
}
