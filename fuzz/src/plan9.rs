//! The 9P server's session with whatever a guest sends.

use std::fs;
use std::os::unix::fs::symlink;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use coracle_plan9::{Export, Session};

/// What lies beside the shared directory; no answer may hold it.
const SECRET: &[u8] = b"what is outside stays outside";

/// The longest message the session may agree on, in bytes.
const MESSAGE: u32 = 65536;

static COUNT: AtomicU64 = AtomicU64::new(0);

/// A session after an attach of the root as fid 0. The first byte says whether the share is read-only;
/// then come requests: type, length of the body, body.
///
/// # Panics
/// When an answer is no frame, is longer than agreed, or holds what is outside.
pub fn plan9_session(bytes: &[u8]) {
    let Some((mode, mut rest)) = bytes.split_first() else { return };
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    let place = std::env::temp_dir().join(format!("coracle-fuzz-{}-{number}", std::process::id()));
    let shared = place.join("a");
    fs::create_dir_all(shared.join("b")).expect("a temporary folder can be made");
    fs::write(place.join("s"), SECRET).expect("and written to");
    fs::write(shared.join("f"), "shared").expect("and below");
    symlink("../s", shared.join("l")).expect("a link can be made");
    symlink("..", shared.join("d")).expect("and another");
    let export = Export::new(&shared).expect("the folder is there");
    let export = if mode & 1 == 0 { export } else { export.read_only() };
    let export = if mode & 2 == 0 { export } else { export.only(["f", "l"]) };
    let mut session = Session::new(Arc::new(export), MESSAGE);
    let root = [&[0; 4][..], &[0xff; 4], &[0; 4], &[0; 4]].concat();
    session.respond(104, 1, &root);
    while let [kind, length, tail @ ..] = rest {
        let (body, tail) = tail.split_at(tail.len().min((*length).into()));
        rest = tail;
        let answer = session.respond(*kind, 7, body);
        let said = u32::from_le_bytes(answer[..4].try_into().expect("four bytes"));
        assert_eq!(said as usize, answer.len(), "an answer is a whole frame");
        assert!(said <= MESSAGE, "{said} bytes are more than agreed");
        assert!(answer[4] == 7 || answer[4] == kind.wrapping_add(1), "type {}", answer[4]);
        let leaks = answer.windows(SECRET.len()).any(|window| window == SECRET);
        assert!(!leaks, "an answer holds what is outside");
    }
    assert_eq!(fs::read(place.join("s")).expect("it is there"), SECRET);
    if mode & 1 == 1 {
        assert_eq!(fs::read(shared.join("f")).expect("it is there"), b"shared");
    }
    fs::remove_dir_all(&place).expect("what was made can be removed");
}
