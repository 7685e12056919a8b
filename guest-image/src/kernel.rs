//! Taking an ELF kernel out of a bzImage.
//!
//! A bzImage carries its ELF kernel compressed. QEMU starts such an ELF file
//! directly through its PVH entry, which skips the real-mode stub, the
//! decompressor and most of the firmware. The header fields are those of the
//! Linux x86 boot protocol (Documentation/arch/x86/boot.rst), version 2.08 and
//! later: `payload_offset` and `payload_length` count from the start of the
//! protected-mode code, and the last four bytes of the payload give its
//! expanded size.

use crate::payload::{Compression, PayloadError};

/// No kernel expands to more than this; a header that says so is damaged.
const MAX_VMLINUX: usize = 1 << 30;

/// Why a kernel cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// The file has no boot sector and header of a bzImage.
    #[error("it is not an x86 bzImage (a distribution's vmlinuz)")]
    NotBzImage,
    /// The header is too old to say where the payload is.
    #[error("its boot protocol {major}.{minor:02} is older than 2.08")]
    TooOld {
        /// Major version of the boot protocol.
        major: u8,
        /// Minor version of the boot protocol.
        minor: u8,
    },
    /// The file ends before the payload does.
    #[error("it is cut short: {what} lies beyond its end")]
    Truncated {
        /// The part that is missing.
        what: &'static str,
    },
    /// The payload does not expand.
    #[error("its payload cannot be expanded")]
    Payload(#[from] PayloadError),
    /// The payload expands to another size than the header announces.
    #[error("its payload expands to {actual} bytes where {expected} are announced")]
    WrongSize {
        /// Bytes that came out.
        actual: usize,
        /// Bytes that were announced.
        expected: usize,
    },
    /// The payload is not an x86-64 ELF file.
    #[error("its payload is not an x86-64 ELF file")]
    NotElf,
    /// The kernel was built without `CONFIG_PVH`.
    #[error("it has no PVH entry (built without CONFIG_PVH), so it cannot be booted directly")]
    NoPvhEntry,
}

/// What a bzImage holds.
#[derive(Debug)]
pub(crate) struct Kernel {
    /// `uname -r` of the kernel, such as `6.1.0-56-amd64`.
    pub release: String,
    /// How the payload is compressed.
    pub compression: Compression,
    payload: Vec<u8>,
    expanded_size: usize,
}

impl Kernel {
    /// Reads the header of a bzImage; the payload is not expanded yet.
    pub(crate) fn parse(image: &[u8]) -> Result<Self, KernelError> {
        if image.get(0x1fe..0x200) != Some(&[0x55, 0xaa])
            || image.get(0x202..0x206) != Some(b"HdrS")
        {
            return Err(KernelError::NotBzImage);
        }
        let header = |what| KernelError::Truncated { what };
        let minor = byte(image, 0x206).ok_or(header("the header"))?;
        let major = byte(image, 0x207).ok_or(header("the header"))?;
        if (major, minor) < (2, 8) {
            return Err(KernelError::TooOld { major, minor });
        }
        // A zero means four, for kernels older than the field.
        let setup_sectors = match byte(image, 0x1f1).ok_or(header("the header"))? {
            0 => 4,
            sectors => usize::from(sectors),
        };
        let offset = long(image, 0x248).ok_or(header("the header"))?;
        let length = long(image, 0x24c).ok_or(header("the header"))?;
        let begin = (setup_sectors + 1) * 512 + offset;
        let payload = image.get(begin..begin + length).ok_or(header("the payload"))?;
        let (stream, size) = payload.split_last_chunk::<4>().ok_or(header("the payload's size"))?;
        let compression = Compression::detect(stream)?;
        // gzip's own trailer doubles as the size; every other format has it appended.
        let stream = if compression == Compression::Gzip { payload } else { stream };
        Ok(Self {
            release: release(image).ok_or(header("the version"))?,
            compression,
            payload: stream.to_vec(),
            expanded_size: long(size, 0).unwrap_or_default(),
        })
    }

