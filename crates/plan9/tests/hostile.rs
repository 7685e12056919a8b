//! A client that tries to get out, and one that sends whatever comes to mind.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

#[path = "../../../fuzz/src/plan9.rs"]
mod fuzz;

use coracle_plan9::{Export, serve_connection};
use proptest::prelude::*;

/// Error numbers.
const ENOENT: u32 = 2;
const EACCES: u32 = 13;
const EINVAL: u32 = 22;
const EROFS: u32 = 30;
const EPERM: u32 = 1;
const ELOOP: u32 = 40;

/// A client that says exactly what it is told to.
struct Client(UnixStream);

impl Client {
    fn of(export: Export) -> Self {
        let (ours, theirs) = UnixStream::pair().unwrap();
        std::thread::spawn(move || serve_connection(theirs, Arc::new(export)));
        let mut client = Self(ours);
        let version = [&65536_u32.to_le_bytes()[..], &text("9P2000.L")].concat();
        client.ask(100, &version).unwrap();
        client
    }

    /// The same, with the root at fid 0.
    fn attached(export: Export) -> Self {
        let mut client = Self::of(export);
        let attach = [&le(0)[..], &le(u32::MAX), &text("root"), &text(""), &le(0)].concat();
        client.ask(104, &attach).unwrap();
        client
    }

    /// Asks; the body of the answer, or the error's number.
    fn ask(&mut self, kind: u8, body: &[u8]) -> Result<Vec<u8>, u32> {
        let length = u32::try_from(7 + body.len()).unwrap();
        self.0.write_all(&length.to_le_bytes()).unwrap();
        self.0.write_all(&[kind, 7, 0]).unwrap();
        self.0.write_all(body).unwrap();
        let mut header = [0; 7];
        self.0.read_exact(&mut header).unwrap();
        let length = u32::from_le_bytes(header[..4].try_into().unwrap());
        let mut answer = vec![0; length as usize - 7];
        self.0.read_exact(&mut answer).unwrap();
        if header[4] == 7 {
            return Err(u32::from_le_bytes(answer.try_into().unwrap()));
        }
        assert_eq!(header[4], kind + 1);
        Ok(answer)
    }

    /// Walks from the root to fid `to`; how many steps went well.
    fn walk(&mut self, to: u32, names: &[&str]) -> Result<usize, u32> {
        let count = u16::try_from(names.len()).unwrap().to_le_bytes();
        let names: Vec<u8> = names.iter().flat_map(|name| text(name)).collect();
        let answer = self.ask(110, &[&le(0)[..], &le(to), &count, &names].concat())?;
        Ok(u16::from_le_bytes(answer[..2].try_into().unwrap()).into())
    }

    fn open(&mut self, fid: u32, flags: u32) -> Result<(), u32> {
        self.ask(12, &[le(fid), le(flags)].concat()).map(drop)
    }

    fn read(&mut self, fid: u32) -> Result<Vec<u8>, u32> {
        let body = [&le(fid)[..], &0_u64.to_le_bytes(), &le(4096)].concat();
        self.ask(116, &body).map(|answer| answer[4..].to_vec())
    }

    fn clunk(&mut self, fid: u32) {
        self.ask(120, &le(fid)).unwrap();
    }

    /// The names in the root.
    fn names(&mut self) -> Vec<String> {
        self.walk(99, &[]).unwrap();
        self.open(99, 0).unwrap();
        let body = [&le(99)[..], &0_u64.to_le_bytes(), &le(8192)].concat();
        let answer = self.ask(40, &body).unwrap();
        self.clunk(99);
        let (mut rest, mut names) = (&answer[4..], Vec::new());
        while !rest.is_empty() {
            let length = usize::from(u16::from_le_bytes(rest[22..24].try_into().unwrap()));
            names.push(String::from_utf8(rest[24..24 + length].to_vec()).unwrap());
            rest = &rest[24 + length..];
        }
        names.sort();
        names
    }
}

fn le(number: u32) -> [u8; 4] {
    number.to_le_bytes()
}

