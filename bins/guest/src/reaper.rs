//! The one place that waits for processes.
//!
//! PID 1 inherits every orphan of the VM and must reap them all, and a status can be collected
//! only once: a second waiter somewhere else would steal exit codes. So nothing in the agent calls
//! `wait` but [`Reaper::reap`], which runs on each SIGCHLD, collects whatever has ended and wakes
//! those who asked. Starting a process and asking for it happen under the reaper's lock, and so
//! does sending a signal: a pid in a [`Child`] that has not ended cannot belong to anyone else.
//!
//! Some of our children are born behind our back: libcontainer's helper makes the container's
//! init a child of the agent and only then tells its pid. While such a helper runs, an
//! [`Expectation`] keeps the statuses nobody asked for; without one they are dropped.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitStatus {
    /// It returned this code.
    Code(u8),
    /// This signal killed it.
    Signal(u8),
}

impl ExitStatus {
    /// The code as a shell gives it: 128 plus the number of the signal.
    pub fn exit_code(self) -> u32 {
        match self {
            Self::Code(code) => u32::from(code),
            Self::Signal(number) => 128 + u32::from(number),
        }
    }

    fn from_wait(status: WaitStatus) -> Option<(Pid, Self)> {
        match status {
            // The kernel keeps the low eight bits only.
            WaitStatus::Exited(pid, code) => {
                Some((pid, Self::Code(u8::try_from(code & 0xff).unwrap_or(u8::MAX))))
            }
            WaitStatus::Signaled(pid, signal, _) => {
                Some((pid, Self::Signal(u8::try_from(signal as i32).unwrap_or(u8::MAX))))
            }
            _ => None,
        }
    }
}

/// Collects the exit status of every process that ends. Cheap to clone; all clones are one.
#[derive(Debug, Clone, Default)]
pub struct Reaper {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    watched: HashMap<Pid, watch::Sender<Option<ExitStatus>>>,
    unclaimed: HashMap<Pid, ExitStatus>,
    expectations: usize,
}

/// A process that is, or was, a child of the agent.
#[derive(Debug, Clone)]
pub struct Child {
    pid: Pid,
    exit: watch::Receiver<Option<ExitStatus>>,
    reaper: Reaper,
}

/// Holds back statuses nobody asked for, until dropped.
#[derive(Debug)]
pub struct Expectation {
    reaper: Reaper,
}

impl Reaper {
    /// A reaper that knows no process.
    pub fn new() -> Self {
        Self::default()
    }

    /// Runs until the task is dropped: reaps at every SIGCHLD.
    ///
    /// # Errors
    /// When the signal's handler cannot be installed.
    pub async fn run(self) -> io::Result<()> {
        let mut child_ended = signal(SignalKind::child())?;
        // What ended before the handler stood gives no signal any more.
        self.reap();
        while child_ended.recv().await.is_some() {
            self.reap();
        }
        Ok(())
    }

    /// Starts a process by `start` and watches it from its first moment.
    pub fn spawn(&self, start: impl FnOnce() -> io::Result<Pid>) -> io::Result<Child> {
        let mut state = self.lock();
        let pid = start()?;
        Ok(self.watch(&mut state, pid))
    }

    /// Announces that children will be born whose pids become known later.
    pub fn expect(&self) -> Expectation {
        self.lock().expectations += 1;
        Expectation { reaper: self.clone() }
    }

    /// Collects every status there is now.
    pub fn reap(&self) {
        let mut state = self.lock();
        loop {
            let status = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return,
                Err(Errno::EINTR) => continue,
                Err(error) => {
                    tracing::error!(%error, "waiting for processes failed");
                    return;
                }
                Ok(status) => status,
            };
            let Some((pid, status)) = ExitStatus::from_wait(status) else { continue };
            match state.watched.remove(&pid) {
                Some(watcher) => drop(watcher.send_replace(Some(status))),
                None if state.expectations > 0 => drop(state.unclaimed.insert(pid, status)),
                None => {}
            }
        }
    }

    fn watch(&self, state: &mut State, pid: Pid) -> Child {
        let (sender, exit) = watch::channel(state.unclaimed.remove(&pid));
        if exit.borrow().is_none() {
            state.watched.insert(pid, sender);
        }
        Child { pid, exit, reaper: self.clone() }
    }

    /// A panic under this lock cannot leave it half changed, so poison means nothing.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Expectation {
    /// Watches the child whose pid just became known; it may have ended already.
    pub fn claim(&self, pid: Pid) -> Child {
        let mut state = self.reaper.lock();
        self.reaper.watch(&mut state, pid)
    }
}

