//! What the containers of a namespace see of it as files: name servers, and names.
//!
//! They are written where they are, never replaced: a container has them mounted one by one.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use super::NetworkError;
use super::plan::Plan;

/// The files of one namespace.
#[derive(Debug)]
pub struct Files {
    folder: PathBuf,
    /// The host names of its containers.
    containers: BTreeMap<String, String>,
}

impl Files {
    /// None yet.
    pub fn new(folder: PathBuf) -> Self {
        Self { folder, containers: BTreeMap::new() }
    }

    /// Whether no container sees them.
    pub fn is_unused(&self) -> bool {
        self.containers.is_empty()
    }

    /// Whether this container sees them.
    pub fn has(&self, container: &str) -> bool {
        self.containers.contains_key(container)
    }

    /// Makes those of a container: each with the place where it sees them.
    pub fn of_container<'a>(
        &mut self,
        container: &str,
        hostname: &str,
        adapters: impl Iterator<Item = &'a Plan> + Clone,
    ) -> Result<Vec<(PathBuf, &'static str)>, NetworkError> {
        self.containers.insert(container.to_owned(), hostname.to_owned());
        if let Err(error) = self.write(adapters) {
            self.forget(container);
            return Err(error);
        }
        Ok(vec![
            (self.hosts(container), "/etc/hosts"),
            (self.hostname(container), "/etc/hostname"),
            (self.folder.join("resolv.conf"), "/etc/resolv.conf"),
        ])
    }

    /// The container is gone.
    pub fn forget(&mut self, container: &str) {
        self.containers.remove(container);
        drop(fs::remove_file(self.hosts(container)));
        drop(fs::remove_file(self.hostname(container)));
    }

    /// Writes all of them anew, after the adapters changed.
    pub fn write<'a>(
        &self,
        adapters: impl Iterator<Item = &'a Plan> + Clone,
    ) -> Result<(), NetworkError> {
        write(&self.folder.join("resolv.conf"), &resolv_conf(adapters.clone()))?;
        for (container, hostname) in &self.containers {
            write(&self.hosts(container), &hosts(hostname, adapters.clone()))?;
            write(&self.hostname(container), &format!("{hostname}\n"))?;
        }
        Ok(())
    }

    fn hosts(&self, container: &str) -> PathBuf {
        self.folder.join(format!("hosts-{container}"))
    }

    fn hostname(&self, container: &str) -> PathBuf {
        self.folder.join(format!("hostname-{container}"))
    }
}

fn write(path: &Path, text: &str) -> Result<(), NetworkError> {
    fs::write(path, text).map_err(|source| NetworkError::File {
        what: "write",
        path: path.to_owned(),
        source,
    })
}

fn resolv_conf<'a>(adapters: impl Iterator<Item = &'a Plan> + Clone) -> String {
    let mut text = String::new();
    let domains: Vec<&str> =
        adapters.clone().flat_map(|plan| &plan.domains).map(String::as_str).collect();
    if !domains.is_empty() {
        let _ = writeln!(text, "search {}", domains.join(" "));
    }
    for server in adapters.flat_map(|plan| &plan.servers) {
        let _ = writeln!(text, "nameserver {server}");
    }
    text
}

fn hosts<'a>(hostname: &str, adapters: impl Iterator<Item = &'a Plan>) -> String {
    let mut text = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n".to_owned();
    let addresses: Vec<_> = adapters.flat_map(|plan| &plan.addresses).collect();
    if !hostname.is_empty() {
        for address in &addresses {
            let _ = writeln!(text, "{}\t{hostname}", address.addr());
        }
        if addresses.is_empty() {
            let _ = writeln!(text, "127.0.1.1\t{hostname}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use coracle_bridge::message::NetworkAdapter;

    fn plan() -> Plan {
        let adapter = NetworkAdapter {
            id: "a".into(),
            mac_address: "02:00:00:00:00:01".into(),
            ip_address: "10.0.0.2".into(),
            prefix_length: 24,
            dns_server_list: "10.0.0.1".into(),
            dns_suffix: "example".into(),
            ..NetworkAdapter::default()
        };
        Plan::of(&adapter, super::super::plan::Position::First, &[]).unwrap()
    }

    #[test]
    fn a_container_sees_its_own_name_and_the_servers_of_all_adapters() {
        let dir = tempfile::tempdir().unwrap();
        let mut files = Files::new(dir.path().to_owned());
        let plans = [plan()];
        let seen = files.of_container("c", "web", plans.iter()).unwrap();
        let text = |n: usize| fs::read_to_string(&seen[n].0).unwrap();
        assert!(text(0).ends_with("10.0.0.2\tweb\n"), "{}", text(0));
        assert_eq!(text(1), "web\n");
        assert_eq!(text(2), "search example\nnameserver 10.0.0.1\n");
        files.write([].iter()).unwrap();
        assert!(text(0).ends_with("127.0.1.1\tweb\n"), "{}", text(0));
        assert_eq!(text(2), "");
        files.forget("c");
        assert!(files.is_unused() && !seen[0].0.exists());
    }
}
