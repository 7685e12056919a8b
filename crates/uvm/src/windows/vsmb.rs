//! SMB shares of a Windows guest: names, references, single files. Pure.
//!
//! A directory is shared whole; a file is shared as its directory, *restricted* to a list of names
//! that only grows. The two kinds have tables of their own, so one directory can be shared both ways.
//! The seed told shares apart by path alone and so mixed up read-only and writable ones; here the
//! key has both.

use std::collections::BTreeMap;

use crate::errors::UvmError;

/// What the guest's paths of shares begin with.
pub const PREFIX: &str = r"\\?\VMSMB\VSMB-{dcc079ae-60ba-4d07-847c-3493609c0870}\";

/// How a share behaves (HCS `VirtualSmbShareOptions`, those the seed sets).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct ShareOptions {
    /// Refuse writes.
    pub read_only: bool,
    /// Let others open what is open for reading.
    pub share_read: bool,
    /// Cache what is read.
    pub cache_io: bool,
    /// No locks of the host's on what is read.
    pub pseudo_oplocks: bool,
    /// Read as a backup does, whatever the access lists say.
    pub take_backup_privilege: bool,
    /// Level II locks whatever is asked.
    pub force_level_ii_oplocks: bool,
    /// Only the names given; set for files.
    pub restrict_file_access: bool,
    /// Map single files; set for files.
    pub single_file_mapping: bool,
}

impl ShareOptions {
    /// As for a read-only layer.
    pub fn layer() -> Self {
        Self {
            read_only: true,
            share_read: true,
            cache_io: true,
            pseudo_oplocks: true,
            take_backup_privilege: true,
            ..Self::default()
        }
    }

    /// As for a mount, read-only or not.
    pub fn mount(read_only: bool) -> Self {
        let (share_read, cache_io, force_level_ii_oplocks) = (read_only, read_only, read_only);
        Self { read_only, share_read, cache_io, force_level_ii_oplocks, ..Self::default() }
    }
}

/// What is shared: the caller has looked at the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shared<'a> {
    /// A directory, by its cleaned path.
    Directory(&'a str),
    /// A file in a directory.
    File {
        /// The directory's cleaned path.
        directory: &'a str,
        /// The file's name.
        name: &'a str,
    },
}

/// A share (seed `VSMBShare`).
#[derive(Debug, Clone, PartialEq, Eq)]
#[doc(alias = "VSMBShare")]
pub struct VsmbShare {
    /// The directory on the host.
    pub host_path: String,
    /// Its name: `s` and a number in hexadecimal.
    pub name: String,
    /// The files that may be reached; all if the share is not restricted.
    pub allowed_files: Vec<String>,
    /// How it behaves.
    pub options: ShareOptions,
}

/// What the host is to be told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Add the share.
    Add(VsmbShare),
    /// Allow more files of it.
    Update(VsmbShare),
    /// Remove the share of this name.
    Remove(String),
    /// Nothing: only a count has changed.
    Nothing,
}

/// Restricted or not, path, read-only or not.
type Key = (bool, String, bool);

/// The shares of a VM.
#[derive(Debug, Default)]
pub struct VsmbShares {
    shares: BTreeMap<Key, (VsmbShare, u32)>,
    counter: u64,
}

fn key(what: Shared<'_>, read_only: bool) -> Key {
    match what {
        Shared::Directory(path) => (false, path.to_owned(), read_only),
        Shared::File { directory, .. } => (true, directory.to_owned(), read_only),
    }
}

impl VsmbShares {
    /// Counts a reference; says where the guest sees it and what to tell the host. If the host then
    /// refuses, [`VsmbShares::remove`] takes it back.
    pub fn add(&mut self, what: Shared<'_>, options: ShareOptions) -> (String, Change) {
        let key = key(what, options.read_only);
        let file = match what {
            Shared::Directory(_) => None,
            Shared::File { directory, name } => Some((format!(r"{directory}\{name}"), name)),
        };
        let change = if let Some((share, references)) = self.shares.get_mut(&key) {
            *references += 1;
            match &file {
                Some((path, _)) if !share.allowed_files.contains(path) => {
                    share.allowed_files.push(path.clone());
                    Change::Update(share.clone())
                }
                Some(_) | None => Change::Nothing,
            }
        } else {
            self.counter += 1;
            let share = VsmbShare {
                host_path: key.1.clone(),
                name: format!("s{:x}", self.counter),
                allowed_files: file.iter().map(|(path, _)| path.clone()).collect(),
                options: ShareOptions {
                    restrict_file_access: file.is_some(),
                    single_file_mapping: file.is_some(),
                    ..options
                },
            };
            self.shares.insert(key.clone(), (share.clone(), 1));
            Change::Add(share)
        };
        let name = &self.shares[&key].0.name;
        let path = match file {
            Some((_, file)) => format!(r"{PREFIX}{name}\{file}"),
            None => format!("{PREFIX}{name}"),
        };
        (path, change)
    }

