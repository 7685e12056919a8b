//! More and less of a VM that runs.

use coracle_uvm::UvmError;

use crate::support::{Place, chain, root_disk, sh, within};

#[tokio::test(flavor = "multi_thread")]
async fn processors_and_memory_come_and_go() {
    let place = Place::new();
    let started = place
        .started(|o| {
            o.host.cold_disks = vec![root_disk(o)];
            o.host.max_processors = 3;
            o.host.max_memory_mib = 768;
        })
        .await;
    let vm = &started.vm;
    let processors = "grep -c ^processor /proc/cpuinfo";
    assert_eq!((vm.processor_count(), sh(vm, processors).await.as_str()), (1, "1\n"));
    for count in [3, 1, 2, 2, 3] {
        within("the change", vm.update_processors(count)).await.unwrap();
        assert_eq!(sh(vm, processors).await, format!("{count}\n"));
        assert_eq!(vm.processor_count(), count);
    }
    for bad in [0, 4] {
        let error = vm.update_processors(bad).await.unwrap_err();
        assert!(matches!(error, UvmError::ResourceRange { .. }), "{error}");
    }

    let total = "awk '/MemTotal/ { print int($2 / 1024) }' /proc/meminfo";
    let of = async || sh(vm, total).await.trim().parse::<u64>().unwrap();
    let first = of().await;
    for (mib, least, most) in
        [(768, first + 480, 768), (256, first - 16, first + 16), (512, first + 220, 512)]
    {
        within("the change", vm.update_memory(mib))
            .await
            .unwrap_or_else(|e| panic!("{}", chain(&e)));
        // The guest's own books follow a moment later.
        let settled = async {
            loop {
                let now = of().await;
                if (least..=most).contains(&now) {
                    break;
                }
                println!("{mib} MiB: the guest has {now}, began with {first}");
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            }
        };
        within("the guest's books", settled).await;
        assert_eq!(vm.memory_in_mib(), mib);
    }
    // What it was given can be used: more than it began with, in one file of its memory.
    let used = sh(vm, "mkdir -p /run/big && mount -t tmpfs -o size=400m big /run/big && dd if=/dev/zero of=/run/big/x bs=1M count=300 2>&1 | tail -1; umount /run/big").await;
    assert!(!used.contains("No space"), "{used}");
    for bad in [128, 770, 301] {
        let error = vm.update_memory(bad).await.unwrap_err();
        assert!(matches!(error, UvmError::ResourceRange { .. }), "{error}");
    }
    let stats = vm.stats().await.unwrap();
    assert_eq!(stats.memory.vm_memory.assigned_memory, 512 * 256);
    started.close().await;
}
