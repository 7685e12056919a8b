//! One container of a sandbox as everybody but its monitor sees it: the sandbox's own, or a further
//! one, written `SANDBOX/CONTAINER`.

use std::path::PathBuf;

use hyper::Method;
use tokio::io::{DuplexStream, duplex};

use super::exec::RemoteExec;
use super::input::{self, Source};
use super::{Client, ClientError};
use crate::further::FurtherRecord;
use crate::monitor::api::{
    Command, ContainerOrder, ContainerStage, ContainerView, Exit, SignalRequest, SizeRequest,
    Started, StartedContainer,
};
use crate::root::Root;

/// A pipe between the caller and a task, in bytes.
const PIPE: usize = 64 << 10;

/// A container of a sandbox.
#[derive(Debug, Clone)]
pub struct RemoteContainer {
    client: Client,
    /// None: the sandbox's own.
    name: Option<String>,
}

impl RemoteContainer {
    /// Finds a container by `SANDBOX` or `SANDBOX/CONTAINER`, each a name or a beginning of one that is
    /// nobody else's.
    ///
    /// # Errors
    /// As [`Client::find`]; [`ClientError::UnknownContainer`], [`ClientError::AmbiguousContainer`].
    pub fn find(root: &Root, address: &str) -> Result<Self, ClientError> {
        let Some((sandbox, name)) = address.split_once('/') else {
            return Ok(Self { client: Client::find(root, address)?, name: None });
        };
        let client = Client::find(root, sandbox)?;
        let record = client.record()?;
        let known: Vec<String> = record.containers.into_keys().collect();
        let mut fitting: Vec<String> =
            known.iter().filter(|known| known.starts_with(name)).cloned().collect();
        if known.iter().any(|known| known == name) {
            fitting = vec![name.to_owned()];
        }
        match fitting.as_slice() {
            [one] if !name.is_empty() => Ok(Self { client, name: Some(one.clone()) }),
            [_, _, ..] if !name.is_empty() => Err(ClientError::AmbiguousContainer {
                sandbox: client.name().to_owned(),
                name: name.to_owned(),
                candidates: fitting,
            }),
            _ => Err(ClientError::UnknownContainer {
                sandbox: client.name().to_owned(),
                name: name.to_owned(),
            }),
        }
    }

    /// The sandbox it is in.
    pub fn sandbox(&self) -> &Client {
        &self.client
    }

    /// Its own name, if it is a further container.
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// How it is written.
    pub fn address(&self) -> String {
        match &self.name {
            None => self.client.name().to_owned(),
            Some(name) => format!("{}/{name}", self.client.name()),
        }
    }

    /// Where what its command has written is.
    pub fn logs(&self) -> PathBuf {
        match &self.name {
            None => self.client.logs(),
            Some(name) => self.client.root.container_logs(self.client.name(), name),
        }
    }

    /// Whether its command has a terminal.
    ///
    /// # Errors
    /// What is written down of it cannot be read.
    pub fn has_terminal(&self) -> Result<bool, ClientError> {
        let record = self.client.record()?;
        let there = match &self.name {
            None => record.container,
            Some(name) => record.containers.get(name).and_then(|it| it.there.clone()),
        };
        Ok(there.is_some_and(|there| there.terminal))
    }