    /// Gives a reference back; says what to tell the host.
    ///
    /// # Errors
    /// [`UvmError::NotAttached`].
    pub fn remove(&mut self, what: Shared<'_>, read_only: bool) -> Result<Change, UvmError> {
        let key = key(what, read_only);
        let (share, references) = self.shares.get_mut(&key).ok_or(UvmError::NotAttached)?;
        *references -= 1;
        if *references > 0 {
            return Ok(Change::Nothing);
        }
        let name = share.name.clone();
        self.shares.remove(&key);
        Ok(Change::Remove(name))
    }

    /// Where the guest sees it. A restricted share is looked for first for a file, and any file of a
    /// directory that is shared whole is found as well.
    ///
    /// # Errors
    /// [`UvmError::NotAttached`].
    pub fn uvm_path(&self, what: Shared<'_>, read_only: bool) -> Result<String, UvmError> {
        let name_of = |key: &Key| self.shares.get(key).map(|(share, _)| share.name.as_str());
        match what {
            Shared::Directory(_) => {
                let name = name_of(&key(what, read_only)).ok_or(UvmError::NotAttached)?;
                Ok(format!("{PREFIX}{name}"))
            }
            Shared::File { directory, name: file } => {
                let restricted = name_of(&key(what, read_only));
                let whole = || name_of(&key(Shared::Directory(directory), read_only));
                let name = restricted.or_else(whole).ok_or(UvmError::NotAttached)?;
                Ok(format!(r"{PREFIX}{name}\{file}"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIR: Shared<'static> = Shared::Directory(r"C:\data");

    fn file(name: &'static str) -> Shared<'static> {
        Shared::File { directory: r"C:\data", name }
    }

    /// The seed's TestVSMB: one directory 64 times, and 64 removes.
    #[test]
    fn a_directory_is_added_once_and_removed_with_its_last_reference() {
        let mut shares = VsmbShares::default();
        let (path, change) = shares.add(DIR, ShareOptions::layer());
        assert_eq!(path, format!("{PREFIX}s1"));
        assert!(
            matches!(change, Change::Add(share) if share.name == "s1" && share.allowed_files.is_empty())
        );
        for _ in 1..64 {
            assert_eq!(shares.add(DIR, ShareOptions::layer()), (path.clone(), Change::Nothing));
        }
        for _ in 1..64 {
            assert_eq!(shares.remove(DIR, true).unwrap(), Change::Nothing);
        }
        assert_eq!(shares.remove(DIR, true).unwrap(), Change::Remove("s1".into()));
        assert!(matches!(shares.remove(DIR, true), Err(UvmError::NotAttached)));
    }

    #[test]
    fn a_file_is_its_directory_restricted_to_names_that_only_grow() {
        let mut shares = VsmbShares::default();
        let (path, change) = shares.add(file("a"), ShareOptions::mount(false));
        assert_eq!(path, format!(r"{PREFIX}s1\a"));
        let Change::Add(share) = change else { panic!("{change:?}") };
        assert!(share.options.restrict_file_access && share.options.single_file_mapping);
        let (_, change) = shares.add(file("b"), ShareOptions::mount(false));
        assert!(
            matches!(change, Change::Update(s) if s.allowed_files == [r"C:\data\a", r"C:\data\b"])
        );
        assert_eq!(shares.add(file("a"), ShareOptions::mount(false)).1, Change::Nothing);
        // The same directory, whole, is another share.
        assert_eq!(shares.add(DIR, ShareOptions::mount(false)).0, format!("{PREFIX}s2"));
    }

    #[test]
    fn read_only_and_writable_shares_are_not_mixed_up() {
        let mut shares = VsmbShares::default();
        let (writable, _) = shares.add(DIR, ShareOptions::mount(false));
        let (read_only, change) = shares.add(DIR, ShareOptions::mount(true));
        assert_ne!(writable, read_only);
        assert!(matches!(change, Change::Add(share) if share.options.force_level_ii_oplocks));
    }

    #[test]
    fn any_file_of_a_shared_directory_has_a_path() {
        let mut shares = VsmbShares::default();
        assert!(matches!(shares.uvm_path(DIR, false), Err(UvmError::NotAttached)));
        shares.add(DIR, ShareOptions::mount(false));
        assert_eq!(shares.uvm_path(DIR, false).unwrap(), format!("{PREFIX}s1"));
        assert_eq!(shares.uvm_path(file("x"), false).unwrap(), format!(r"{PREFIX}s1\x"));
        let names: Vec<String> = (0..20)
            .map(|n| {
                let path = format!(r"C:\{n}");
                shares.add(Shared::Directory(&path), ShareOptions::default()).0
            })
            .collect();
        // Numbers are hexadecimal.
        assert_eq!(names[8], format!("{PREFIX}sa"));
    }
}
