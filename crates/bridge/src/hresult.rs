//! Result codes of the protocol.
//!
//! Windows' HRESULT is the error code of GCS, also where neither end is Windows. On the wire it is
//! a *signed* 32-bit number (`-1070137074`); people and documents write the same bits unsigned
//! (`0xC037010E`). The newtype compares equal to both.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A result code; zero is success, and a negative number (top bit set) is a failure.
///
/// ```
/// use coracle_bridge::hresult::Hresult;
/// assert_eq!(Hresult::NO_SUCH_SYSTEM, 0xC037_010E_u32);
/// assert_eq!(Hresult::NO_SUCH_SYSTEM, -1_070_137_074_i32);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Hresult(pub i32);

impl Hresult {
    /// Success.
    pub const OK: Self = Self(0);
    /// `E_NOTIMPL`: the guest does not know the message, or it came before the negotiation.
    pub const NOT_IMPLEMENTED: Self = Self::from_bits(0x8000_4001);
    /// `E_FAIL`: any error without a code of its own.
    pub const FAIL: Self = Self::from_bits(0x8000_4005);
    /// `ERROR_FILE_NOT_FOUND`: no such program. Ours: hcsshim's guest says [`FAIL`](Self::FAIL).
    pub const FILE_NOT_FOUND: Self = Self::from_bits(0x8007_0002);
    /// `ERROR_ACCESS_DENIED`: the program may not be executed. Ours, as above.
    pub const ACCESS_DENIED: Self = Self::from_bits(0x8007_0005);
    /// `E_INVALIDARG`: an argument is out of its range.
    pub const INVALID_ARGUMENT: Self = Self::from_bits(0x8007_0057);
    /// `ERROR_NOT_FOUND`: no such process, or it is gone already.
    pub const NOT_FOUND: Self = Self::from_bits(0x8007_0490);
    /// The object is in the wrong state for the operation.
    pub const INVALID_STATE: Self = Self::from_bits(0x8037_0105);
    /// A wait ended by its own time limit.
    pub const TIMEOUT: Self = Self::from_bits(0xC037_0109);
    /// The message is unknown. Part of the protocol's table; guests answer
    /// [`NOT_IMPLEMENTED`](Self::NOT_IMPLEMENTED) instead.
    pub const UNKNOWN_MESSAGE: Self = Self::from_bits(0xC037_010B);
    /// The two ends have no protocol version in common.
    pub const UNSUPPORTED_PROTOCOL: Self = Self::from_bits(0xC037_010C);
    /// The body is not the JSON this message needs.
    pub const INVALID_JSON: Self = Self::from_bits(0xC037_010D);
    /// No container of that id.
    pub const NO_SUCH_SYSTEM: Self = Self::from_bits(0xC037_010E);
    /// A container of that id is there already.
    pub const ALREADY_EXISTS: Self = Self::from_bits(0xC037_010F);
    /// The container has stopped already.
    pub const ALREADY_STOPPED: Self = Self::from_bits(0xC037_0110);

    /// The code written as people write it, for example `0xC037_010E`.
    pub const fn from_bits(bits: u32) -> Self {
        Self(bits.cast_signed())
    }

    /// The code as an unsigned number.
    pub const fn bits(self) -> u32 {
        self.0.cast_unsigned()
    }

    /// True for zero only: a guest that answers a positive number has failed as well.
    pub const fn is_ok(self) -> bool {
        self.0 == 0
    }

    /// What the code means, in words of its own; `None` when it is not in the table.
    pub const fn meaning(self) -> Option<&'static str> {
        Some(match self {
            Self::OK => "success",
            Self::NOT_IMPLEMENTED => "not implemented",
            Self::FAIL => "unspecified error",
            Self::FILE_NOT_FOUND => "no such file",
            Self::ACCESS_DENIED => "permission denied",
            Self::INVALID_ARGUMENT => "the parameter is incorrect",
            Self::NOT_FOUND => "element not found",
            Self::INVALID_STATE => "the requested operation is not valid in the current state",
            Self::TIMEOUT => "the operation timed out",
            Self::UNKNOWN_MESSAGE => "unknown message",
            Self::UNSUPPORTED_PROTOCOL => "unsupported protocol version",
            Self::INVALID_JSON => "invalid JSON",
            Self::NO_SUCH_SYSTEM => "no such container",
            Self::ALREADY_EXISTS => "the container exists already",
            Self::ALREADY_STOPPED => "the container has stopped already",
            _ => return None,
        })
    }
}

impl fmt::Display for Hresult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.meaning() {
            Some(text) => write!(f, "{text} (0x{:08x})", self.bits()),
            None => write!(f, "result 0x{:08x}", self.bits()),
        }
    }
}

impl PartialEq<u32> for Hresult {
    fn eq(&self, bits: &u32) -> bool {
        self.bits() == *bits
    }
}

impl PartialEq<i32> for Hresult {
    fn eq(&self, number: &i32) -> bool {
        self.0 == *number
    }
}

#[cfg(test)]
mod tests {
    use super::Hresult;

    #[test]
    fn a_code_equals_its_signed_and_its_unsigned_form() {
        assert_eq!(Hresult(-1_070_137_074), 0xC037_010E_u32);
        assert_eq!(Hresult::from_bits(0xC037_010E), -1_070_137_074_i32);
        assert_ne!(Hresult::OK, 1_u32);
    }

    #[test]
    fn an_unknown_code_is_shown_as_hexadecimal() {
        assert_eq!(Hresult::from_bits(0x8765_4321).to_string(), "result 0x87654321");
        assert_eq!(Hresult::NOT_FOUND.to_string(), "element not found (0x80070490)");
    }
}
