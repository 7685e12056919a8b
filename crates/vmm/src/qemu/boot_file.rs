//! Opening what a VM boots, and a look at it: QEMU is handed a broken kernel without complaint
//! and a guest that never speaks is a poor error message.
//!
//! QEMU opens kernel and initrd by `/proc/self/fd/<n>`, which asks the inode's permissions anew
//! (a descriptor set does not work for these two). A file the VM's user may not read is therefore
//! copied to memory, whose inode anyone holding it may open.

use std::{
    fs::{File, Metadata},
    io::{self, Read, Seek},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::{FileExt, MetadataExt},
    },
    path::Path,
};

use super::firmware::in_memory;
use crate::{MiB, Pmem, User, VmmError};

/// An opened file and how much of guest memory it takes.
#[derive(Debug)]
pub(super) struct BootFile {
    pub(super) file: OwnedFd,
    /// For a kernel: the address behind its last byte, once it runs. For an initrd: its size.
    pub(super) extent: u64,
}

/// The least memory a guest can boot with: the kernel, the initrd and what is unpacked from it,
/// and a little to work in. With less the kernel resets the machine without a word.
pub(super) fn least_memory(kernel: &BootFile, initrd: Option<&BootFile>) -> MiB {
    /// Measured with distribution kernels; the guest agent fits in.
    const WORKING: u64 = 16 << 20;
    let initrd = initrd.map_or(0, |initrd| initrd.extent.saturating_mul(2));
    let bytes = kernel.extent.saturating_add(initrd).saturating_add(WORKING);
    MiB(bytes.div_ceil(1 << 20))
}

/// A kernel that can be entered directly: bzImage or ELF.
pub(super) fn kernel(path: &Path, user: Option<User>) -> Result<BootFile, VmmError> {
    open("kernel", path, user, |head, size| {
        if head.starts_with(b"\x7fELF") { check_elf(head, size) } else { check_bzimage(head, size) }
    })
}

/// A kernel that firmware can start: bzImage with an EFI stub.
pub(super) fn efi_kernel(path: &Path, user: Option<User>) -> Result<BootFile, VmmError> {
    open("kernel", path, user, |head, size| {
        if head.starts_with(b"\x7fELF") {
            return Err("it is an ELF vmlinux, which firmware cannot start".into());
        }
        let extent = check_bzimage(head, size)?;
        if head.starts_with(b"MZ") { Ok(extent) } else { Err("it has no EFI stub".into()) }
    })
}

/// An initial RAM disk.
pub(super) fn initrd(path: &Path, user: Option<User>) -> Result<BootFile, VmmError> {
    open(
        "initrd",
        path,
        user,
        |_, size| {
            if size == 0 { Err("it is empty".into()) } else { Ok(size) }
        },
    )
}

/// Whether QEMU will be able to map a file: it opens that by `/proc/self/fd/<n>` too, and a copy
/// would not be the file.
pub(super) fn check_pmem(pmem: &Pmem, user: Option<User>) -> Result<(), VmmError> {
    let what = "persistent memory file";
    let link = format!("/proc/self/fd/{}", pmem.file.as_raw_fd());
    let path = std::fs::read_link(&link).unwrap_or_else(|_| link.into());
    let inode = pmem.file.try_clone().and_then(|file| File::from(file).metadata());
    let failed = |source| VmmError::Open { what, path: path.clone(), source };
    let inode = inode.map_err(failed)?;
    if !is_open_to(user, &inode, !pmem.read_only) {
        let why = "the user of the VM may not open it";
        return Err(failed(io::Error::new(io::ErrorKind::PermissionDenied, why)));
    }
    if inode.is_file() && inode.len() < pmem.size {
        let why = format!("it has {} bytes and should have {}", inode.len(), pmem.size);
        return Err(VmmError::Broken { what, path, why });
    }
    Ok(())
}

