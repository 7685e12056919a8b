//! The record of a network: what it is, and who is on it.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::net::IpAddr;
use std::path::Path;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::egress::Egress;
use crate::process::Sidecar;
use crate::publish::Published;
use crate::rates::Rates;
use crate::{NetError, Result, pool};

const FILE: &str = "network.json";

/// A network as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkRecord {
    /// The version of this record's form.
    pub schema: u32,
    /// Its name.
    pub name: String,
    /// The network namespace of the host it was made in, by device and inode.
    pub namespace: (u64, u64),
    /// What its table of rules is named after.
    pub table: String,
    /// The subnets.
    pub subnets: Vec<IpNet>,
    /// The largest packet in bytes.
    pub mtu: u32,
    /// Whether it was made whole.
    pub is_ready: bool,
    /// Who serves its names.
    #[serde(default)]
    pub names: Option<Sidecar>,
    /// Who is on it, by the sandbox's name.
    pub leases: BTreeMap<String, Lease>,
}

/// What a sandbox has of a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// Its addresses, one of each subnet.
    pub addresses: Vec<IpAddr>,
    /// Its hardware address, with colons.
    pub mac: String,
    /// Its tap.
    pub tap: String,
    /// Further names.
    #[serde(default)]
    pub aliases: Vec<String>,
    /// The ports of the host that lead to it.
    #[serde(default)]
    pub published: Vec<Published>,
    /// What it may begin to talk to.
    #[serde(default)]
    pub egress: Egress,
    /// How fast it may.
    #[serde(default)]
    pub rates: Rates,
    /// Who carries what the host sends to its own loopback addresses.
    #[serde(default)]
    pub forwarder: Option<Sidecar>,
}

impl NetworkRecord {
    /// The form this version writes and reads.
    pub const SCHEMA: u32 = 1;

    /// The host's addresses on it.
    pub fn gateways(&self) -> Vec<IpAddr> {
        self.subnets.iter().filter_map(pool::gateway).collect()
    }

    /// Reads the record in a network's folder, if there is one.
    ///
    /// # Errors
    /// It is there and cannot be read, or is a newer version's.
    pub fn read(folder: &Path) -> Result<Option<Self>> {
        let path = folder.join(FILE);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(NetError::File { what: "read", path, source }),
        };
        let record: Self = serde_json::from_slice(&text).map_err(|source| NetError::Record {
            what: "read",
            path: path.clone(),
            source,
        })?;
        if record.schema != Self::SCHEMA {
            let why = format!("its form is {}, this version reads {}", record.schema, Self::SCHEMA);
            return Err(NetError::Device { name: path.display().to_string(), why });
        }
        Ok(Some(record))
    }

    /// Writes it, whole or not at all.
    pub(super) fn write(&self, folder: &Path) -> Result<()> {
        let path = folder.join(FILE);
        let failed = |what, source| NetError::File { what, path: path.clone(), source };
        fs::create_dir_all(folder).map_err(|e| failed("make the folder of", e))?;
        let text = serde_json::to_vec_pretty(self).map_err(|source| NetError::Record {
            what: "write",
            path: path.clone(),
            source,
        })?;
        let draft = tempfile::NamedTempFile::new_in(folder);
        let mut draft = draft.map_err(|e| failed("write", e))?;
        draft.write_all(&text).map_err(|e| failed("write", e))?;
        draft.persist(&path).map_err(|e| failed("write", e.error))?;
        Ok(())
    }
}
