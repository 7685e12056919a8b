//! A container in the guest, as the host holds it.

use std::sync::atomic::Ordering;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::connection::{GuestConnection, SHUTDOWN_TIMEOUT};
use super::error::BridgeError;
use super::process::{self, Process};
use super::registry::Phase;
use crate::hresult::Hresult;
use crate::message::incoming::Dialect;
use crate::message::{
    ContainerId, NotificationType, ProcessParameters, Properties, PropertiesQuery, Resource, Rpc,
    ShutdownForced, ShutdownGraceful, Start, Verb,
};

/// A container. Dropping it leaves the container alone.
#[derive(Debug)]
pub struct Container {
    connection: GuestConnection,
    id: ContainerId,
    phase: watch::Receiver<Phase>,
    closed: CancellationToken,
}

impl Container {
    pub(super) fn new(
        connection: GuestConnection,
        id: ContainerId,
        phase: watch::Receiver<Phase>,
    ) -> Self {
        Self { connection, id, phase, closed: CancellationToken::new() }
    }

    /// Its id.
    pub fn id(&self) -> &ContainerId {
        &self.id
    }

    /// The guest's operating system, `linux` or `windows`.
    pub fn os(&self) -> String {
        self.connection.os()
    }

    /// Whether it is described by an OCI specification: on every guest but Windows.
    pub fn is_oci(&self) -> bool {
        self.os() != "windows"
    }

    /// Starts the container; on Linux its first process does that.
    ///
    /// # Errors
    /// Those of any call.
    pub async fn start(&self) -> Result<(), BridgeError> {
        self.connection.inner.steady(&self.id, Start {}).await?;
        Ok(())
    }

    /// Asks the container to stop; a container that is gone has stopped. May be
    /// given up, and is after 30 s.
    ///
    /// # Errors
    /// [`BridgeError::DeadlineExceeded`], and those of any call.
    pub async fn shutdown(&self) -> Result<(), BridgeError> {
        self.stop("shutdown", ShutdownGraceful {}).await
    }

    /// Makes the container stop; otherwise as [`shutdown`](Self::shutdown).
    ///
    /// # Errors
    /// As [`shutdown`](Self::shutdown).
    pub async fn terminate(&self) -> Result<(), BridgeError> {
        self.stop("terminate", ShutdownForced {}).await
    }

    async fn stop<R: Rpc>(&self, operation: &'static str, request: R) -> Result<(), BridgeError>
    where
        R::Answer: Send + 'static,
    {
        let inner = &self.connection.inner;
        match inner.within(SHUTDOWN_TIMEOUT, operation, &self.id, request).await {
            Err(BridgeError::Rpc { hresult, .. })
                if hresult == Hresult::NO_SUCH_SYSTEM || hresult == Hresult::ALREADY_STOPPED =>
            {
                Ok(())
            }
            other => other.map(|_| ()),
        }
    }

    /// Waits until the container has exited, or until it or the bridge is closed by
    /// this host; for any number of callers, at any time.
    ///
    /// # Errors
    /// When the bridge to a guest that keeps sessions is lost: the container goes
    /// on and can be resumed. A plain guest's containers count as ended then.
    pub async fn wait(&self) -> Result<(), BridgeError> {
        let mut phase = self.phase.clone();
        let ended = async {
            // The sender goes away only after it has told of the end.
            match phase.wait_for(|phase| *phase != Phase::Running).await {
                Ok(phase) => phase.clone(),
                Err(_) => Phase::Lost,
            }
        };
        let ended = tokio::select! {
            ended = ended => ended,
            () = self.closed.cancelled() => return Ok(()),
        };
        let inner = &self.connection.inner;
        let goes_on =
            inner.dialect() == Dialect::Coracle && !inner.registry.done.load(Ordering::Relaxed);
        if ended == Phase::Lost && goes_on {
            return Err(self.connection.closed().await);
        }
        Ok(())
    }

    /// How the container exited; `None` while it runs, and when it is not known.
    pub fn exit_type(&self) -> Option<NotificationType> {
        match &*self.phase.borrow() {
            Phase::Exited(kind) => Some(kind.clone()),
            Phase::Running | Phase::Lost => None,
        }
    }

    /// Changes a resource of this container.
    ///
    /// # Errors
    /// Those of any call.
    pub async fn modify(&self, verb: Verb, resource: &Resource) -> Result<(), BridgeError> {
        self.connection.modify(&self.id, verb, resource).await
    }

    /// What is asked about this container. May be given up.
    ///
    /// # Errors
    /// Those of any call.
    pub async fn properties(&self, query: &PropertiesQuery) -> Result<Properties, BridgeError> {
        self.connection.properties(&self.id, query).await
    }

    /// Starts a process: the container's init when `parameters` has no
    /// `oci_process`, one more beside it when it has.
    ///
    /// # Errors
    /// The guest's, those of any call, and [`BridgeError::Listen`]. No port and no
    /// task stays behind.
    pub async fn create_process(
        &self,
        parameters: &ProcessParameters,
    ) -> Result<Process, BridgeError> {
        process::start(&self.connection, self.id.clone(), parameters.clone()).await
    }

    /// Tells the guest that the container's exit is recorded, so that no later
    /// session hears of it.
    ///
    /// # Errors
    /// Those of any call. A plain guest is not asked.
    pub async fn acknowledge_exit(&self) -> Result<(), BridgeError> {
        self.connection.inner.acknowledge(&self.id, None, false).await
    }

    /// Is done with the container: ends every [`wait`](Self::wait), and acknowledges
    /// the exit when there was one. The container itself is left alone.
    ///
    /// # Errors
    /// Those of [`acknowledge_exit`](Self::acknowledge_exit), but for a bridge that
    /// is closed.
    pub async fn close(&self) -> Result<(), BridgeError> {
        self.closed.cancel();
        if self.exit_type().is_none() {
            return Ok(());
        }
        match self.acknowledge_exit().await {
            Err(error) if error.is_closed() => Ok(()),
            other => other,
        }
    }
}