/// Whether this user may read (and write) an inode, by its mode alone.
fn is_open_to(user: Option<User>, inode: &Metadata, write: bool) -> bool {
    let (uid, gid) = match user {
        Some(User { uid, gid }) => (uid, gid),
        None => (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw()),
    };
    let needed = if write { 0o6 } else { 0o4 };
    let shift = if inode.uid() == uid {
        6
    } else if inode.gid() == gid {
        3
    } else {
        0
    };
    inode.mode() >> shift & needed == needed
}

fn open(
    what: &'static str,
    path: &Path,
    user: Option<User>,
    check: impl FnOnce(&[u8], u64) -> Result<u64, String>,
) -> Result<BootFile, VmmError> {
    let failed = |source| VmmError::Open { what, path: path.to_owned(), source };
    let broken = |why| VmmError::Broken { what, path: path.to_owned(), why };
    let mut file = File::open(path).map_err(failed)?;
    let inode = file.metadata().map_err(failed)?;
    if !inode.is_file() {
        return Err(broken("it is not a regular file".into()));
    }
    let mut head = vec![0; 4096];
    let length = file.read_at(&mut head, 0).map_err(failed)?;
    head.truncate(length);
    let extent = check(&head, inode.len()).map_err(broken)?;
    if is_open_to(user, &inode, false) {
        return Ok(BootFile { file: file.into(), extent });
    }
    let file = copy(what, &mut file).map_err(failed)?;
    Ok(BootFile { file, extent })
}

fn copy(name: &str, file: &mut File) -> io::Result<OwnedFd> {
    let mut content = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut content)?;
    in_memory(name, &content)
}

/// Little-endian number at an offset; none beyond the end.
fn number(head: &[u8], offset: usize, width: usize) -> Option<u64> {
    let bytes = head.get(offset..offset + width)?;
    Some(bytes.iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte)))
}

/// The boot protocol's header (Linux, Documentation/x86/boot.rst): `HdrS` at 0x202, sectors of
/// setup at 0x1f1, size of the protected part in paragraphs at 0x1f4, preferred address at 0x258,
/// memory taken from there at 0x260.
fn check_bzimage(head: &[u8], size: u64) -> Result<u64, String> {
    if head.get(0x202..0x206) != Some(b"HdrS") {
        return Err("it is neither a bzImage nor an ELF file".into());
    }
    let (Some(sectors), Some(paragraphs)) = (number(head, 0x1f1, 1), number(head, 0x1f4, 4)) else {
        return Err("its header is cut off".into());
    };
    let sectors = if sectors == 0 { 4 } else { sectors };
    let needed = (sectors + 1) * 512 + paragraphs * 16;
    if size < needed {
        return Err(format!("it is cut off at {size} of {needed} bytes"));
    }
    let (address, memory) = (number(head, 0x258, 8), number(head, 0x260, 4));
    Ok(address.unwrap_or(0).saturating_add(memory.unwrap_or(0)))
}

