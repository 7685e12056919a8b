//! Rules in the kernel's packet filter, made by way of `nft` and its JSON.
//!
//! Each network and each sandbox has a table of its own, with a name of its own, and none of ours is
//! ever changed in place: it is made whole in one transaction and deleted whole. So a rule can neither
//! be left behind alone nor hit somebody else's.
//!
//! ```text
//!   coracle_NETWORK  masquerade what leaves; no redirects that lead around the host
//!   coracle_TAP      what the sandbox sends must come from its own addresses; which networks it
//!                    reaches; published ports; what it may begin to talk to
//! ```

mod deletion;
mod network;
mod sandbox;
mod words;

use std::path::Path;

use nftables::batch::Batch;
use nftables::helper::{self, NftablesError};
use nftables::schema::{NfListObject, Table};
use nftables::types::NfFamily;

use crate::{NetError, Result};

pub use deletion::delete;
pub use network::network_rules;
pub use sandbox::{SandboxRules, sandbox_rules};

/// Before the rules of others, who may let through what we would not.
const BEFORE_FILTERS: i32 = -5;

/// Every device of ours.
const OURS: &str = "cor*";

const USUAL: &str = "/usr/sbin/nft";

/// A transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    what: String,
    batch: Batch<'static>,
}

impl Rules {
    fn new(what: String) -> Self {
        Self { what, batch: Batch::new() }
    }

    /// Does all of it, or nothing.
    ///
    /// # Errors
    /// `nft` is not there, or refuses.
    pub fn apply(self) -> Result<()> {
        let Self { what, batch } = self;
        run(what, &batch.to_nftables())
    }

    /// Makes a table anew: what there was of it goes in the same transaction.
    fn table(&mut self, family: NfFamily, name: &str) {
        // Deleting what is not there is an error, making what is there is none.
        self.batch.add(table(family, name));
        self.batch.delete(table(family, name));
        self.batch.add(table(family, name));
    }
}

/// The name of the table of a network or a tap.
pub fn table_of(device: &str) -> String {
    format!("coracle_{device}")
}

/// The networks and taps whose tables are there.
///
/// # Errors
/// `nft` is not there, or refuses.
pub fn devices() -> Result<Vec<String>> {
    let what = || "list the tables".to_owned();
    let listed = helper::get_current_ruleset_with_args(Some(program()), ["list", "tables"])
        .map_err(|error| refused(what(), error))?;
    let name = |object: &nftables::schema::NfObject<'_>| match object {
        nftables::schema::NfObject::ListObject(NfListObject::Table(table)) => {
            table.name.strip_prefix("coracle_").map(str::to_owned)
        }
        _ => None,
    };
    let mut devices: Vec<String> = listed.objects.iter().filter_map(name).collect();
    devices.sort();
    devices.dedup();
    Ok(devices)
}

fn table(family: NfFamily, name: &str) -> NfListObject<'static> {
    NfListObject::Table(Table { family, name: name.to_owned().into(), handle: None })
}

fn run(what: String, rules: &nftables::schema::Nftables<'_>) -> Result<()> {
    let done = helper::apply_ruleset_with_args(rules, Some(program()), helper::DEFAULT_ARGS);
    done.map_err(|error| refused(what, error))
}

fn refused(what: String, error: NftablesError) -> NetError {
    match error {
        NftablesError::NftExecution { inner, .. }
            if inner.kind() == std::io::ErrorKind::NotFound =>
        {
            NetError::NoNft
        }
        source => NetError::Rules { what, source: Box::new(source) },
    }
}

/// Whether `nft` is installed.
pub fn has_nft() -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    Path::new(USUAL).exists() || std::env::split_paths(&path).any(|dir| dir.join("nft").is_file())
}

/// Where `nft` is: administrators' programs are not on everybody's path.
fn program() -> &'static Path {
    let usual = Path::new(USUAL);
    if usual.exists() { usual } else { Path::new("nft") }
}
