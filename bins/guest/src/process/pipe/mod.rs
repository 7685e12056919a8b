//! The agent's ends of a workload's pipes, read and written off the threads that serve everyone.
//!
//! A pipe has a lock in the kernel, and whoever splices into it from something slow (a socket, a file
//! on a share) holds that lock while it waits: `cat` of a file on a 9P share does, with `sendfile`.
//! A read of our end then waits for the lock, non-blocking or not. On the thread that carries the streams
//! of all workloads that would let any of them stop the others, and one that waits for a share whose
//! bytes this thread carries stop them for ever. So this thread only asks whether a pipe is ready, which
//! takes no lock, and the reading and writing is done by a [thread](super::hand) of the pipe's own.

mod inlet;
mod outlet;

use std::os::fd::OwnedFd;
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::fcntl::{FcntlArg, fcntl};

pub use inlet::Inlet;
pub use outlet::Outlet;

/// Bytes moved at once, and what a pipe of ours holds: going to another thread and back costs as much
/// as copying these, so they are many.
const CHUNK: usize = 512 * 1024;

/// Gives a pipe room for a chunk. It is as good without, only slower.
fn widen(pipe: &OwnedFd) {
    let size = i32::try_from(CHUNK).unwrap_or(i32::MAX);
    if let Err(error) = fcntl(pipe, FcntlArg::F_SETPIPE_SZ(size)) {
        tracing::debug!(%error, "a pipe stays as it is");
    }
}

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing under these locks panics half-way through a change.
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use coracle_bridge::channel::{AREA_BYTES, SharedArea};
    use futures_util::TryStreamExt;
    use nix::fcntl::OFlag;
    use nix::unistd::pipe2;
    use tokio::io::AsyncWriteExt;

    pub fn not_blocking(end: OwnedFd) -> OwnedFd {
        fcntl(&end, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
        end
    }

    #[tokio::test]
    async fn megabytes_go_through_both_ends_whole() {
        megabytes_go_through(None).await;
    }

    #[tokio::test]
    async fn megabytes_go_through_slots_of_an_area_whole_which_come_home() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(AREA_BYTES as u64).unwrap();
        let area = SharedArea::of_file(file.path());
        let all = area.fresh_slots(100).len();
        megabytes_go_through(Some(area.clone())).await;
        let written = std::fs::read(file.path()).unwrap();
        assert!(written.iter().any(|byte| *byte != 0), "nothing was read into a slot");
        assert_eq!(area.fresh_slots(100).len(), all);
    }

    async fn megabytes_go_through(area: Option<SharedArea>) {
        let (from, to) = pipe2(OFlag::O_CLOEXEC).unwrap();
        let outlet = Outlet::new(not_blocking(from), area);
        let mut inlet = Inlet::new(not_blocking(to));
        let sent: Vec<u8> = (0..3_000_000_u32).map(|n| (n % 251) as u8).collect();
        let expected = sent.clone();
        let writing = tokio::spawn(async move {
            inlet.write_all(&sent).await.unwrap();
            inlet.shutdown().await.unwrap();
        });
        let got: Vec<bytes::Bytes> = outlet.try_collect().await.unwrap();
        writing.await.unwrap();
        assert!(got.concat() == expected);
    }
}