fn text(text: &str) -> Vec<u8> {
    let length = u16::try_from(text.len()).unwrap();
    [&length.to_le_bytes()[..], text.as_bytes()].concat()
}

/// A directory to share and a secret beside it.
fn place() -> tempfile::TempDir {
    let place = tempfile::tempdir().unwrap();
    let shared = place.path().join("shared");
    fs::create_dir_all(shared.join("sub")).unwrap();
    fs::create_dir(place.path().join("outside")).unwrap();
    fs::write(place.path().join("outside/file"), "secret").unwrap();
    fs::write(shared.join("sub/file"), "shared").unwrap();
    symlink("../outside", shared.join("out")).unwrap();
    symlink(place.path().join("outside/file"), shared.join("far")).unwrap();
    place
}

fn export(place: &Path) -> Export {
    Export::new(&place.join("shared")).unwrap()
}

#[test]
fn no_walk_leads_out() {
    let place = place();
    let mut client = Client::attached(export(place.path()));
    assert_eq!(client.walk(1, &["sub", "file"]), Ok(2));
    client.open(1, 0).unwrap();
    assert_eq!(client.read(1).unwrap(), b"shared");
    // Back from the root is the root; beyond a link is nothing; a link is read, never opened.
    assert_eq!(client.walk(2, &["..", "..", "sub", "..", "..", "outside"]), Ok(5));
    assert_eq!(client.walk(2, &["out", "file"]), Ok(1));
    assert_eq!(client.walk(3, &["far"]), Ok(1));
    assert_eq!(client.open(3, 0), Err(ELOOP));
    let target = client.ask(22, &le(3)).unwrap();
    assert!(String::from_utf8_lossy(&target).ends_with("outside/file"));
    for bad in ["", ".", "/", "../outside", "/etc", "sub/file", "a\0b"] {
        assert_eq!(client.walk(4, &[bad]), Err(EINVAL), "{bad:?}");
    }
}

/// The host swaps a directory for a link that leads out, and back, as fast as it can.
#[test]
fn a_directory_that_becomes_a_link_in_mid_walk_leads_nowhere_else() {
    let place = place();
    let shared = place.path().join("shared");
    symlink("../outside", shared.join("link")).unwrap();
    let over = Arc::new(AtomicBool::new(false));
    let (stop, at) = (over.clone(), shared.clone());
    let swapping = std::thread::spawn(move || {
        while !stop.load(Ordering::Relaxed) {
            let _ = fs::rename(at.join("sub"), at.join("kept"));
            let _ = fs::rename(at.join("link"), at.join("sub"));
            let _ = fs::rename(at.join("sub"), at.join("link"));
            let _ = fs::rename(at.join("kept"), at.join("sub"));
        }
    });
    let mut client = Client::attached(export(place.path()));
    let (mut read, mut refused) = (0, 0);
    for _ in 0..20_000 {
        match client.walk(1, &["sub", "file"]) {
            Ok(2) => {
                if client.open(1, 0).is_ok() {
                    assert_eq!(client.read(1).unwrap(), b"shared");
                    read += 1;
                }
                client.clunk(1);
            }
            Ok(_) | Err(_) => refused += 1,
        }
    }
    over.store(true, Ordering::Relaxed);
    swapping.join().unwrap();
    assert!(read > 0 && refused > 0, "the race was not run: {read} read, {refused} refused");
}

