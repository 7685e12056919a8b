//! Network namespaces of a test's own: one where its commands run, and one that stands for the rest of
//! the world, joined by a wire.

use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use coracle_net::namespace::Namespace;

/// How long a server may take until it answers.
const SERVER: Duration = Duration::from_secs(20);

/// Where the commands of a test run, and the world beyond.
///
/// ```text
///   host: wire 192.0.2.1/24, fd02::1/64 ──── world: wire 192.0.2.2/24, fd02::2/64
/// ```
#[derive(Debug)]
pub struct Ground {
    folder: PathBuf,
}

impl Ground {
    /// Makes both below `folder`.
    ///
    /// # Panics
    /// Not root, or the host has no iproute2.
    pub fn new(folder: &Path) -> Self {
        let ground = Self { folder: folder.to_owned() };
        for name in ["host", "world"] {
            let path = ground.path(name);
            std::fs::write(&path, "").unwrap();
            let at = format!("--net={}", path.display());
            let made = Command::new("unshare").args([at.as_str(), "true"]).output().unwrap();
            assert!(made.status.success(), "network tests need root: {made:?}");
            ground.run(name, "ip link set lo up");
        }
        ground.run(
            "host",
            &format!(
                "ip link add wire type veth peer name away && \
                 ip link set away netns {} && \
                 ip addr add 192.0.2.1/24 dev wire && ip addr add fd02::1/64 dev wire nodad && \
                 ip link set wire up",
                ground.path("world").display(),
            ),
        );
        ground.run(
            "world",
            "ip link set away name wire && ip addr add 192.0.2.2/24 dev wire && \
             ip addr add 192.0.2.3/24 dev wire && ip addr add fd02::2/64 dev wire nodad && \
             ip link set wire up",
        );
        ground
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(format!("net-{name}"))
    }

    /// A command that runs on the host's side.
    pub fn command(&self, program: &Path) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path("host").display())).arg(program);
        command
    }

    /// Runs a shell command in `host` or `world`.
    ///
    /// # Panics
    /// It cannot be started.
    pub fn output(&self, name: &str, command: &str) -> Output {
        Command::new("nsenter")
            .arg(format!("--net={}", self.path(name).display()))
            .args(["sh", "-c", command])
            .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
            .output()
            .unwrap()
    }

    /// Runs one that must succeed, and gives what it printed.
    ///
    /// # Panics
    /// When it fails.
    pub fn run(&self, name: &str, command: &str) -> String {
        let output = self.output(name, command);
        assert!(output.status.success(), "{command}: {}", crate::place::text(&output.stderr));
        crate::place::text(&output.stdout)
    }

    /// A server of busybox's on the host's side, which may not be ready yet.
    ///
    /// # Panics
    /// It cannot be started.
    pub fn serve<'a>(&self, words: impl IntoIterator<Item = &'a str>) -> Server {
        let mut command = self.command(Path::new("/bin/busybox"));
        let child = command.args(words).stderr(Stdio::null()).spawn();
        Server(child.expect("busybox is installed: run `make setup`"))
    }

    /// Serves the files of a folder by HTTP on the host's side, and waits until it does.
    ///
    /// # Panics
    /// It does not.
    pub fn serve_files(&self, at: SocketAddr, folder: &Path) -> Server {
        let server =
            self.serve(["httpd", "-f", "-p", &at.to_string(), "-h", folder.to_str().unwrap()]);
        let host = Namespace::open(&self.path("host")).unwrap();
        let late = Instant::now() + SERVER;
        while let Err(error) = host.run(|| Ok(TcpStream::connect(at))).unwrap() {
            assert!(Instant::now() < late, "nobody serves {at}: {error}");
            std::thread::sleep(Duration::from_millis(10));
        }
        server
    }

    /// What of the host's network could be left behind, a line each.
    pub fn seen(&self) -> Vec<String> {
        let all = "ip -o link | sed 's/^[0-9]*: //; s/state [A-Z]*//'; ip -o addr | \
            sed 's/^[0-9]*: //; s/ tentative//'; ip route; ip rule; tc qdisc; nft list ruleset; \
            cat /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv6/conf/all/forwarding";
        self.run("host", all).lines().map(|line| format!("network: {line}")).collect()
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        for name in ["host", "world"] {
            let path = self.path(name);
            // Neither may be there if making them failed.
            let _ = Command::new("umount").arg("--lazy").arg(&path).output();
            let _ = std::fs::remove_file(path);
        }
    }
}

/// A server of a test's own; it ends with this.
#[derive(Debug)]
pub struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        // Gone already is what was wanted.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
