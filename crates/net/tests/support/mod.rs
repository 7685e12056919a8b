//! A network namespace of a test's own, and what is in it.
#![allow(dead_code, reason = "each test file needs a part of it")]

use std::path::PathBuf;
use std::process::Command;

use coracle_net::Result;
use coracle_net::namespace::{self, Namespace};

/// A namespace, deleted at the end; nothing that is done in it reaches the host.
pub struct World {
    dir: tempfile::TempDir,
    namespace: Namespace,
}

impl World {
    /// A new one with nothing but `lo`.
    ///
    /// # Panics
    /// Not root.
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let namespace = Namespace::create(&dir.path().join("net"))
            .expect("tests of networks need root: they make network namespaces");
        Self { dir, namespace }
    }

    /// A path of the test's own.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Runs work in it.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        self.namespace.run(work)
    }

    /// Runs a program in it, which must succeed, and returns what it prints.
    pub fn sh(&self, command: &str) -> String {
        let output = self
            .run(|| {
                let path = "/usr/sbin:/sbin:/usr/bin:/bin";
                Ok(Command::new("sh").arg("-c").arg(command).env("PATH", path).output().unwrap())
            })
            .unwrap();
        assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Everything of the network that could be left behind.
    pub fn seen(&self) -> String {
        self.sh("ip -o link | sed 's/^[0-9]*: //'; ip -o addr | sed 's/ tentative//; s/ brd [0-9.]*//'; ip route; ip -6 route; ip rule; tc qdisc; \
                 nft list ruleset; cat /proc/sys/net/ipv4/ip_forward \
                 /proc/sys/net/ipv6/conf/all/forwarding")
    }
}

impl Drop for World {
    fn drop(&mut self) {
        namespace::delete(&self.path("net")).unwrap();
    }
}
