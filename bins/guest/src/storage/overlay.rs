//! A container's root: read-only layers below, one writable directory above.

use std::path::{Path, PathBuf};

use nix::mount::MsFlags;

use super::mount::{Mount, MountError, Mounter, check_path, create_directory};

/// The layers of one root.
#[derive(Debug, Clone)]
pub struct Layers<'a> {
    /// Read-only directories, the topmost first.
    pub lower: &'a [PathBuf],
    /// A directory for what is written; the root is read-only without.
    pub scratch: Option<&'a Path>,
}

/// Mounts the layers as one tree on `target`. With a scratch, its `upper` and `work` are made when
/// they are missing.
pub fn attach(mounter: &Mounter, layers: &Layers<'_>, target: &Path) -> Result<(), MountError> {
    for path in layers.lower.iter().map(PathBuf::as_path).chain(layers.scratch) {
        check_path(path)?;
    }
    if let Some(scratch) = layers.scratch {
        create_directory(&scratch.join("upper"), 0o755)?;
        create_directory(&scratch.join("work"), 0o755)?;
    }
    let flags = if layers.scratch.is_some() { MsFlags::empty() } else { MsFlags::MS_RDONLY };
    let (from, data) = (Path::new("overlay"), &layers.options());
    mounter.mount(&Mount { from, target, kind: "overlay", flags, data, mode: 0o755 })
}

/// Removes what was written to a scratch that is no part of a root any more, and the directory. What a
/// container wrote there is not followed out of it. There being none is success.
pub fn discard(scratch: &Path) -> Result<(), MountError> {
    check_path(scratch)?;
    match std::fs::remove_dir_all(scratch) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(MountError::Discard { scratch: scratch.to_owned(), source: error })
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

impl Layers<'_> {
    fn options(&self) -> String {
        let lower: Vec<String> = self.lower.iter().map(|path| escape(path, true)).collect();
        let mut options = format!("lowerdir={}", lower.join(":"));
        if let Some(scratch) = self.scratch {
            let scratch = escape(scratch, false);
            options.push_str(&format!(",upperdir={scratch}/upper,workdir={scratch}/work"));
        }
        options
    }
}

/// A comma ends an option and, in `lowerdir`, a colon a path; overlayfs takes a backslash.
fn escape(path: &Path, in_list: bool) -> String {
    let mut escaped = String::new();
    for character in path.to_string_lossy().chars() {
        if matches!(character, ',' | '\\') || (in_list && character == ':') {
            escaped.push('\\');
        }
        escaped.push(character);
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scratch_goes_with_what_is_in_it_and_not_with_what_a_link_in_it_names() {
        let folder = tempfile::tempdir().unwrap();
        let (scratch, other) = (folder.path().join("scratch"), folder.path().join("other"));
        std::fs::create_dir_all(scratch.join("upper/deep")).unwrap();
        std::fs::create_dir(&other).unwrap();
        std::os::unix::fs::symlink(&other, scratch.join("upper/deep/link")).unwrap();
        discard(&scratch).unwrap();
        assert!(!scratch.exists() && other.exists());
        discard(&scratch).unwrap();
    }

    #[test]
    fn the_options_name_layers_in_order_and_the_scratch() {
        let lower = [PathBuf::from("/run/layers/p1"), PathBuf::from("/run/layers/p0")];
        let layers = Layers { lower: &lower, scratch: Some(Path::new("/run/scratch/c")) };
        assert_eq!(
            layers.options(),
            "lowerdir=/run/layers/p1:/run/layers/p0,\
             upperdir=/run/scratch/c/upper,workdir=/run/scratch/c/work"
        );
        assert_eq!(
            Layers { lower: &lower[..1], scratch: None }.options(),
            "lowerdir=/run/layers/p1"
        );
    }

    #[test]
    fn separators_in_paths_are_escaped() {
        let lower = [PathBuf::from("/a,b:c\\d")];
        let options = Layers { lower: &lower, scratch: None }.options();
        assert_eq!(options, "lowerdir=/a\\,b\\:c\\\\d");
    }

    #[test]
    fn option_texts_beyond_a_page_are_refused_before_anything_is_mounted() {
        let lower: Vec<PathBuf> = (0..300).map(|n| format!("/run/layers/{n:012}").into()).collect();
        let directory = tempfile::tempdir().unwrap();
        let target = directory.path().join("root");
        let layers = Layers { lower: &lower, scratch: None };
        let error = attach(&Mounter::default(), &layers, &target).unwrap_err();
        assert!(matches!(error, MountError::OptionsTooLong { .. }), "{error}");
        assert!(!target.exists());
    }
}
