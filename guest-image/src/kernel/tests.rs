//! Kernels made up byte by byte: whole ones in every compression, and broken ones.

use super::*;
use crate::payload::tests::compress;

/// The least of an x86-64 ELF file with one note segment.
fn vmlinux(note_kind: u32) -> Vec<u8> {
    let mut elf = vec![0_u8; 0x200];
    elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
    elf[0x12] = 62; // EM_X86_64
    elf[0x20] = 0x40; // program headers at 0x40
    elf[0x36] = 56; // of 56 bytes
    elf[0x38] = 2; // two of them
    elf[0x40] = 1; // PT_LOAD
    elf[0x78] = 4; // PT_NOTE
    elf[0x78 + 8] = 0xb0; // at 0xb0
    elf[0x78 + 32] = 40; // 40 bytes
    elf[0xb0] = 4; // a note "GNU" first
    elf[0xb4] = 4;
    elf[0xbc..0xc0].copy_from_slice(b"GNU\0");
    elf[0xc4] = 4; // then ours
    elf[0xc8] = 4;
    elf[0xcc..0xd0].copy_from_slice(&note_kind.to_le_bytes());
    elf[0xd0..0xd4].copy_from_slice(b"Xen\0");
    elf
}

/// A bzImage around `payload`, which ends with its expanded size.
fn bzimage(payload: &[u8]) -> Vec<u8> {
    let mut image = vec![0_u8; 5 * 512];
    image[0x1f1] = 4;
    image[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image[0x206..0x208].copy_from_slice(&[0x0f, 0x02]);
    image[0x20e..0x210].copy_from_slice(&0x300_u16.to_le_bytes());
    image[0x248..0x24c].copy_from_slice(&64_u32.to_le_bytes());
    image[0x24c..0x250].copy_from_slice(&u32::try_from(payload.len()).unwrap().to_le_bytes());
    image[0x500..0x510].copy_from_slice(b"6.1.0-7-test (x\0");
    image.extend([0x90; 64]); // the decompressor
    image.extend(payload);
    image.extend([0; 32]);
    image
}

/// A payload as the kernel's build makes it.
fn payload(format: Compression, plain: &[u8]) -> Vec<u8> {
    let mut payload = compress(format, plain);
    if format != Compression::Gzip {
        payload.extend(u32::try_from(plain.len()).unwrap().to_le_bytes());
    }
    payload
}

#[test]
fn a_kernel_comes_out_of_every_compression_as_it_went_in() {
    let plain = vmlinux(18);
    for format in [
        Compression::Gzip,
        Compression::Xz,
        Compression::Zstd,
        Compression::Lz4Legacy,
        Compression::None,
    ] {
        let kernel = Kernel::parse(&bzimage(&payload(format, &plain))).unwrap();
        assert_eq!(kernel.compression, format);
        assert_eq!(kernel.release, "6.1.0-7-test");
        assert!(kernel.vmlinux().unwrap() == plain, "{format}");
    }
}

#[test]
fn what_is_no_bzimage_is_told_so() {
    for bytes in [&b""[..], b"\x7fELF", &[0; 4096]] {
        assert!(matches!(Kernel::parse(bytes), Err(KernelError::NotBzImage)));
    }
}

#[test]
fn a_kernel_from_before_the_payload_fields_is_too_old() {
    let mut image = bzimage(&payload(Compression::Gzip, &vmlinux(18)));
    image[0x206] = 7;
    let error = Kernel::parse(&image).unwrap_err().to_string();
    assert_eq!(error, "its boot protocol 2.07 is older than 2.08");
}

#[test]
fn a_kernel_cut_short_anywhere_is_an_error_and_no_panic() {
    let image = bzimage(&payload(Compression::Zstd, &vmlinux(18)));
    for length in 0..image.len() - 32 {
        assert!(Kernel::parse(&image[..length]).is_err(), "{length}");
    }
}

#[test]
fn a_flipped_byte_in_the_payload_is_found_or_at_least_no_panic() {
    let image = bzimage(&payload(Compression::Xz, &vmlinux(18)));
    let begin = 5 * 512 + 64;
    for at in begin..image.len() - 32 {
        let mut image = image.clone();
        image[at] ^= 0xff;
        let outcome = Kernel::parse(&image).and_then(|kernel| kernel.vmlinux());
        assert!(outcome.is_err(), "byte {at}");
    }
}

#[test]
fn a_size_that_is_not_what_comes_out_is_an_error() {
    let plain = vmlinux(18);
    let mut payload = compress(Compression::Zstd, &plain);
    payload.extend(1_000_000_u32.to_le_bytes());
    let error = Kernel::parse(&bzimage(&payload)).unwrap().vmlinux().unwrap_err();
    assert!(
        matches!(error, KernelError::WrongSize { actual: 512, expected: 1_000_000 }),
        "{error}"
    );
}

#[test]
fn a_kernel_without_a_pvh_entry_says_what_it_was_built_without() {
    let error = Kernel::parse(&bzimage(&payload(Compression::Gzip, &vmlinux(17))))
        .unwrap()
        .vmlinux()
        .unwrap_err();
    assert!(error.to_string().contains("CONFIG_PVH"), "{error}");
}

#[test]
fn a_payload_of_another_architecture_is_not_taken() {
    let mut plain = vmlinux(18);
    plain[0x12] = 0xb7; // aarch64
    let kernel = Kernel::parse(&bzimage(&payload(Compression::Gzip, &plain))).unwrap();
    assert!(matches!(kernel.vmlinux(), Err(KernelError::NotElf)));
}

#[test]
fn a_program_that_asks_for_a_loader_is_told_from_a_static_one() {
    let mut elf = vmlinux(18);
    assert!(!needs_interpreter(&elf));
    elf[0x40] = 3; // PT_INTERP
    assert!(needs_interpreter(&elf));
}