    /// Expands the payload and checks that it can be booted through PVH.
    pub(crate) fn vmlinux(&self) -> Result<Vec<u8>, KernelError> {
        let expected = self.expanded_size.min(MAX_VMLINUX);
        let vmlinux = self.compression.expand(&self.payload, expected)?;
        if vmlinux.len() != self.expanded_size {
            return Err(KernelError::WrongSize {
                actual: vmlinux.len(),
                expected: self.expanded_size,
            });
        }
        match has_pvh_entry(&vmlinux) {
            None => Err(KernelError::NotElf),
            Some(false) => Err(KernelError::NoPvhEntry),
            Some(true) => Ok(vmlinux),
        }
    }
}

/// The first word of the version text `kernel_version` (0x20e) points at, which is `uname -r`.
fn release(image: &[u8]) -> Option<String> {
    let text = image.get(usize::from(half(image, 0x20e)?) + 0x200..)?;
    let word = text.iter().take(128).take_while(|byte| byte.is_ascii_graphic());
    let release: String = word.map(|&byte| char::from(byte)).collect();
    (!release.is_empty()).then_some(release)
}

/// Whether an ELF file has the note `Xen` of type 18 (`XEN_ELFNOTE_PHYS32_ENTRY`), which is how
/// a kernel announces its PVH entry. `None` when it is no x86-64 ELF file at all.
fn has_pvh_entry(elf: &[u8]) -> Option<bool> {
    const PT_NOTE: u32 = 4;
    if !is_x86_64_elf(elf) {
        return None;
    }
    let headers = usize::try_from(wide(elf, 0x20)?).ok()?;
    let (size, count) = (usize::from(half(elf, 0x36)?), usize::from(half(elf, 0x38)?));
    for index in 0..count {
        let header = elf.get(headers.checked_add(index * size)?..)?;
        if word(header, 0)? != PT_NOTE {
            continue;
        }
        let begin = usize::try_from(wide(header, 8)?).ok()?;
        let length = usize::try_from(wide(header, 32)?).ok()?;
        if notes_have_pvh(elf.get(begin..begin.checked_add(length)?)?) {
            return Some(true);
        }
    }
    Some(false)
}

fn notes_have_pvh(mut notes: &[u8]) -> bool {
    const XEN_ELFNOTE_PHYS32_ENTRY: u32 = 18;
    while let (Some(name), Some(description), Some(kind)) =
        (long(notes, 0), long(notes, 4), word(notes, 8))
    {
        if kind == XEN_ELFNOTE_PHYS32_ENTRY && notes.get(12..16) == Some(b"Xen\0") {
            return true;
        }
        let next = 12 + name.next_multiple_of(4) + description.next_multiple_of(4);
        notes = notes.get(next..).unwrap_or_default();
    }
    false
}

/// Whether the bytes are a 64-bit little-endian ELF file for x86-64.
pub(crate) fn is_x86_64_elf(bytes: &[u8]) -> bool {
    bytes.starts_with(b"\x7fELF\x02\x01") && half(bytes, 0x12) == Some(62)
}

/// Whether an ELF file asks for a dynamic loader (`PT_INTERP`), which no guest has.
pub(crate) fn needs_interpreter(elf: &[u8]) -> bool {
    const PT_INTERP: u32 = 3;
    let Some(headers) = wide(elf, 0x20).and_then(|offset| usize::try_from(offset).ok()) else {
        return false;
    };
    let (Some(size), Some(count)) = (half(elf, 0x36), half(elf, 0x38)) else { return false };
    (0..usize::from(count))
        .filter_map(|index| headers.checked_add(index * usize::from(size)))
        .any(|offset| word(elf, offset) == Some(PT_INTERP))
}

fn byte(bytes: &[u8], offset: usize) -> Option<u8> {
    bytes.get(offset).copied()
}

fn half(bytes: &[u8], offset: usize) -> Option<u16> {
    Some(u16::from_le_bytes(*bytes.get(offset..)?.first_chunk()?))
}

fn word(bytes: &[u8], offset: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(offset..)?.first_chunk()?))
}

fn wide(bytes: &[u8], offset: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(offset..)?.first_chunk()?))
}

/// A `u32` of the file as an offset or length.
fn long(bytes: &[u8], offset: usize) -> Option<usize> {
    word(bytes, offset).and_then(|value| usize::try_from(value).ok())
}

#[cfg(test)]
mod tests;
