//! The files of a layout, in a directory or within a tar.
//!
//! A tar is looked through once, from header to header; after that its members are read in place.
//! Names come from documents of the image, so they are confined to it: with `..` in them they
//! are not found.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::{DOCUMENT_MAX, OciError};
use crate::digest::Digest;
use crate::erofs::Name;
use crate::tar::{EntryKind, Reader, TarError};

/// Which of the two ways of writing down an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    /// `oci-layout`, `index.json` and `blobs/`.
    Oci,
    /// `manifest.json` and files it names.
    Docker,
}

/// The files of an image.
#[derive(Debug)]
pub(crate) struct Blobs {
    path: PathBuf,
    shape: Shape,
    place: Place,
}

#[derive(Debug)]
enum Place {
    Directory,
    Archive { file: File, members: HashMap<String, Member> },
}

/// Where a file is in a tar.
#[derive(Debug)]
enum Member {
    Bytes {
        start: u64,
        len: u64,
    },
    /// Old `docker save` writes a layer once, and links to it after that.
    Link(String),
}

impl Blobs {
    /// The layout in the directory `path`.
    pub(crate) fn directory(path: &Path) -> Self {
        Self { path: path.to_owned(), shape: Shape::Oci, place: Place::Directory }
    }

    /// The layout in the uncompressed tar `file`, which is called `path` in messages.
    pub(crate) fn archive(file: File, path: &Path) -> Result<Self, TarError> {
        let mut members = HashMap::new();
        let section = Section::whole(&file).map_err(|source| TarError::Read { at: 0, source })?;
        let mut tar = Reader::new(section);
        while let Some(entry) = tar.next_entry()? {
            let start = tar.position();
            tar.jump(Section::skip);
            let Some(name) = plain(&String::from_utf8_lossy(&entry.path)) else { continue };
            let member = match entry.kind {
                EntryKind::File => Member::Bytes { start, len: entry.size },
                EntryKind::Symlink(target) => Member::Link(beside(&name, &target)),
                EntryKind::HardLink(target) => Member::Link(beside("", &target)),
                EntryKind::CharDevice(_)
                | EntryKind::BlockDevice(_)
                | EntryKind::Directory
                | EntryKind::Fifo => continue,
            };
            members.insert(name, member);
        }
        let shape = if members.contains_key("index.json") { Shape::Oci } else { Shape::Docker };
        Ok(Self { path: path.to_owned(), shape, place: Place::Archive { file, members } })
    }

    pub(crate) fn shape(&self) -> Shape {
        self.shape
    }

    /// The directory or archive, for messages.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Opens a file of the image.
    pub(crate) fn open(&self, name: &str) -> Result<Section, OciError> {
        let failed =
            |source| OciError::Read { path: self.path.clone(), name: name.to_owned(), source };
        let missing = || failed(io::ErrorKind::NotFound.into());
        let name = plain(name).ok_or_else(missing)?;
        match &self.place {
            Place::Directory => File::open(self.path.join(name))
                .and_then(|file| Section::whole(&file))
                .map_err(failed),
            Place::Archive { file, members } => {
                let mut member = members.get(&name).ok_or_else(missing)?;
                if let Member::Link(target) = member {
                    member = members.get(target).ok_or_else(missing)?;
                }
                match member {
                    Member::Bytes { start, len } => {
                        Section::part(file, *start, *len).map_err(failed)
                    }
                    // A link to a link: nobody writes those.
                    Member::Link(_) => Err(missing()),
                }
            }
        }
    }

    /// All of a small file, and its digest.
    pub(crate) fn document(&self, name: &str) -> Result<(Vec<u8>, Digest), OciError> {
        let mut text = Vec::new();
        self.open(name)?.take(DOCUMENT_MAX + 1).read_to_end(&mut text).map_err(|source| {
            OciError::Read { path: self.path.clone(), name: name.to_owned(), source }
        })?;
        if text.len() as u64 > DOCUMENT_MAX {
            return Err(self.malformed(name, "it is larger than 8 MiB"));
        }
        let digest = Digest::of(&text);
        Ok((text, digest))
    }

    /// The error for a document that makes no sense.
    pub(crate) fn malformed(&self, name: &str, reason: impl ToString) -> OciError {
        let reason = reason.to_string();
        OciError::Document { path: self.path.clone(), name: name.to_owned(), reason }
    }
}

/// A part of a file, read from its start to its end by offset: the file is shared.
#[derive(Debug)]
pub(crate) struct Section {
    file: File,
    at: u64,
    end: u64,
}

impl Section {
    /// All of a regular file.
    pub(crate) fn whole(file: &File) -> io::Result<Self> {
        let stat = file.metadata()?;
        if !stat.is_file() {
            return Err(io::Error::other("it is not a regular file"));
        }
        Ok(Self { file: file.try_clone()?, at: 0, end: stat.len() })
    }

