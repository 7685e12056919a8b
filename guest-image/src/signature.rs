//! The signatures of modules.
//!
//! A distribution signs its modules; checking one takes an emulated CPU 5 ms, more than loading it, and
//! proves nothing here: the files are ours, of a digest that the manifest holds, in an initrd that nobody
//! else can write. So they are taken off, unless the kernel was built to refuse a module without one.
//!
//! The layout is that of the kernel's `include/linux/module_signature.h`, at the end of the file:
//!
//! ```text
//! ELF object | signature (len) | 8 bytes, len as big-endian u32 | "~Module signature appended~\n"
//! ```

use std::path::Path;

/// The last bytes of a signed module.
const MARK: &[u8] = b"~Module signature appended~\n";

/// Between the signature and the mark: what made it, and its length.
const DESCRIPTION: usize = 12;

/// The kernel's option that makes it refuse what is not signed.
const FORCE: &str = "CONFIG_MODULE_SIG_FORCE=y";

/// The module without its signature, if it has one that is laid out as it should be.
pub(crate) fn without_signature(module: &[u8]) -> &[u8] {
    let unsigned = || {
        let (rest, description) = module.strip_suffix(MARK)?.split_last_chunk::<DESCRIPTION>()?;
        let [.., a, b, c, d] = *description;
        let length = usize::try_from(u32::from_be_bytes([a, b, c, d])).ok()?;
        rest.len().checked_sub(length).map(|end| &rest[..end])
    };
    unsigned().unwrap_or(module)
}

/// The configuration of the kernel whose modules are in `directory` (`.../lib/modules/RELEASE`), from
/// where distributions put it.
pub(crate) fn configuration(directory: &Path, release: &str) -> Option<String> {
    let name = format!("config-{release}");
    let boot = |root: &str| directory.join(root).join("boot").join(&name);
    // Below lib/modules, and below usr/lib/modules.
    let places = [directory.join("config"), boot("../../.."), boot("../../../..")];
    places.iter().find_map(|place| std::fs::read_to_string(place).ok())
}

/// Whether a kernel of this configuration loads modules without a signature.
pub(crate) fn are_optional(configuration: &str) -> bool {
    !configuration.lines().any(|line| line.trim() == FORCE)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signed(object: &[u8], length: u32) -> Vec<u8> {
        let description = [&[0, 0, 2, 0, 0, 0, 0, 0], length.to_be_bytes().as_slice()].concat();
        [object, b"sig", &description, MARK].concat()
    }

    #[test]
    fn a_signature_goes_and_the_module_stays() {
        assert_eq!(without_signature(&signed(b"object", 3)), b"object");
    }

    #[test]
    fn a_module_without_a_signature_stays_as_it_is() {
        for module in [b"object".as_slice(), b"", MARK, &signed(b"object", 10), &signed(b"", 4)] {
            assert_eq!(without_signature(module), module);
        }
    }

    #[test]
    fn a_kernels_configuration_is_found_and_says_whether_it_needs_signatures() {
        let root = tempfile::tempdir().unwrap();
        let modules = root.path().join("lib/modules/6.1.0");
        std::fs::create_dir_all(&modules).unwrap();
        std::fs::create_dir(root.path().join("boot")).unwrap();
        assert_eq!(configuration(&modules, "6.1.0"), None);
        std::fs::write(root.path().join("boot/config-6.1.0"), "CONFIG_MODULE_SIG=y\n").unwrap();
        let text = configuration(&modules, "6.1.0").unwrap();
        assert!(are_optional(&text));
        assert!(are_optional("# CONFIG_MODULE_SIG_FORCE is not set\n"));
        assert!(!are_optional("CONFIG_MODULE_SIG=y\nCONFIG_MODULE_SIG_FORCE=y\n"));
    }
}
