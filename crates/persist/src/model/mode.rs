//! File modes as Go keeps them.

use serde::{Deserialize, Serialize};

/// Mode and type of a file, in Go's own bits: the type is in the high half and the three special
/// bits have places of their own, unlike in `st_mode`. Bits that have no meaning are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct FileMode(pub u32);

impl FileMode {
    /// A directory.
    pub const DIR: FileMode = FileMode(1 << 31);
    /// A symbolic link.
    pub const SYMLINK: FileMode = FileMode(1 << 27);
    /// A device.
    pub const DEVICE: FileMode = FileMode(1 << 26);
    /// A named pipe.
    pub const NAMED_PIPE: FileMode = FileMode(1 << 25);
    /// A socket.
    pub const SOCKET: FileMode = FileMode(1 << 24);
    /// Set-user-id.
    pub const SETUID: FileMode = FileMode(1 << 23);
    /// Set-group-id.
    pub const SETGID: FileMode = FileMode(1 << 22);
    /// A device that is a character device.
    pub const CHAR_DEVICE: FileMode = FileMode(1 << 21);
    /// The sticky bit.
    pub const STICKY: FileMode = FileMode(1 << 20);

    /// The nine permission bits.
    #[must_use]
    pub const fn permissions(self) -> u32 {
        self.0 & 0o777
    }

    /// Whether all bits of `other` are set.
    #[must_use]
    pub const fn contains(self, other: FileMode) -> bool {
        self.0 & other.0 == other.0
    }

    /// From `st_mode`.
    #[must_use]
    pub const fn from_st_mode(mode: u32) -> Self {
        let kind = match mode & 0o170_000 {
            0o040_000 => Self::DIR.0,
            0o120_000 => Self::SYMLINK.0,
            0o060_000 => Self::DEVICE.0,
            0o020_000 => Self::DEVICE.0 | Self::CHAR_DEVICE.0,
            0o010_000 => Self::NAMED_PIPE.0,
            0o140_000 => Self::SOCKET.0,
            _ => 0,
        };
        let special = bit(mode, 0o4000, Self::SETUID)
            | bit(mode, 0o2000, Self::SETGID)
            | bit(mode, 0o1000, Self::STICKY);
        FileMode(kind | special | mode & 0o777)
    }
}

const fn bit(mode: u32, of: u32, go: FileMode) -> u32 {
    if mode & of == 0 { 0 } else { go.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mode_of_the_system_becomes_one_of_go() {
        assert_eq!(FileMode::from_st_mode(0o100_644), FileMode(0o644));
        assert_eq!(FileMode::from_st_mode(0o041_777), FileMode(1 << 31 | 1 << 20 | 0o777));
        assert_eq!(FileMode::from_st_mode(0o020_620), FileMode(1 << 26 | 1 << 21 | 0o620));
        assert_eq!(FileMode::from_st_mode(0o060_660), FileMode(1 << 26 | 0o660));
        assert!(FileMode::from_st_mode(0o106_755).contains(FileMode::SETUID));
        assert_eq!(FileMode::from_st_mode(0o106_755).permissions(), 0o755);
    }
}
