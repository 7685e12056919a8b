//! A host and a guest on one bench, and a scripted peer for either.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use coracle_bridge::channel::ChannelDir;
use coracle_bridge::client::{BridgeError, ConnectOptions, GuestConnection, Session};
use coracle_bridge::frame::{Frame, FrameReader, HOST_TO_GUEST, MessageType, write_frame};
use coracle_bridge::hresult::Hresult;
use coracle_bridge::message::{
    ActivityId, Capabilities, ContainerConfig, ContainerId, CoracleGuest, Done, Negotiated,
    ProcessParameters, Request, Response, Rpc,
};
use coracle_bridge::server::{Connection, Dial, Guest, GuestOptions, ServeError, Served};
use coracle_bridge::stdio::WhenFull;
use coracle_bridge::wire::{Body, Side};
use tokio::io::BufReader;
use tokio::io::{DuplexStream, ReadHalf, WriteHalf};
use tokio::net::UnixStream;
use tokio::task::JoinHandle;

use crate::fake::{Fake, Service};

/// Longest any test waits for something that must come.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Waits for what must come.
pub async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, what).await.expect("did not come in time")
}

/// Dials the host's listeners in a channel's folder.
pub struct DirDial(pub PathBuf);

#[async_trait]
impl Dial for DirDial {
    async fn dial(&self, port: u32) -> std::io::Result<Box<dyn Connection>> {
        let stream = UnixStream::connect(self.0.join(format!("vsock_{port}"))).await?;
        Ok(Box::new(BufReader::new(stream)))
    }
}

/// A guest with a channel's folder.
pub struct Bed {
    pub dir: tempfile::TempDir,
    pub guest: Guest,
    pub fake: Arc<Fake>,
}

impl Bed {
    pub fn new() -> Self {
        Self::with(|options| options)
    }

    pub fn with(change: impl FnOnce(GuestOptions) -> GuestOptions) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let dial = DirDial(dir.path().to_owned());
        Self::dialling(dir, Arc::new(dial), change)
    }

    pub fn dialling(
        dir: tempfile::TempDir,
        dial: Arc<dyn Dial>,
        change: impl FnOnce(GuestOptions) -> GuestOptions,
    ) -> Self {
        let service = Service::default();
        let fake = Arc::clone(&service.fake);
        let options = change(GuestOptions::new("boot-1"));
        let guest = Guest::new(Arc::new(service), dial, options);
        Self { dir, guest, fake }
    }

    /// With rings of this size.
    pub fn ringed(ring: usize, when_full: WhenFull) -> Self {
        Self::with(|options| GuestOptions { ring, when_full, ..options })
    }

    pub fn options(&self, session: Session) -> ConnectOptions {
        let options = ConnectOptions::new(ChannelDir::new(self.dir.path()));
        ConnectOptions { session, ..options }
    }

    /// A bridge connection that the guest serves; the guest's end of it.
    pub fn dial(&self) -> (UnixStream, JoinHandle<Result<Served, ServeError>>) {
        let (host, guest_end) = UnixStream::pair().unwrap();
        let guest = self.guest.clone();
        (host, tokio::spawn(async move { guest.serve(guest_end).await }))
    }

    pub async fn try_connect(&self, session: Session) -> Result<GuestConnection, BridgeError> {
        soon(GuestConnection::connect(self.dial().0, self.options(session))).await
    }

    pub async fn connect(&self, session: Session) -> GuestConnection {
        self.try_connect(session).await.unwrap()
    }

    /// The host's ports that are bound now.
    pub fn bound_ports(&self) -> usize {
        std::fs::read_dir(self.dir.path()).unwrap().count()
    }
}

/// A container that runs this command as its init.
pub fn config(command: &str) -> ContainerConfig {
    let args: Vec<&str> = command.split(' ').collect();
    let spec = serde_json::json!({ "process": { "args": args } });
    ContainerConfig::new("/run/gcs/c/x", &spec).unwrap()
}

/// A process that runs this command, with the streams named by letters of `ioe`.
pub fn command(command: &str, streams: &str) -> ProcessParameters {
    ProcessParameters {
        command_args: command.split(' ').map(str::to_owned).collect(),
        create_std_in_pipe: streams.contains('i'),
        create_std_out_pipe: streams.contains('o'),
        create_std_err_pipe: streams.contains('e'),
        ..ProcessParameters::default()
    }
}

/// One more process in a container, rather than its init.
pub fn beside(words: &str, streams: &str) -> ProcessParameters {
    let process = coracle_bridge::wire::Json::of(&serde_json::json!({ "cwd": "/" })).unwrap();
    ProcessParameters { oci_process: Some(process), ..command(words, streams) }
}

/// A guest that says what the test tells it to.
pub struct ScriptedGuest {
    pub reader: FrameReader<ReadHalf<DuplexStream>>,
    pub writer: WriteHalf<DuplexStream>,
}

