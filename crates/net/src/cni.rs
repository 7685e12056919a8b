//! Networks that CNI plugins make (CNI 1.0.0: `ADD`, `DEL`, a list of plugins, each given what came of
//! the one before).

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{env, fs};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::{NetError, Result};

/// Where configurations are, if `$CNI_CONF_DIR` says nothing.
const CONFIGURATIONS: &str = "/etc/cni/net.d";
/// Where plugins are, beside what `$CNI_PATH` says.
const PLUGINS: [&str; 2] = ["/opt/cni/bin", "/usr/lib/cni"];

/// A network as its configuration has it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Cni {
    /// Its name.
    pub name: String,
    version: String,
    plugins: Vec<Map<String, Value>>,
}

/// Whom a network is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// An id that nobody else has.
    pub container: String,
    /// The namespace.
    pub namespace: PathBuf,
    /// The interface to make in it.
    pub interface: String,
}

/// What name servers a network has.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Dns {
    /// The servers.
    pub nameservers: Vec<String>,
    /// Search domains.
    pub search: Vec<String>,
}

impl Cni {
    /// The network of this name among the host's configurations.
    ///
    /// # Errors
    /// There is none, or it cannot be read: what there is, is told.
    pub fn find(name: &str) -> Result<Self> {
        let folder =
            env::var_os("CNI_CONF_DIR").map_or_else(|| CONFIGURATIONS.into(), PathBuf::from);
        Self::find_in(&folder, name)
    }