    /// `len` bytes from `start` on, or as many of them as there are.
    fn part(file: &File, start: u64, len: u64) -> io::Result<Self> {
        let whole = Self::whole(file)?;
        let end = start.saturating_add(len).min(whole.end);
        Ok(Self { at: start.min(end), end, ..whole })
    }

    /// Bytes left to read.
    pub(crate) fn len(&self) -> u64 {
        self.end - self.at
    }

    /// Jumps over `len` bytes, or to the end; says whether they were all there.
    pub(crate) fn skip(&mut self, len: u64) -> bool {
        let there = len <= self.len();
        self.at += len.min(self.len());
        there
    }
}

impl Read for Section {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.len()).unwrap_or(usize::MAX).min(buffer.len());
        let len = self.file.read_at(&mut buffer[..most], self.at)?;
        self.at += len as u64;
        Ok(len)
    }
}

/// A name within the image in its plainest form; `None` when it leads out, or nowhere.
fn plain(name: &str) -> Option<String> {
    let parts = name.split('/').filter(|part| !part.is_empty() && *part != ".");
    let parts: Vec<&str> =
        parts.map(|part| Name::new(part.as_bytes()).ok().map(|_| part)).collect::<Option<_>>()?;
    (!parts.is_empty()).then(|| parts.join("/"))
}

/// The file a link in the directory of `name` leads to; an empty name when it leads out.
fn beside(name: &str, target: &[u8]) -> String {
    let target = String::from_utf8_lossy(target);
    let mut parts: Vec<&str> = name.split('/').collect();
    parts.pop();
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." if parts.pop().is_none() => return String::new(),
            ".." => {}
            part => parts.push(part),
        }
    }
    parts.join("/")
}

/// Whether the tar in `reader` is an image, or itself a root file system. An image has nothing
/// but certain names in it; most tars are found out at the first entry.
pub(crate) fn is_image<R: Read>(
    reader: &mut Reader<R>,
    jump: fn(&mut R, u64) -> bool,
) -> Result<bool, TarError> {
    let mut has_index = false;
    while let Some(entry) = reader.next_entry()? {
        let name = String::from_utf8_lossy(&entry.path).into_owned();
        match belongs(&name) {
            Belongs::Surely => return Ok(true),
            Belongs::Perhaps { index } => has_index |= index,
            Belongs::Not => return Ok(false),
        }
        reader.jump(jump);
    }
    Ok(has_index)
}

/// Whether a name belongs to an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Belongs {
    Surely,
    /// `index`: it is one of the two files that every image has one of.
    Perhaps {
        index: bool,
    },
    Not,
}

fn belongs(name: &str) -> Belongs {
    let name = name.trim_start_matches("./").trim_end_matches('/');
    let is_hex = |text: &str| text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit());
    let parts: Vec<&str> = name.split('/').collect();
    match parts.as_slice() {
        ["oci-layout"] => Belongs::Surely,
        ["blobs", "sha256", hex] if is_hex(hex) => Belongs::Surely,
        [hex, "layer.tar"] if is_hex(hex) => Belongs::Surely,
        ["index.json" | "manifest.json"] => Belongs::Perhaps { index: true },
        ["" | "." | "blobs" | "repositories"] | ["blobs", "sha256"] => {
            Belongs::Perhaps { index: false }
        }
        [hex] | [hex, "json" | "VERSION"] if is_hex(hex) => Belongs::Perhaps { index: false },
        [file] if file.strip_suffix(".json").is_some_and(is_hex) => Belongs::Surely,
        [file] if file.strip_suffix(".tar").is_some_and(is_hex) => Belongs::Surely,
        _ => Belongs::Not,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_lead_out_of_the_image_are_no_names() {
        assert_eq!(plain("blobs//sha256/./x"), Some("blobs/sha256/x".into()));
        assert_eq!(plain("/etc/passwd"), Some("etc/passwd".into()));
        assert_eq!(plain("../x"), None);
        assert_eq!(plain("a/../../x"), None);
        assert_eq!(plain(""), None);
        assert_eq!(beside("a/layer.tar", b"../b/layer.tar"), "b/layer.tar");
        assert_eq!(beside("a/layer.tar", b"../../b"), "");
    }

    #[test]
    fn an_image_is_told_from_a_root_file_system_by_its_names() {
        let hex = "0".repeat(64);
        assert_eq!(belongs("oci-layout"), Belongs::Surely);
        assert_eq!(belongs(&format!("./blobs/sha256/{hex}")), Belongs::Surely);
        assert_eq!(belongs(&format!("{hex}.json")), Belongs::Surely);
        assert_eq!(belongs("blobs/"), Belongs::Perhaps { index: false });
        assert_eq!(belongs("index.json"), Belongs::Perhaps { index: true });
        for name in ["bin/sh", "etc/", "blobs/x", "manifest.json/x"] {
            assert_eq!(belongs(name), Belongs::Not, "{name}");
        }
    }
}
