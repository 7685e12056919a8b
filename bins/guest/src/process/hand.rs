//! A thread that does what may have to wait, one job after the other, for one end of a pipe.
//!
//! The pool of the runtime would do as well, but its threads wake up while whoever woke them still holds
//! the pool's lock. With one processor, and an emulated one at that, each such meeting costs as much as
//! copying 100 KiB: a lock that is taken is tried for a while before it is waited for.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

/// How long a thread waits for more to do.
const IDLE: Duration = Duration::from_secs(2);

/// Enough for a read or a write.
const STACK: usize = 64 * 1024;

type Job = Box<dyn FnOnce() + Send>;

/// What a thread and whoever has work for it share.
#[derive(Default)]
struct Desk {
    job: Option<Job>,
    /// The thread is gone, or about to go.
    is_left: bool,
}

/// The thread of one end of a pipe, while there is one.
#[derive(Default)]
pub(super) struct Hand {
    thread: Option<(Thread, Arc<Mutex<Desk>>)>,
}

impl std::fmt::Debug for Hand {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hand").field("has_thread", &self.thread.is_some()).finish()
    }
}

impl Hand {
    /// Has a job done, and tells what came of it. The job before is done.
    ///
    /// # Errors
    /// There can be no thread.
    pub(super) fn start<T: Send + 'static>(
        &mut self,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<oneshot::Receiver<T>> {
        let (tell, told) = oneshot::channel();
        let job = Box::new(move || {
            // Whoever asked may be gone.
            let _ = tell.send(job());
        });
        if let Some(job) = self.give(job) {
            let desk = Arc::new(Mutex::new(Desk { job: Some(job), is_left: false }));
            let its = Arc::clone(&desk);
            let work = move || work(&its);
            let thread = thread::Builder::new().name("pipe".to_owned()).stack_size(STACK);
            self.thread = Some((thread.spawn(work)?.thread().clone(), desk));
        }
        Ok(told)
    }

    /// To the thread that is there; back if there is none.
    fn give(&self, job: Job) -> Option<Job> {
        let Some((thread, desk)) = &self.thread else { return Some(job) };
        {
            let mut desk = desk.lock().unwrap_or_else(PoisonError::into_inner);
            if desk.is_left {
                return Some(job);
            }
            desk.job = Some(job);
        }
        thread.unpark();
        None
    }
}

impl Drop for Hand {
    fn drop(&mut self) {
        if let Some((thread, desk)) = &self.thread {
            desk.lock().unwrap_or_else(PoisonError::into_inner).is_left = true;
            thread.unpark();
        }
    }
}

fn work(desk: &Mutex<Desk>) {
    let mut is_tired = false;
    loop {
        let job = {
            let mut desk = desk.lock().unwrap_or_else(PoisonError::into_inner);
            let job = desk.job.take();
            if job.is_none() && (is_tired || desk.is_left) {
                desk.is_left = true;
                return;
            }
            job
        };
        is_tired = false;
        match job {
            Some(job) => job(),
            None => {
                let since = Instant::now();
                thread::park_timeout(IDLE);
                is_tired = since.elapsed() >= IDLE;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn who() -> thread::ThreadId {
        thread::current().id()
    }

    #[tokio::test]
    async fn one_thread_does_one_job_after_the_other() {
        let mut hand = Hand::default();
        let first = hand.start(who).unwrap().await.unwrap();
        assert_ne!(first, who());
        for n in 0..1000 {
            assert_eq!(hand.start(move || (n, who())).unwrap().await.unwrap(), (n, first));
        }
    }

    #[tokio::test]
    async fn a_thread_that_has_gone_is_followed_by_another() {
        let mut hand = Hand::default();
        let first = hand.start(who).unwrap().await.unwrap();
        let (_, desk) = hand.thread.clone().unwrap();
        desk.lock().unwrap().is_left = true;
        let second = hand.start(who).unwrap().await.unwrap();
        assert_ne!(first, second);
    }

    #[tokio::test]
    async fn a_thread_ends_with_its_hand() {
        let mut hand = Hand::default();
        hand.start(who).unwrap().await.unwrap();
        let (_, desk) = hand.thread.clone().unwrap();
        drop(hand);
        let begun = Instant::now();
        // It holds the other one.
        while Arc::strong_count(&desk) > 1 {
            assert!(begun.elapsed() < IDLE * 10, "it stays");
            thread::sleep(Duration::from_millis(1));
        }
    }
}