impl ScriptedGuest {
    pub fn new(stream: DuplexStream) -> Self {
        let (read, writer) = tokio::io::split(stream);
        Self { reader: FrameReader::new(read, HOST_TO_GUEST), writer }
    }

    /// The next frame of the host; `None` when it closed.
    pub async fn next(&mut self) -> Option<Frame> {
        self.reader.next().await.unwrap()
    }

    /// The next frame, which must be this request.
    pub async fn expect<R: Rpc>(&mut self) -> (Frame, Request<R>) {
        let frame = self.next().await.expect("the host closed");
        assert_eq!(frame.message_type, R::REQUEST);
        let request = Request::decode(&frame.body).unwrap();
        (frame, request)
    }

    pub async fn answer<A: Body>(&mut self, to: &Frame, response: &Response<A>) {
        let frame = response.to_frame(to.message_type, to.id).unwrap();
        self.send(&frame).await;
    }

    /// Answers that it could not be done.
    pub async fn refuse(&mut self, to: &Frame, hresult: Hresult, text: &str) {
        let failed: Response<Done> = Response::failed(&ActivityId::default(), hresult, text);
        self.answer(to, &failed).await;
    }

    pub async fn send(&mut self, frame: &Frame) {
        write_frame(&mut self.writer, frame, u32::MAX).await.unwrap();
    }

    /// Answers a negotiation, as a guest with or without our extension.
    pub async fn negotiate(&mut self, extended: bool) {
        let (frame, request) = self.expect::<coracle_bridge::message::Negotiate>().await;
        let coracle = request.body.coracle.filter(|_| extended).map(|offer| CoracleGuest {
            version: 1,
            session: offer.session,
            boot_id: "scripted".to_owned(),
            max_frame: offer.max_frame,
        });
        let body = Negotiated { version: 4, capabilities: Capabilities::linux(), coracle };
        self.answer(&frame, &ok(&request, body)).await;
    }

    /// Expects a request and answers it well.
    pub async fn serve<R: Rpc>(&mut self, body: R::Answer) -> Request<R> {
        let (frame, request) = self.expect::<R>().await;
        self.answer(&frame, &ok(&request, body)).await;
        request
    }
}

/// A good answer to a request.
pub fn ok<R, A: Default>(request: &Request<R>, body: A) -> Response<A> {
    let _ = request;
    Response { body, ..Response::default() }
}

/// A connection to a scripted guest, negotiated; with the folder of its ports.
pub async fn scripted(
    session: Session,
    rpc_timeout: Duration,
) -> (GuestConnection, ScriptedGuest, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let (host, guest) = tokio::io::duplex(1 << 20);
    let mut guest = ScriptedGuest::new(guest);
    let options =
        ConnectOptions { session, rpc_timeout, ..ConnectOptions::new(ChannelDir::new(dir.path())) };
    let extended = session != Session::Plain;
    let (connection, ()) =
        tokio::join!(GuestConnection::connect(host, options), guest.negotiate(extended));
    (connection.unwrap(), guest, dir)
}

/// A host that says what the test tells it to.
pub struct ScriptedHost {
    pub reader: FrameReader<tokio::net::unix::OwnedReadHalf>,
    pub writer: tokio::net::unix::OwnedWriteHalf,
    next: u64,
}

impl ScriptedHost {
    pub fn new(stream: UnixStream) -> Self {
        let (read, writer) = stream.into_split();
        Self { reader: FrameReader::new(read, u32::MAX), writer, next: 0 }
    }

    /// Sends a request and gives its id.
    pub async fn ask<R: Rpc>(&mut self, id: &str, body: R) -> u64 {
        let request = Request::new(ContainerId::from(id), body);
        self.ask_raw(R::REQUEST, &request.encode(Side::Host).unwrap()).await
    }

    pub async fn ask_raw(&mut self, message_type: MessageType, body: &[u8]) -> u64 {
        let id = self.next;
        self.next += 1;
        let frame = Frame { message_type, id, body: body.to_vec() };
        write_frame(&mut self.writer, &frame, u32::MAX).await.unwrap();
        id
    }

    /// The next frame of the guest; `None` when it closed.
    pub async fn next(&mut self) -> Option<Frame> {
        soon(self.reader.next()).await.unwrap()
    }

    /// The next frame, which must answer this id.
    pub async fn answer<A: Body>(&mut self, id: u64) -> Response<A> {
        let frame = self.next().await.expect("the guest closed");
        assert_eq!(frame.id, id);
        Response::decode(&frame.body).unwrap()
    }

    /// Asks and waits for the answer.
    pub async fn call<R: Rpc>(&mut self, id: &str, body: R) -> Response<R::Answer> {
        let id = self.ask(id, body).await;
        self.answer(id).await
    }
}
