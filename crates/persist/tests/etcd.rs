//! The etcd driver on a real server.
#![cfg(feature = "etcd")]
#![allow(clippy::unwrap_used)]

mod support;

use coracle_persist::driver::{
    By, Choice, DriverError, EtcdDriver, EtcdPlace, PersistDriver, Registry,
};
use coracle_persist::lock::{Ask, LockError};
use coracle_persist::root::Root;
use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, OnceLock, Weak};
use std::time::{Duration, Instant};
use support::place::Reaped;
use support::states::whole;
use tempfile::TempDir;

const SOON: Duration = Duration::from_secs(10);

/// A server of the tests' own, on loopback; it ends with the last test that uses it.
struct Server {
    _process: Reaped,
    _data: TempDir,
    address: String,
}

impl Server {
    fn shared() -> Arc<Self> {
        static RUNNING: OnceLock<Mutex<Weak<Server>>> = OnceLock::new();
        let mut running = RUNNING.get_or_init(Mutex::default).lock().unwrap();
        if let Some(server) = running.upgrade() {
            return server;
        }
        let server = Arc::new(Self::start());
        *running = Arc::downgrade(&server);
        server
    }

    fn start() -> Self {
        let data = tempfile::tempdir().unwrap();
        let port = || TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let (client, peer) = (port(), port());
        let address = format!("http://127.0.0.1:{client}");
        let peer = format!("http://127.0.0.1:{peer}");
        let program = std::env::var_os("CORACLE_ETCD").unwrap_or_else(|| "etcd".into());
        let mut command = Command::new(&program);
        command
            .arg("--data-dir")
            .arg(data.path())
            .args(["--listen-client-urls", &address, "--advertise-client-urls", &address])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("default={peer}"), "--log-level", "error"])
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let process = command.spawn().unwrap_or_else(|error| {
            panic!("cannot start {}, which `make setup` fetches: {error}", program.display())
        });
        let server = Self { _process: Reaped(process), _data: data, address };
        let until = Instant::now() + Duration::from_secs(30);
        while let Err(error) = EtcdDriver::connect(server.place("probe")) {
            assert!(Instant::now() < until, "the server never answered: {error:?}");
            std::thread::sleep(Duration::from_millis(50));
        }
        server
    }

    fn place(&self, prefix: &str) -> EtcdPlace {
        EtcdPlace {
            endpoints: vec![self.address.clone()],
            prefix: prefix.to_owned(),
            lease: Duration::from_secs(60),
            timeout: SOON,
            root: Root::at("/nonexistent"),
        }
    }
}

/// A server, and keys that no other test has.
struct Place {
    server: Arc<Server>,
    prefix: String,
}

impl Place {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let prefix = format!("/coracle/{}", NEXT.fetch_add(1, Ordering::Relaxed));
        Self { server: Server::shared(), prefix }
    }

    fn etcd(&self, lease: Duration) -> EtcdDriver {
        let place = EtcdPlace { lease, ..self.server.place(&self.prefix) };
        EtcdDriver::connect(place).unwrap()
    }

    fn driver(&self) -> Box<dyn PersistDriver> {
        Box::new(self.etcd(Duration::from_secs(60)))
    }
}

fn anew() -> By<'static> {
    By::Asking(Ask::exclusive(SOON).or_create())
}

crate::conformance!(Place::new());

#[test]
fn the_server_is_chosen_by_name() {
    let place = Place::new();
    let choice = Choice { etcd: Some(place.server.place(&place.prefix)), ..Choice::kata() };
    assert_eq!(Registry::new(choice).driver_by_name("etcd").unwrap().name(), "etcd");
    assert!(Registry::new(Choice::kata()).driver_by_name("etcd").is_err());
}

#[test]
fn a_server_that_is_not_there_is_named_in_the_error() {
    let place = EtcdPlace {
        endpoints: vec!["http://127.0.0.1:1".to_owned()],
        prefix: "/coracle".to_owned(),
        lease: SOON,
        timeout: Duration::from_secs(1),
        root: Root::at("/nonexistent"),
    };
    let error = EtcdDriver::connect(place).unwrap_err();
    assert_eq!(error.to_string(), "the server http://127.0.0.1:1 did not answer at all");
}

#[test]
fn the_lock_of_a_holder_that_died_is_free_when_its_lease_has_run_out() {
    let place = Place::new();
    let mut dying = place.etcd(Duration::from_secs(1));
    let state = whole("s1", 1, 0, 1);
    dying.to_disk(anew(), &state.sandbox, &state.containers).unwrap();
    let lock = dying.lock("s1", Ask::exclusive(SOON)).unwrap();
    let began = Instant::now();
    let mut other = place.driver();
    let busy = other.lock("s1", Ask::exclusive(Duration::from_millis(100)));
    assert!(matches!(busy, Err(DriverError::Lock(LockError::Busy { .. }))), "{busy:?}");
    // Nobody prolongs it, as if its process were gone.
    drop(other.lock("s1", Ask::exclusive(Duration::from_secs(30))).unwrap());
    assert!(began.elapsed() > Duration::from_millis(900), "{:?}", began.elapsed());
    // And if it comes to itself after all, it saves nothing.
    let late = dying.to_disk(By::Lock(&lock), &state.sandbox, &support::states::none());
    assert!(matches!(late, Err(DriverError::Lock(LockError::Gone(_)))), "{late:?}");
    assert_eq!(other.from_disk("s1").unwrap().whole, state);
}

#[test]
fn a_hundred_containers_are_one_transaction() {
    let place = Place::new();
    let mut driver = place.driver();
    let state = whole("s1", 100, 40, 1);
    driver.to_disk(anew(), &state.sandbox, &state.containers).unwrap();
    assert_eq!(place.driver().from_disk("s1").unwrap().whole, state);
    // More than the server takes at once: refused, and what was there stays.
    let more = whole("s1", 300, 40, 2);
    let refused = driver.to_disk(anew(), &more.sandbox, &more.containers).unwrap_err();
    let DriverError::Server { source, .. } = &refused else { panic!("{refused}") };
    assert!(source.to_string().contains("too many operations"), "{source}");
    assert!(refused.help().is_some_and(|help| help.contains("--max-txn-ops")));
    assert_eq!(place.driver().from_disk("s1").unwrap().whole, state);
}
