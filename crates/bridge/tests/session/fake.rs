//! A guest without a VM: containers and processes are tasks, pipes are in memory.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use coracle_bridge::hresult::Hresult;
use coracle_bridge::message::incoming::Change;
use coracle_bridge::message::{
    ContainerConfig, ProcessEntry, ProcessParameters, Properties, PropertiesQuery,
};
use coracle_bridge::server::{
    Created, GuestService, ServiceError, Sink, Source, Started, Stop, Target,
};
use futures::FutureExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::{Notify, watch};
use tokio_util::io::ReaderStream;

/// Size of the pipes, small so that processes wait for their readers.
const PIPE: usize = 4096;

/// What the fake was asked to do, for tests to look at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen {
    Create(String),
    Delete(String),
    Signal(Target, i32),
    Resize(Target, u16, u16),
    Modify(String),
    PowerOff(Stop),
}

#[derive(Default)]
struct State {
    last_pid: u32,
    /// Ends of the processes that run, by pid.
    ends: HashMap<u32, watch::Sender<Option<u32>>>,
    containers: HashMap<String, u32>,
    seen: Vec<Seen>,
    stacks: String,
    next_pid: Option<u32>,
}

/// The service. A command's first word says what the process does:
/// `cat` copies stdin to stdout; `exit N` ends; `sleep` runs until a signal;
/// `count N` writes N bytes of a known pattern; `sink` reads stdin to its end; `tty`
/// is a `cat` without a standard error of its own.
#[derive(Default)]
pub struct Fake {
    state: Mutex<State>,
    /// `create_container("slow")` waits for this.
    pub go: Notify,
}

/// Byte `n` of the known pattern.
pub fn pattern(n: u64) -> u8 {
    u8::try_from((n ^ (n >> 8) ^ (n >> 16)) % 251).unwrap()
}

pub fn pattern_bytes(from: u64, to: u64) -> Vec<u8> {
    (from..to).map(pattern).collect()
}

impl Fake {
    pub fn seen(&self) -> Vec<Seen> {
        self.state.lock().unwrap().seen.clone()
    }

    fn note(&self, seen: Seen) {
        self.state.lock().unwrap().seen.push(seen);
    }

    pub fn set_stacks(&self, text: String) {
        self.state.lock().unwrap().stacks = text;
    }

    /// The pid of the next process, to play a kernel that uses a pid again.
    pub fn next_pid_is(&self, pid: u32) {
        self.state.lock().unwrap().next_pid = Some(pid);
    }

    fn new_process(&self) -> (u32, watch::Receiver<Option<u32>>) {
        let mut state = self.state.lock().unwrap();
        state.last_pid = (state.last_pid + 1).max(100);
        let last = state.last_pid;
        let pid = state.next_pid.take().unwrap_or(last);
        let (tell, end) = watch::channel(None);
        state.ends.insert(pid, tell);
        (pid, end)
    }

    /// Ends a process; whether it ran.
    pub fn end(&self, pid: u32, code: u32) -> bool {
        let tell = self.state.lock().unwrap().ends.remove(&pid);
        tell.map(|tell| tell.send_replace(Some(code))).is_some()
    }

    fn run(
        self: &Arc<Self>,
        pid: u32,
        end: watch::Receiver<Option<u32>>,
        words: &[String],
        parameters: &ProcessParameters,
    ) -> Result<Started, ServiceError> {
        let mut words = words.iter().map(String::as_str);
        let terminal = words.clone().next() == Some("tty");
        let (stdin, in_pipe) = tokio::io::duplex(PIPE);
        let (stdout, out_pipe) = tokio::io::duplex(PIPE);
        let (stderr, err_pipe) = tokio::io::duplex(PIPE);
        let fake = Arc::clone(self);
        let exit_of = |code| async move { code };
        let number = |word: Option<&str>| word.and_then(|n| n.parse::<u64>().ok()).unwrap_or(0);
        let work = match words.next() {
            Some("cat" | "tty") => cat(in_pipe, out_pipe).boxed(),
            Some("sink") => sink(in_pipe).boxed(),
            Some("exit") => {
                drop((in_pipe, out_pipe));
                exit_of(u32::try_from(number(words.next())).unwrap()).boxed()
            }
            Some("count") => count(out_pipe, number(words.next())).boxed(),
            Some("sleep") => {
                let hold = (in_pipe, out_pipe);
                async move {
                    let _hold = hold;
                    std::future::pending().await
                }
                .boxed()
            }
            other => {
                self.end(pid, 127);
                return Err(ServiceError::failed(format!("{other:?}: no such program")));
            }
        };
        let mut killed = end.clone();
        tokio::spawn(async move {
            let _stderr = err_pipe;
            tokio::select! {
                code = work => { fake.end(pid, code); }
                _ = killed.wait_for(Option::is_some) => {}
            }
        });
        Ok(Started {
            pid,
            stdin: parameters.create_std_in_pipe.then(|| Box::new(stdin) as Sink),
            stdout: parameters
                .create_std_out_pipe
                .then(|| Box::pin(ReaderStream::new(stdout)) as Source),
            stderr: (parameters.create_std_err_pipe && !terminal)
                .then(|| Box::pin(ReaderStream::new(stderr)) as Source),
            exit: exit_future(end),
        })
    }
}

fn exit_future(mut end: watch::Receiver<Option<u32>>) -> coracle_bridge::server::ExitFuture {
    async move {
        let code = end.wait_for(Option::is_some).await.ok().and_then(|code| *code);
        match code {
            Some(code) => code,
            None => std::future::pending().await,
        }
    }
    .boxed()
}

