//! The straight path of a launch: image, VM and networks, what is plugged in.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use coracle_image::{ImageConfig, ImageError, Source, Store};
use coracle_uvm::UtilityVm;
use coracle_uvm::options::{ColdDisk, ColdMount};
use coracle_uvm::timeline::Stage;
use tokio_util::sync::CancellationToken;

use super::{Holdings, LAYER, Launch, SCRATCH};
use crate::error::Error;
use crate::network::Networks;
use crate::plug::Plugs;
use crate::progress::{Channelled, OnProgress};
use crate::root::Root;
use crate::spec::RootFs;
use crate::timeline::{Phase, Timeline};
use crate::vm_options;

/// What a launch comes to.
pub(super) struct Built {
    pub(super) vm: UtilityVm,
    pub(super) plugs: Plugs,
    pub(super) networks: Networks,
    pub(super) image: ImageConfig,
    pub(super) timeline: Timeline,
}

/// The straight path of [`Sandbox::launch`]; whatever it acquires is in `holdings` at once.
pub(super) async fn build(
    launch: &Launch<'_>,
    mut timeline: Timeline,
    on_progress: OnProgress,
    holdings: &mut Holdings,
) -> Result<Built, Error> {
    let Launch { root, name, spec, cancel, ledger, .. } = launch;
    let dir = root.run().join(name);
    let image = prepare_image(root, &spec.rootfs, cancel, on_progress).await?;
    let mut disks = vec![ColdDisk {
        serial: "root".to_owned(),
        file: Arc::new(image.file.into()),
        read_only: true,
        mount: Some(ColdMount { path: LAYER.to_owned(), filesystem: "erofs".to_owned() }),
    }];
    if let Some(mib) = spec.scratch_mib {
        disks.push(scratch_disk(&dir, mib).await?);
    }
    if cancel.is_cancelled() {
        return Err(Error::Interrupted);
    }

    let boot = |source| Error::Boot { name: name.clone(), source: Box::new(source) };
    timeline.reach(Phase::Spawn);
    let networks = Networks::new(root, name, spec.helper.as_deref(), ledger.clone());
    holdings.networks = Some(networks.clone());
    let booting = async {
        let mut options = vm_options::options(root, name, spec, &dir, disks);
        if let Some(ledger) = ledger {
            vm_options::outlive_us(&mut options.host, root, name, spec, ledger);
        }
        let vm = UtilityVm::create_lcow(options).await.map_err(boot)?;
        holdings.vm = Some(vm.clone());
        tokio::select! {
            started = vm.start() => started.map_err(boot).map(|()| vm),
            () = cancel.cancelled() => Err(Error::Interrupted),
        }
    };
    let joining = async {
        for network in &spec.networks {
            networks.join(network).await?;
        }
        Ok(())
    };
    // Both to their end, so that whatever fails, what the other did is known.
    let (booted, joined): (_, Result<(), Error>) = tokio::join!(booting, joining);
    joined?;
    let vm = booted?;
    let stages = vm.timeline();
    let phases = [
        (Phase::Kernel, Stage::Agent),
        (Phase::Agent, Stage::Ready),
        (Phase::Rootfs, Stage::Disks),
    ];
    for (phase, stage) in phases {
        if let Some(at) = stages.at(stage) {
            timeline.reach_at(phase, at);
        }
    }
    tokio::select! {
        attached = networks.attach(&vm) => attached?,
        () = cancel.cancelled() => return Err(Error::Interrupted),
    }
    let plugs = Plugs::new(vm.clone(), ledger.clone());
    for plug in &spec.plugs {
        tokio::select! {
            added = plugs.add(plug.clone()) => drop(added?),
            () = cancel.cancelled() => return Err(Error::Interrupted),
        }
    }
    Ok(Built { vm, plugs, networks, image: image.config, timeline })
}

/// A root file system as an open erofs image, and what it says about how to run it.
struct RootImage {
    file: File,
    config: ImageConfig,
}

async fn prepare_image(
    root: &Root,
    rootfs: &RootFs,
    cancel: &CancellationToken,
    on_progress: OnProgress,
) -> Result<RootImage, Error> {
    let path = match rootfs {
        RootFs::BuiltIn => {
            let path = root.guest().join("rootfs.erofs");
            if !path.exists() {
                return Err(Error::NoGuest { path });
            }
            return Ok(RootImage { file: open(&path, false)?, config: ImageConfig::default() });
        }
        RootFs::At(path) => path.clone(),
    };
    let images = root.images();
    let mut progress = Channelled::new(on_progress, cancel.clone());
    let at = path.clone();
    let prepare = move || -> Result<RootImage, ImageError> {
        let source = Source::detect(&at)?;
        let image = Store::open(images)?.prepare(&source, &mut progress)?;
        Ok(RootImage { config: image.config.clone(), file: image.into_file() })
    };
    let prepared = tokio::task::spawn_blocking(prepare).await;
    // Converting images does not panic; if it did, there is nothing to go on with.
    let prepared = prepared.expect("the conversion ran to its end");
    prepared.map_err(|source| Error::RootFs { path, source: Box::new(source) })
}

async fn scratch_disk(dir: &Path, mib: u64) -> Result<ColdDisk, Error> {
    let path = dir.join("scratch.ext4");
    let at = path.clone();
    let made = tokio::task::spawn_blocking(move || {
        coracle_image::scratch::create(&at, mib.saturating_mul(1 << 20))
    });
    let made = made.await.expect("making the disk ran to its end");
    made.map_err(|source| Error::Scratch { mib, source })?;
    Ok(ColdDisk {
        serial: "scratch".to_owned(),
        file: Arc::new(open(&path, true)?.into()),
        read_only: false,
        mount: Some(ColdMount { path: SCRATCH.to_owned(), filesystem: "ext4".to_owned() }),
    })
}

fn open(path: &Path, write: bool) -> Result<File, Error> {
    let opened = File::options().read(true).write(write).open(path);
    opened.map_err(|source| Error::Open { path: path.to_owned(), source })
}