#[test]
fn a_read_only_share_refuses_all_that_changes_anything() {
    let place = place();
    let mut client = Client::attached(export(place.path()).read_only());
    client.walk(1, &["sub"]).unwrap();
    client.walk(2, &["sub", "file"]).unwrap();
    let (name, mode) = (text("new"), le(0o644));
    let attributes = [&le(2)[..], &[0; 56]].concat();
    let attribute = [&le(2)[..], &text("user.a"), &1_u64.to_le_bytes(), &le(0)].concat();
    let requests: [(u8, Vec<u8>); 10] = [
        (32, attribute),
        (14, [&le(1)[..], &name, &le(1), &mode, &le(0)].concat()),
        (16, [&le(1)[..], &name, &text("x"), &le(0)].concat()),
        (18, [&le(1)[..], &name, &le(0o100_644), &le(0), &le(0), &le(0)].concat()),
        (26, attributes),
        (70, [&le(1)[..], &le(2), &name].concat()),
        (72, [&le(1)[..], &name, &mode, &le(0)].concat()),
        (74, [&le(1)[..], &text("file"), &le(1), &name].concat()),
        (76, [&le(1)[..], &text("file"), &le(0)].concat()),
        (12, [le(2), le(1)].concat()),
    ];
    for (kind, body) in requests {
        assert_eq!(client.ask(kind, &body), Err(EROFS), "request {kind}");
    }
    assert_eq!(fs::read(place.path().join("shared/sub/file")).unwrap(), b"shared");
    assert_eq!(fs::read_dir(place.path().join("shared/sub")).unwrap().count(), 1);
}

/// Sets an attribute of `sub/file` in as many writes as there are pieces.
fn set(client: &mut Client, name: &str, pieces: &[&[u8]], flags: u32) -> Result<(), u32> {
    client.walk(5, &["sub", "file"]).unwrap();
    let size: u64 = pieces.iter().map(|piece| piece.len() as u64).sum();
    let create = [&le(5)[..], &text(name), &size.to_le_bytes(), &le(flags)].concat();
    client.ask(32, &create)?;
    let mut offset = 0_u64;
    for piece in pieces {
        let count = u32::try_from(piece.len()).unwrap();
        let write = [&le(5)[..], &offset.to_le_bytes(), &le(count), piece].concat();
        client.ask(118, &write)?;
        offset += piece.len() as u64;
    }
    client.ask(120, &le(5)).map(drop)
}

/// An attribute of `sub/file`, or with an empty name the list of all.
fn get(client: &mut Client, name: &str) -> Result<Vec<u8>, u32> {
    client.walk(5, &["sub", "file"]).unwrap();
    let size = client.ask(30, &[&le(5)[..], &le(6), &text(name)].concat())?;
    let value = client.read(6)?;
    assert_eq!(u64::from_le_bytes(size.try_into().unwrap()), value.len() as u64);
    client.clunk(6);
    Ok(value)
}

/// On the disk of the build: older kernels have no attributes of users in a tmpfs.
#[test]
fn attributes_of_users_are_set_read_listed_and_removed_and_no_others() {
    let place = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    fs::create_dir_all(place.path().join("shared/sub")).unwrap();
    let file = place.path().join("shared/sub/file");
    fs::write(&file, "shared").unwrap();
    let mut client = Client::attached(export(place.path()));

    set(&mut client, "user.one", &[b"first ", b"second"], 0).unwrap();
    set(&mut client, "user.empty", &[], 0).unwrap();
    let mut value = [0; 64];
    let length = rustix::fs::getxattr(&file, "user.one", &mut value).unwrap();
    assert_eq!(&value[..length], b"first second");
    assert_eq!(get(&mut client, "user.one").unwrap(), b"first second");
    let list = get(&mut client, "").unwrap();
    let mut names: Vec<&[u8]> = list.split(|byte| *byte == 0).filter(|n| !n.is_empty()).collect();
    names.sort_unstable();
    assert_eq!(names, [&b"user.empty"[..], b"user.one"]);

    const CREATE: u32 = 1;
    const REPLACE: u32 = 2;
    const EEXIST: u32 = 17;
    const ENODATA: u32 = 61;
    const EOPNOTSUPP: u32 = 95;
    assert_eq!(set(&mut client, "user.one", &[b"x"], CREATE), Err(EEXIST));
    set(&mut client, "user.one", &[], REPLACE).unwrap();
    assert_eq!(get(&mut client, "user.one"), Err(ENODATA));

    for name in ["security.capability", "trusted.overlay.opaque", "system.posix_acl_access"] {
        assert_eq!(set(&mut client, name, &[b"x"], 0), Err(EOPNOTSUPP), "{name}");
        assert_eq!(get(&mut client, name), Err(EOPNOTSUPP), "{name}");
    }
    // Announced and not written, or more written than announced.
    let create = [&le(5)[..], &text("user.two"), &4_u64.to_le_bytes(), &le(0)].concat();
    client.walk(5, &["sub", "file"]).unwrap();
    client.ask(32, &create).unwrap();
    assert_eq!(client.ask(120, &le(5)), Err(EINVAL));
    client.walk(5, &["sub", "file"]).unwrap();
    client.ask(32, &create).unwrap();
    let write = [&le(5)[..], &0_u64.to_le_bytes(), &le(5), b"12345"].concat();
    assert_eq!(client.ask(118, &write), Err(28));
    assert_eq!(get(&mut client, "user.two"), Err(ENODATA));
}