async fn cat(mut stdin: DuplexStream, mut stdout: DuplexStream) -> u32 {
    match tokio::io::copy(&mut stdin, &mut stdout).await {
        Ok(_) => 0,
        Err(_) => 141,
    }
}

async fn sink(mut stdin: DuplexStream) -> u32 {
    let mut buffer = vec![0; 1000];
    let mut at = 0;
    loop {
        match stdin.read(&mut buffer).await {
            Ok(0) => return 0,
            Ok(n) => {
                for byte in &buffer[..n] {
                    if *byte != pattern(at) {
                        return 1;
                    }
                    at += 1;
                }
            }
            Err(_) => return 2,
        }
    }
}

async fn count(mut stdout: DuplexStream, total: u64) -> u32 {
    let mut at = 0;
    while at < total {
        let next = (at + 1777).min(total);
        if stdout.write_all(&pattern_bytes(at, next)).await.is_err() {
            return 141;
        }
        at = next;
    }
    0
}

fn words_of(config: &ContainerConfig) -> Vec<String> {
    let spec: serde_json::Value = config
        .oci_specification
        .as_ref()
        .map(|spec| serde_json::from_str(&spec.to_text()).unwrap())
        .unwrap_or_default();
    let args = spec["process"]["args"].as_array().cloned().unwrap_or_default();
    args.iter().filter_map(|word| word.as_str().map(str::to_owned)).collect()
}

/// The fake, shared: processes hold it to tell of their end.
#[derive(Clone, Default)]
pub struct Service {
    pub fake: Arc<Fake>,
    inits: Arc<Mutex<HashMap<String, Init>>>,
}

struct Init {
    pid: u32,
    end: watch::Receiver<Option<u32>>,
    words: Vec<String>,
}

#[async_trait]
impl GuestService for Service {
    async fn create_container(
        &self,
        id: &str,
        config: ContainerConfig,
    ) -> Result<Created, ServiceError> {
        self.fake.note(Seen::Create(id.to_owned()));
        match id {
            "bad" => return Err(ServiceError::failed("the image is broken")),
            "slow" => self.fake.go.notified().await,
            _ => {}
        }
        let (pid, end) = self.fake.new_process();
        self.fake.state.lock().unwrap().containers.insert(id.to_owned(), pid);
        let words = words_of(&config);
        self.inits.lock().unwrap().insert(id.to_owned(), Init { pid, end: end.clone(), words });
        Ok(Created { pid, exit: exit_future(end) })
    }

    async fn start_init(
        &self,
        id: &str,
        parameters: ProcessParameters,
    ) -> Result<Started, ServiceError> {
        let init = self.inits.lock().unwrap().remove(id);
        let init = init.ok_or_else(|| ServiceError::failed("started already"))?;
        self.fake.run(init.pid, init.end, &init.words, &parameters)
    }

    async fn exec(
        &self,
        _id: &str,
        parameters: ProcessParameters,
    ) -> Result<Started, ServiceError> {
        let (pid, end) = self.fake.new_process();
        self.fake.run(pid, end, &parameters.command_args, &parameters)
    }

    async fn exec_in_vm(&self, parameters: ProcessParameters) -> Result<Started, ServiceError> {
        let (pid, end) = self.fake.new_process();
        self.fake.run(pid, end, &parameters.command_args, &parameters)
    }

    async fn signal(&self, target: &Target, signal: i32) -> Result<(), ServiceError> {
        self.fake.note(Seen::Signal(target.clone(), signal));
        match self.fake.end(target.pid, 128 + u32::try_from(signal).unwrap()) {
            true => Ok(()),
            false => Err(Hresult::NOT_FOUND.into()),
        }
    }

    async fn resize(&self, target: &Target, width: u16, height: u16) -> Result<(), ServiceError> {
        self.fake.note(Seen::Resize(target.clone(), width, height));
        Ok(())
    }

    async fn shutdown_container(&self, id: &str, stop: Stop) -> Result<(), ServiceError> {
        let pid = self.fake.state.lock().unwrap().containers[id];
        self.fake.end(pid, if stop == Stop::Graceful { 143 } else { 137 });
        Ok(())
    }

    async fn delete_container(&self, id: &str) -> Result<(), ServiceError> {
        self.fake.note(Seen::Delete(id.to_owned()));
        let pid = self.fake.state.lock().unwrap().containers.remove(id);
        if let Some(pid) = pid {
            self.fake.end(pid, 137);
        }
        Ok(())
    }

    async fn properties(
        &self,
        id: &str,
        _query: PropertiesQuery,
    ) -> Result<Properties, ServiceError> {
        if id == "mute" {
            return std::future::pending().await;
        }
        let process_id = self.fake.state.lock().unwrap().containers[id];
        Ok(Properties { process_list: vec![ProcessEntry { process_id }], metrics: None })
    }

    async fn modify(&self, change: Change) -> Result<(), ServiceError> {
        self.fake.note(Seen::Modify(format!(
            "{:?} {}",
            change.verb,
            change.resource.resource_type()
        )));
        Ok(())
    }

    async fn modify_container(&self, id: &str, change: Change) -> Result<(), ServiceError> {
        let what = format!("{id}: {:?} {}", change.verb, change.resource.resource_type());
        self.fake.note(Seen::Modify(what));
        Ok(())
    }

    async fn dump_stacks(&self) -> Result<String, ServiceError> {
        Ok(self.fake.state.lock().unwrap().stacks.clone())
    }

    async fn power_off(&self, stop: Stop) {
        self.fake.note(Seen::PowerOff(stop));
    }
}