    /// Whether its command has ended, by what is written down.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn is_over(&self) -> Result<bool, ClientError> {
        let record = match self.client.record() {
            Ok(record) => record,
            Err(ClientError::Unknown { .. }) => return Ok(true),
            Err(error) => return Err(error),
        };
        let is_up = record.stage.is_up();
        Ok(match &self.name {
            None => !is_up,
            Some(name) => match record.containers.get(name).map(FurtherRecord::stage) {
                Some(ContainerStage::Creating | ContainerStage::Running) => !is_up,
                Some(ContainerStage::Exited) | None => true,
            },
        })
    }

    /// Waits for its command's end, whoever looks after it meanwhile.
    ///
    /// # Errors
    /// The monitor cannot be asked; it is removed before it is known how its command ended.
    pub async fn wait(&self) -> Result<u32, ClientError> {
        let Some(name) = &self.name else { return self.client.wait().await };
        match self.client.get::<Exit>(&self.path("/exit")).await {
            Err(ClientError::NotRunning { .. }) => {
                let record = self.client.record()?;
                let code = record.containers.get(name).and_then(|it| it.exit_code);
                code.ok_or_else(|| self.client.cannot_talk("nobody knows how its command ended"))
            }
            other => other.map(|exit| exit.exit_code),
        }
    }

    /// Sends its command a signal.
    ///
    /// # Errors
    /// It has ended; the monitor cannot be asked.
    pub async fn signal(&self, signal: i32) -> Result<(), ClientError> {
        self.client.post(&self.path("/signal"), &SignalRequest { signal }).await
    }

    /// Sets its terminal's size.
    ///
    /// # Errors
    /// It has no terminal, or has ended; the monitor cannot be asked.
    pub async fn resize(&self, width: u16, height: u16) -> Result<(), ClientError> {
        self.client.post(&self.path("/size"), &SizeRequest { width, height }).await
    }

    /// Starts another command in it.
    ///
    /// # Errors
    /// It cannot be started; the monitor cannot be asked.
    pub async fn exec(&self, command: &Command) -> Result<RemoteExec, ClientError> {
        let started: Started = self.client.post(&self.path("/execs"), command).await?;
        Ok(RemoteExec::new(self.client.clone(), started))
    }

    /// Connects with the input of its command, if that has a log. Shutting it down is the input's end;
    /// if this process goes away without, the input stays open for the next. The second is how the
    /// connection came to its end.
    pub fn input(&self) -> (DuplexStream, tokio::task::JoinHandle<Result<(), ClientError>>) {
        let (ours, theirs) = duplex(PIPE);
        let name = self.name.clone().unwrap_or_else(|| self.client.name().to_owned());
        let client = self.client.clone();
        let carrying =
            tokio::spawn(async move { input::carry(&client, &Source::Attached(name), ours).await });
        (theirs, carrying)
    }

    /// What there is to say about it; only of a further container.
    ///
    /// # Errors
    /// It is gone.
    pub fn show(&self) -> Result<ContainerView, ClientError> {
        let record = self.client.record()?;
        let found = self.name.as_ref().and_then(|name| record.containers.get(name));
        found.map(FurtherRecord::view).ok_or_else(|| ClientError::UnknownContainer {
            sandbox: self.client.name().to_owned(),
            name: self.name.clone().unwrap_or_default(),
        })
    }

    /// Asks its command to end, and ends it by force after so many seconds.
    ///
    /// # Errors
    /// The monitor cannot be asked.
    pub async fn stop(&self, timeout: u64) -> Result<u32, ClientError> {
        const TERM: i32 = 15;
        const KILL: i32 = 9;
        if self.name.is_none() {
            return self.client.stop(timeout).await;
        }
        for signal in [TERM, KILL] {
            match self.signal(signal).await {
                // It has ended by itself.
                Err(error) if error.code() == "E-CONTAINER-EXITED" => {}
                other => other?,
            }
            let limit = std::time::Duration::from_secs(timeout);
            if signal == KILL {
                break;
            }
            if let Ok(ended) = tokio::time::timeout(limit, self.wait()).await {
                return ended;
            }
        }
        self.wait().await
    }

    /// Ends it at once and removes all of it; with its sandbox, if it is that one's own.
    ///
    /// # Errors
    /// The monitor cannot be asked; the guest does not let go of it.
    pub async fn remove(&self) -> Result<(), ClientError> {
        if self.name.is_none() {
            return self.client.remove().await;
        }
        match self.client.ask::<(), ()>(Method::DELETE, &self.path(""), None).await {
            // Asked twice, because the monitor died over it.
            Err(error) if error.code() == "E-CONTAINER-UNKNOWN" => Ok(()),
            other => other,
        }
    }

    fn path(&self, what: &str) -> String {
        match &self.name {
            None => format!("/v1{what}"),
            Some(name) => format!("/v1/containers/{name}{what}"),
        }
    }
}

impl Client {
    /// Starts a further container in it; the second opens its streams, if it is not detached.
    ///
    /// # Errors
    /// It cannot be started; the monitor cannot be asked.
    pub async fn start_container(
        &self,
        order: &ContainerOrder,
    ) -> Result<(RemoteContainer, Option<RemoteExec>), ClientError> {
        let nonce = Some(uuid::Uuid::new_v4().simple().to_string());
        let order = ContainerOrder { nonce: nonce.clone(), ..order.clone() };
        let started: StartedContainer = match self.post("/v1/containers", &order).await {
            // The monitor died over it. It may run all the same: then it is ours.
            Err(lost @ ClientError::Talk { .. }) => {
                let path = format!("/v1/containers/{}/started", order.name);
                let found = self.get::<StartedContainer>(&path).await;
                found.ok().filter(|found| found.nonce == nonce).ok_or(lost)?
            }
            other => other?,
        };
        let container =
            RemoteContainer { client: self.clone(), name: Some(started.container.name) };
        let exec = started.exec.map(|started| RemoteExec::new(self.clone(), started));
        Ok((container, exec))
    }
}
