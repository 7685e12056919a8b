//! The straight path of a launch: image, VM and networks, what is plugged in.

use std::path::Path;
use std::sync::Arc;

use coracle_image::ImageConfig;
use coracle_uvm::UtilityVm;
use coracle_uvm::options::{ColdDisk, ColdMount};
use coracle_uvm::timeline::Stage;

use super::{Holdings, LAYER, Launch, SCRATCH};
use crate::error::Error;
use crate::image;
use crate::network::Networks;
use crate::plug::Plugs;
use crate::progress::OnProgress;
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
    let image = image::prepare(root, &spec.rootfs, cancel, on_progress).await?;
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
        file: Arc::new(image::open(&path, true)?.into()),
        read_only: false,
        mount: Some(ColdMount { path: SCRATCH.to_owned(), filesystem: "ext4".to_owned() }),
    })
}