impl Drop for Expectation {
    fn drop(&mut self) {
        let mut state = self.reaper.lock();
        state.expectations -= 1;
        if state.expectations == 0 {
            state.unclaimed.clear();
        }
    }
}

impl Child {
    /// The process id in the VM's own pid namespace.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// How it ended; `None` while it runs.
    pub fn status(&self) -> Option<ExitStatus> {
        *self.exit.borrow()
    }

    /// Waits for its end. Any number of callers, at any time, all get the same answer.
    pub async fn wait(&self) -> ExitStatus {
        let mut exit = self.exit.clone();
        // The sender is dropped only after it has sent the status.
        match exit.wait_for(Option::is_some).await {
            Ok(status) => (*status).unwrap_or(ExitStatus::Code(u8::MAX)),
            Err(_) => self.status().unwrap_or(ExitStatus::Code(u8::MAX)),
        }
    }

    /// Sends a signal; false when the process has ended.
    ///
    /// # Errors
    /// What `kill` says, except that there is no such process.
    pub fn signal(&self, signal: Signal) -> io::Result<bool> {
        match self.while_alive(|pid| kill(pid, signal)) {
            None | Some(Err(Errno::ESRCH)) => Ok(false),
            Some(Ok(())) => Ok(true),
            Some(Err(error)) => Err(error.into()),
        }
    }

    /// Runs `act` with the pid while it is certain that the pid is this process; `None` when it
    /// has ended.
    pub fn while_alive<T>(&self, act: impl FnOnce(Pid) -> T) -> Option<T> {
        let _state = self.reaper.lock();
        if self.status().is_some() { None } else { Some(act(self.pid)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::wait::waitid;
    use std::process::{Command, Stdio};
    use std::sync::LazyLock;
    use std::time::Duration;

    /// One for all tests of this process, as there is one in a VM: it reaps every child there is.
    static REAPER: LazyLock<Reaper> = LazyLock::new(Reaper::new);

    fn start(script: &str) -> io::Result<Pid> {
        let child = Command::new("/bin/sh").args(["-c", script]).stdin(Stdio::null()).spawn()?;
        Ok(Pid::from_raw(child.id().cast_signed()))
    }

    /// In place of SIGCHLD, which tests of one process would steal from each other.
    async fn reaped(child: &Child) -> ExitStatus {
        loop {
            REAPER.reap();
            if let Some(status) = child.status() {
                assert_eq!(child.wait().await, status);
                return status;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    #[tokio::test]
    async fn an_exit_code_is_told_to_every_waiter() {
        let child = REAPER.spawn(|| start("exit 7")).unwrap();
        assert_eq!(reaped(&child).await, ExitStatus::Code(7));
        assert_eq!(child.clone().wait().await.exit_code(), 7);
    }

    #[tokio::test]
    async fn death_by_a_signal_is_128_and_its_number() {
        let child = REAPER.spawn(|| start("kill -TERM $$")).unwrap();
        let status = reaped(&child).await;
        assert_eq!((status, status.exit_code()), (ExitStatus::Signal(15), 143));
    }

    #[tokio::test]
    async fn a_process_that_ended_before_its_pid_was_known_is_not_lost() {
        let expectation = REAPER.expect();
        let pid = start("exit 9").unwrap();
        // Until it is a zombie, without reaping it.
        let zombie = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT;
        let seen = waitid(nix::sys::wait::Id::Pid(pid), zombie);
        assert!(seen.is_ok() || seen == Err(Errno::ECHILD), "{seen:?}");
        REAPER.reap();
        let child = expectation.claim(pid);
        assert_eq!(reaped(&child).await, ExitStatus::Code(9));
    }

    #[tokio::test]
    async fn nobodys_child_is_reaped_and_forgotten() {
        let pid = start("exit 0").unwrap();
        while kill(pid, None).is_ok() {
            REAPER.reap();
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    #[tokio::test]
    async fn a_process_that_ended_takes_no_signal() {
        let child = REAPER.spawn(|| start("exec sleep 60")).unwrap();
        assert!(child.signal(Signal::SIGKILL).unwrap());
        reaped(&child).await;
        assert!(!child.signal(Signal::SIGKILL).unwrap());
        assert!(child.while_alive(|_| ()).is_none());
    }
}