#[test]
fn what_is_not_shared_does_not_exist() {
    let place = place();
    let shared = place.path().join("shared");
    fs::write(shared.join("one"), "one").unwrap();
    let mut client = Client::attached(export(place.path()).only(["one"]));
    assert_eq!(client.names(), [".", "..", "one"]);
    assert_eq!(client.walk(1, &["sub"]), Err(ENOENT));
    let rename = [&le(0)[..], &text("one"), &le(0), &text("two")].concat();
    assert_eq!(client.ask(74, &rename), Err(ENOENT));
    assert_eq!(client.walk(1, &["one"]), Ok(1));
    client.open(1, 0).unwrap();
    assert_eq!(client.read(1).unwrap(), b"one");
}

#[test]
fn devices_and_fifos_are_neither_opened_nor_made() {
    let place = place();
    let mut client = Client::attached(export(place.path()));
    let make = |mode: u32| [&le(0)[..], &text("node"), &le(mode), &le(1), &le(3), &le(0)].concat();
    for device in [0o020_666, 0o060_666] {
        assert_eq!(client.ask(18, &make(device)), Err(EPERM));
    }
    client.ask(18, &make(0o010_644)).unwrap();
    client.walk(1, &["node"]).unwrap();
    assert_eq!(client.open(1, 0), Err(EACCES));
}

/// The number that means nobody, where a user or a group belongs: found by fuzzing.
#[test]
fn nobody_owns_what_is_made_and_nothing_breaks() {
    let place = place();
    let mut client = Client::attached(export(place.path()));
    let made = [&le(0)[..], &text("new"), &le(0o755), &le(u32::MAX)].concat();
    client.ask(72, &made).unwrap();
    client.walk(1, &["new"]).unwrap();
    let attributes = [&le(1)[..], &le(6), &le(0), &le(u32::MAX), &le(u32::MAX), &[0; 40]].concat();
    client.ask(26, &attributes).unwrap();
    assert!(place.path().join("shared/new").is_dir());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    /// Whatever is sent in a frame, there is an answer, and the next request is answered too.
    #[test]
    fn no_request_ends_the_server(
        requests in prop::collection::vec((any::<u8>(), prop::collection::vec(any::<u8>(), 0..80)), 1..20)
    ) {
        let place = place();
        let mut client = Client::attached(export(place.path()).read_only());
        for (kind, body) in requests {
            // A new version may make messages shorter, which is another matter.
            if kind != 100 && kind != 255 {
                let _ = client.ask(kind, &body);
            }
        }
        prop_assert!(client.0.peer_addr().is_ok());
        let attach = [&le(5)[..], &le(u32::MAX), &text("root"), &text(""), &le(0)].concat();
        prop_assert!(client.ask(104, &attach).is_ok());
    }
}

#[test]
fn the_session_holds_for_the_corpus_and_for_damaged_copies_of_it() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus/plan9_session");
    let inputs: Vec<Vec<u8>> =
        fs::read_dir(folder).unwrap().map(|file| fs::read(file.unwrap().path()).unwrap()).collect();
    assert!(inputs.len() > 5, "only {} inputs", inputs.len());
    for input in inputs {
        fuzz::plan9_session(&input);
        for at in 0..input.len() {
            let mut damaged = input.clone();
            damaged[at] ^= 0x41;
            fuzz::plan9_session(&damaged);
            fuzz::plan9_session(&input[..at]);
        }
    }
}
