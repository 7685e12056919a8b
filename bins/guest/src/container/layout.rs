//! A container's specification, as libcontainer finds it: settled, and in its bundle.
//!
//! The agent's part of making a container. Its helper has then nothing of the specification to read
//! but what libcontainer reads: each thing that reads one is code an emulated processor has not seen,
//! and takes it 20 ms.

use std::fs;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use libcontainer::oci_spec::runtime::Spec;

use super::{bundle, identity, spec};

/// Settles a specification and puts it into its bundle. Blocks, for as long as the share does that the
/// root may be on. On failure nothing of it is left but, perhaps, an empty folder's parents.
pub fn lay_out(id: &str, spec: &mut Spec) -> Result<()> {
    let bundle = bundle(id);
    fs::create_dir_all(&bundle).with_context(|| format!("creating {}", bundle.display()))?;
    write(id, spec, &bundle).inspect_err(|_| discard(&bundle))
}

fn write(id: &str, spec: &mut Spec, bundle: &Path) -> Result<()> {
    spec::settle(spec, id);
    settle_user(spec, bundle)?;
    let config = config_of(bundle);
    spec.save(&config).with_context(|| format!("writing {}", config.display()))
}

fn settle_user(spec: &mut Spec, bundle: &Path) -> Result<()> {
    let root = spec.root().as_ref().map(|root| bundle.join(root.path()));
    let root = root.context("the specification has no root")?;
    let annotations = spec.annotations().as_ref();
    let named = annotations.and_then(|all| all.get(identity::USER_ANNOTATION)).cloned();
    let Some(process) = spec.process_mut() else { return Ok(()) };
    identity::settle_beneath(process, named.as_deref(), &root)
}

/// Who the pipes of a settled container's init are to belong to: user and group, unless they have other
/// numbers in there.
pub fn owner(spec: &Spec) -> Option<(u32, u32)> {
    let mapped = spec.linux().as_ref().is_some_and(|linux| linux.uid_mappings().is_some());
    let user = spec.process().as_ref().filter(|_| !mapped)?.user();
    Some((user.uid(), user.gid()))
}

/// Pipes belong to who made them; the workload may want to open `/dev/stdout` anew.
pub fn own<S: AsFd>(streams: [S; 3], (uid, gid): (u32, u32)) {
    for stream in streams {
        // Fails for what cannot be owned, such as a read-only device: then it stays as it is.
        let _ = nix::unistd::fchown(stream, Some(uid.into()), Some(gid.into()));
    }
}

/// Removes what [`lay_out`] and the helper put into the bundle; what the host mounted there stays.
pub fn discard(bundle: &Path) {
    // Either may not be there, and a bundle that holds the root is not empty.
    drop(fs::remove_file(config_of(bundle)));
    drop(fs::remove_file(bundle.join(super::CONSOLE)));
    drop(fs::remove_dir(bundle));
}

fn config_of(bundle: &Path) -> PathBuf {
    bundle.join("config.json")
}