/// Every segment of the ELF file is there (program headers at 0x20, their size at 0x36, their
/// count at 0x38; offset and size in the file at 0x08 and 0x20 of each, physical address and size
/// in memory at 0x18 and 0x28 of those with type 1 at 0x00, which are loaded).
fn check_elf(head: &[u8], size: u64) -> Result<u64, String> {
    let cut_off = || "its ELF header is cut off".to_owned();
    if head.get(4) != Some(&2) {
        return Err("it is not a 64-bit ELF file".into());
    }
    let field = |offset, width| number(head, offset, width).and_then(|n| usize::try_from(n).ok());
    let table = field(0x20, 8).ok_or_else(cut_off)?;
    let each = field(0x36, 2).ok_or_else(cut_off)?;
    let count = field(0x38, 2).ok_or_else(cut_off)?;
    let mut extent = 0;
    for index in 0..count {
        let entry = each.checked_mul(index).and_then(|skip| table.checked_add(skip));
        let entry = entry.and_then(|at| head.get(at..)).ok_or_else(cut_off)?;
        let offset = number(entry, 0x08, 8).ok_or_else(cut_off)?;
        let length = number(entry, 0x20, 8).ok_or_else(cut_off)?;
        if offset.checked_add(length).is_none_or(|end| end > size) {
            return Err(format!("it is cut off at {size} bytes"));
        }
        if number(entry, 0, 4) == Some(1) {
            let address = number(entry, 0x18, 8).ok_or_else(cut_off)?;
            let memory = number(entry, 0x28, 8).ok_or_else(cut_off)?;
            extent = extent.max(address.saturating_add(memory));
        }
    }
    Ok(extent)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use proptest::prelude::*;

    use super::*;

    fn bzimage() -> Vec<u8> {
        let mut image = vec![0; 5 * 512 + 1600];
        image[0x1f1] = 4;
        image[0x1f4] = 100;
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image
    }

    fn file(content: &[u8]) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kernel");
        std::fs::write(&path, content).unwrap();
        (dir, path)
    }

    #[test]
    fn a_whole_bzimage_is_taken_and_a_truncated_one_is_not() {
        let (_dir, path) = file(&bzimage());
        kernel(&path, None).unwrap();
        let (_dir, path) = file(&bzimage()[..4000]);
        let error = kernel(&path, None).unwrap_err().to_string();
        assert!(error.ends_with("is broken: it is cut off at 4000 of 4160 bytes"), "{error}");
    }

    #[test]
    fn what_is_no_kernel_is_named() {
        let (_dir, path) = file(b"hello");
        assert!(matches!(kernel(&path, None), Err(VmmError::Broken { what: "kernel", .. })));
        let error = kernel(Path::new("/no/such/kernel"), None).unwrap_err();
        assert!(matches!(error, VmmError::Open { what: "kernel", .. }));
        let error = kernel(Path::new("/"), None).unwrap_err();
        assert!(matches!(error, VmmError::Broken { .. }));
    }

    #[test]
    fn an_empty_initrd_is_refused() {
        let (_dir, path) = file(b"");
        assert!(matches!(initrd(&path, None), Err(VmmError::Broken { what: "initrd", .. })));
    }

    #[test]
    fn firmware_does_not_get_a_kernel_it_cannot_start() {
        let (_dir, path) = file(&bzimage());
        assert!(efi_kernel(&path, None).is_err());
    }

    #[test]
    fn a_file_the_user_may_not_read_is_copied() {
        use std::os::unix::fs::PermissionsExt;
        let (_dir, path) = file(&bzimage());
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
        let other = User { uid: 65_534, gid: 65_534 };
        let fd = kernel(&path, Some(other)).unwrap().file;
        let target = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).unwrap();
        assert!(target.to_string_lossy().starts_with("/memfd:kernel"), "{target:?}");
        let mut content = Vec::new();
        File::from(fd).read_to_end(&mut content).unwrap();
        assert_eq!(content, bzimage());
    }

    #[test]
    fn the_least_memory_holds_the_kernel_and_the_initrd_twice() {
        let file = |extent| BootFile { file: File::open("/dev/null").unwrap().into(), extent };
        assert_eq!(least_memory(&file(74 << 20), Some(&file(10 << 20))), MiB(110));
        assert_eq!(least_memory(&file(u64::MAX), None), MiB(u64::MAX.div_ceil(1 << 20)));
    }

    proptest! {
        #[test]
        fn no_header_makes_the_check_panic(
            mut head in proptest::collection::vec(any::<u8>(), 0..600),
            size in any::<u64>(),
            elf in any::<bool>(),
        ) {
            if elf && head.len() > 5 {
                head[..5].copy_from_slice(b"\x7fELF\x02");
            }
            let _ = check_elf(&head, size);
            let _ = check_bzimage(&head, size);
        }
    }
}
