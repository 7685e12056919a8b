use crate::support::{Place, root_disk, sh};
#[tokio::test(flavor = "multi_thread")]
async fn adhoc() {
    let place = Place::new();
    let started = place.started(|o| {
            o.host.cold_disks = vec![root_disk(o)];
            o.host.share_memory = true; o.kernel_boot_options = std::env::var("KO").unwrap_or_default();
            o.vpmem_device_count = std::env::var("PM").map_or(0, |v| v.parse().unwrap());
            o.host.device_timeout = std::time::Duration::from_secs(3);
        })
        .await;
    let vm = &started.vm;
    println!("{:?}", vm.add_virtiofs("/etc", "/run/mounts/v", false).await.map(drop));
    println!("{}", sh(vm, r"dmesg | grep -v 'virtio-fs: tag' | grep -i 'pci\|acpi'").await);
    std::mem::forget(started);
}
