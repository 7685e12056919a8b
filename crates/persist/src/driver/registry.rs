//! Which driver is meant by a name, or by nothing.

use super::PersistDriver;
use super::error::DriverError;
use super::features::{FeatureError, Features};
use super::fs::FsDriver;
use super::mem::{MemDriver, Memory};
use super::rootless::{Rootless, UserPlace, rootless_root};
use crate::root::{KATA_ROOT, ROOT, Root};
use crate::store::Disk;
use std::path::PathBuf;
use std::sync::Arc;

/// What decides which driver there is.
#[derive(Clone, Debug)]
pub struct Choice {
    /// Where states of the machine's root are.
    pub root: Root,
    /// Where states of other users are.
    pub user: UserPlace,
    /// How this process stands to root.
    pub rootless: Rootless,
    /// States in memory are meant, by whatever name is not given.
    pub mock: Option<Memory>,
    /// The server that `etcd` means.
    #[cfg(feature = "etcd")]
    pub etcd: Option<super::EtcdPlace>,
    /// The experimental features, or why there are none.
    pub features: Result<Features, FeatureError>,
}

impl Choice {
    /// Coracle's places, for this process.
    pub fn coracle() -> Self {
        Self {
            root: Root::at(ROOT),
            user: UserPlace::Data { data: path("XDG_DATA_HOME"), home: path("HOME") },
            rootless: Rootless::of_this_process(),
            mock: None,
            #[cfg(feature = "etcd")]
            etcd: None,
            features: Features::standard(),
        }
    }

    /// Kata's places, for this process.
    pub fn kata() -> Self {
        let user = UserPlace::Runtime(path("XDG_RUNTIME_DIR"));
        Self { root: Root::at(KATA_ROOT), user, ..Self::coracle() }
    }
}

/// A path from the environment.
fn path(variable: &str) -> Option<PathBuf> {
    std::env::var_os(variable).map(PathBuf::from)
}

type Make = fn(&Choice) -> Result<Box<dyn PersistDriver>, DriverError>;

/// Drivers by name.
#[derive(Clone, Debug)]
pub struct Registry {
    choice: Choice,
    drivers: Vec<(&'static str, Make)>,
}

impl Registry {
    /// The drivers of this crate: `fs`, `rootlessfs`, `mem`, and `etcd` where it is built in.
    pub fn new(choice: Choice) -> Self {
        let drivers: Vec<(&'static str, Make)> =
            vec![("fs", make_fs), ("rootlessfs", make_rootless), ("mem", make_mem)];
        #[cfg(feature = "etcd")]
        let drivers = [drivers, vec![("etcd", make_etcd as Make)]].concat();
        Self { choice, drivers }
    }

    /// Adds a driver; one of the same name is replaced.
    pub fn register(&mut self, name: &'static str, make: Make) {
        self.drivers.retain(|(known, _)| *known != name);
        self.drivers.push((name, make));
    }

    /// The names there are.
    pub fn names(&self) -> impl Iterator<Item = &'static str> {
        self.drivers.iter().map(|(name, _)| *name)
    }

    /// The driver that is meant when none is named: states in memory if those were asked for, a
    /// user's own if this is not root, else the machine's.
    ///
    /// # Errors
    /// When the features are not in order, or there is no place.
    #[doc(alias = "GetDriver")]
    pub fn driver(&self) -> Result<Box<dyn PersistDriver>, DriverError> {
        self.choice.features.as_ref().map_err(|error| DriverError::Features(error.clone()))?;
        let name = match &self.choice.mock {
            Some(_) => "mem",
            None if self.choice.rootless.is_rootless() => "rootlessfs",
            None => "fs",
        };
        self.driver_by_name(name)
    }

    /// The driver of a name.
    ///
    /// # Errors
    /// When there is none, or it has no place.
    #[doc(alias = "GetDriverByName")]
    pub fn driver_by_name(&self, name: &str) -> Result<Box<dyn PersistDriver>, DriverError> {
        match self.drivers.iter().find(|(known, _)| *known == name) {
            Some((_, make)) => make(&self.choice),
            None => Err(DriverError::NoDriver {
                name: name.to_owned(),
                known: self.names().collect::<Vec<_>>().join(", "),
            }),
        }
    }
}

fn make_fs(choice: &Choice) -> Result<Box<dyn PersistDriver>, DriverError> {
    Ok(Box::new(FsDriver::new(choice.root.clone())))
}

fn make_rootless(choice: &Choice) -> Result<Box<dyn PersistDriver>, DriverError> {
    let uid = choice.rootless.uid();
    let root = rootless_root(&choice.user, uid)?;
    if choice.user == UserPlace::Runtime(None) {
        tracing::warn!(root = %root.path().display(), "XDG_RUNTIME_DIR is not set");
    }
    Ok(Box::new(FsDriver::with_disk("rootlessfs", root, Arc::new(Disk::default()))))
}

fn make_mem(choice: &Choice) -> Result<Box<dyn PersistDriver>, DriverError> {
    Ok(Box::new(MemDriver::new(choice.mock.clone().unwrap_or_default())))
}

#[cfg(feature = "etcd")]
fn make_etcd(choice: &Choice) -> Result<Box<dyn PersistDriver>, DriverError> {
    match choice.etcd.clone() {
        Some(place) => Ok(Box::new(super::EtcdDriver::connect(place)?)),
        None => Err(DriverError::NoDriver {
            name: "etcd".to_owned(),
            known: "those that need no server to be named".to_owned(),
        }),
    }
}