    /// As [`Cni::find`], in a folder.
    ///
    /// # Errors
    /// As there.
    pub fn find_in(folder: &Path, name: &str) -> Result<Self> {
        let mut files: Vec<PathBuf> = fs::read_dir(folder)
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| {
                let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default();
                matches!(extension, "conf" | "conflist" | "json")
            })
            .collect();
        // The first by name counts, as every runtime has it.
        files.sort();
        let mut names = Vec::new();
        for path in files {
            let failed = |source| NetError::File { what: "read", path: path.clone(), source };
            let text = fs::read(&path).map_err(failed)?;
            let value: Value = serde_json::from_slice(&text)
                .map_err(|source| NetError::Record { what: "read", path: path.clone(), source })?;
            match Self::read(&value) {
                Some(network) if network.name == name => return Ok(network),
                Some(network) => names.push(network.name),
                None => tracing::warn!(path = %path.display(), "no configuration of a CNI network"),
            }
        }
        Err(NetError::Device {
            name: format!("CNI network {name}"),
            why: format!("{} has {}", folder.display(), list(&names)),
        })
    }

    fn read(value: &Value) -> Option<Self> {
        let text = |key: &str| value.get(key).and_then(Value::as_str).map(str::to_owned);
        let (name, version) = (text("name")?, text("cniVersion").unwrap_or_else(|| "0.2.0".into()));
        let plugins = match value.get("plugins") {
            Some(list) => list.as_array()?.iter().map(|p| p.as_object().cloned()).collect(),
            None => Some(vec![value.as_object()?.clone()]),
        };
        Some(Self { name, version, plugins: plugins? })
    }

    /// Has the plugins make the interface; returns the name servers they say.
    ///
    /// # Errors
    /// A plugin is not there or fails: what came before it is undone.
    pub fn add(&self, to: &Attachment) -> Result<Dns> {
        let mut previous = None;
        for plugin in &self.plugins {
            match self.call("ADD", plugin, previous.as_ref(), to) {
                Ok(result) => previous = Some(result),
                Err(error) => {
                    if let Err(undoing) = self.delete(to) {
                        tracing::warn!(error = %undoing, "cannot undo what CNI plugins made");
                    }
                    return Err(error);
                }
            }
        }
        let dns = previous.as_ref().and_then(|result| result.get("dns")).cloned();
        Ok(dns.and_then(|dns| serde_json::from_value(dns).ok()).unwrap_or_default())
    }

    /// Has the plugins take it away, the last first. Doing it again does no harm.
    ///
    /// # Errors
    /// The first plugin that fails; the others did it.
    pub fn delete(&self, from: &Attachment) -> Result<()> {
        let mut outcome = Ok(());
        for plugin in self.plugins.iter().rev() {
            outcome = outcome.and(self.call("DEL", plugin, None, from).map(drop));
        }
        outcome
    }

    fn call(
        &self,
        verb: &'static str,
        plugin: &Map<String, Value>,
        previous: Option<&Value>,
        of: &Attachment,
    ) -> Result<Value> {
        let kind = plugin.get("type").and_then(Value::as_str).unwrap_or_default();
        let failed = |why: String| NetError::Device {
            name: format!("CNI network {}: plugin {kind} on {verb}", self.name),
            why,
        };
        let mut input = plugin.clone();
        input.insert("name".to_owned(), json!(self.name));
        input.insert("cniVersion".to_owned(), json!(self.version));
        if let Some(previous) = previous {
            input.insert("prevResult".to_owned(), previous.clone());
        }
        let folders = plugin_folders();
        let is_plain = !kind.is_empty() && !kind.contains('/');
        let program = folders.iter().map(|f| f.join(kind)).find(|p| is_plain && p.is_file());
        let program = program.ok_or_else(|| {
            let texts: Vec<String> = folders.iter().map(|f| f.display().to_string()).collect();
            failed(format!("it is in none of {}", texts.join(", ")))
        })?;
        let io =
            |source: std::io::Error| NetError::File { what: "run", path: program.clone(), source };
        let path = env::var("PATH").unwrap_or_default();
        let mut child = Command::new(&program)
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", &of.container)
            .env("CNI_NETNS", &of.namespace)
            .env("CNI_IFNAME", &of.interface)
            .env("CNI_PATH", env::join_paths(&folders).unwrap_or_default())
            // Some run iptables.
            .env("PATH", format!("{path}:/usr/sbin:/sbin"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(io)?;
        if let Some(mut stdin) = child.stdin.take() {
            // Small enough for a pipe; one that does not read it says so by its exit.
            let _ = stdin.write_all(Value::Object(input).to_string().as_bytes());
        }
        let output = child.wait_with_output().map_err(io)?;
        let said: Value = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
        if output.status.success() {
            return Ok(said);
        }
        let word = |key: &str| said.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        let (message, details) = (word("msg"), word("details"));
        Err(failed(match (message.is_empty(), details.is_empty()) {
            (true, _) => format!("it ended with {}", output.status),
            (false, true) => message,
            (false, false) => format!("{message}: {details}"),
        }))
    }
}

fn plugin_folders() -> Vec<PathBuf> {
    let given = env::var_os("CNI_PATH");
    let given = given.iter().flat_map(env::split_paths);
    given.chain(PLUGINS.map(PathBuf::from)).collect()
}

fn list(names: &[String]) -> String {
    if names.is_empty() { "none".to_owned() } else { format!("only {}", names.join(", ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_is_found_by_name_whatever_form_its_file_has() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
        write("1.conf", r#"{"cniVersion":"0.4.0","name":"one","type":"bridge"}"#);
        write(
            "2.conflist",
            r#"{"cniVersion":"1.0.0","name":"two","plugins":[{"type":"a"},{"type":"b"}]}"#,
        );
        write("3.txt", "not read");
        assert_eq!(Cni::find_in(dir.path(), "one").unwrap().plugins.len(), 1);
        assert_eq!(Cni::find_in(dir.path(), "two").unwrap().plugins.len(), 2);
        let error = Cni::find_in(dir.path(), "three").unwrap_err().to_string();
        assert!(error.contains("only one, two"), "{error}");
        let error = Cni::find_in(Path::new("/no/such/folder"), "x").unwrap_err().to_string();
        assert!(error.ends_with("has none"), "{error}");
        write("0.conf", "{");
        assert!(matches!(Cni::find_in(dir.path(), "one"), Err(NetError::Record { .. })));
    }

    #[test]
    fn a_plugin_that_is_not_there_is_named_with_where_it_was_looked_for() {
        let value = json!({"name": "n", "cniVersion": "1.0.0", "plugins": [{"type": "no-such"}]});
        let of = Attachment {
            container: "c".to_owned(),
            namespace: "/n".into(),
            interface: "eth0".to_owned(),
        };
        let error = Cni::read(&value).unwrap().add(&of).unwrap_err().to_string();
        assert!(error.contains("no-such on ADD") && error.contains("/opt/cni/bin"), "{error}");
        let escapes = json!({"name": "n", "type": "../../bin/sh"});
        assert!(Cni::read(&escapes).unwrap().add(&of).is_err());
    }
}
