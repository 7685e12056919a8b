//! Network namespaces and endpoints, when one half fails, and what the guest is told.

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use coracle_bridge::message::{NetworkAdapter, Resource, Verb};
use coracle_uvm::network::{AdapterExtra, Carrier, Endpoint};
use coracle_uvm::schema::HnsEndpoint;
use coracle_uvm::{UtilityVm, UvmError};

use crate::support::{Guest, Rig, chain};

fn endpoint(id: &str, number: u8) -> Endpoint {
    Endpoint {
        described: HnsEndpoint {
            id: id.to_owned(),
            mac_address: format!("02-00-00-00-00-{number:02x}"),
            ip_address: format!("10.0.0.{number}"),
            prefix_length: 24,
            gateway_address: "10.0.0.1".to_owned(),
            dns_suffix: "example".to_owned(),
            dns_server_list: "10.0.0.53".to_owned(),
            enable_low_metric: number == 3,
            encap_overhead: 50,
            ..HnsEndpoint::default()
        },
        extra: AdapterExtra { mtu: 1400, ..AdapterExtra::default() },
        carrier: Carrier::Tap(Arc::new(File::open("/dev/null").unwrap().into())),
    }
}

/// The adapters the guest was told of, and how.
fn told(guest: &Guest) -> Vec<(Verb, NetworkAdapter)> {
    let changes = guest.service.changes.lock().unwrap();
    changes
        .iter()
        .filter_map(|change| match &change.resource {
            Resource::Network(adapter) => Some((change.verb, adapter.clone())),
            _ => None,
        })
        .collect()
}

fn count(rig: &Rig, effect: &str) -> usize {
    rig.vmm.log().iter().filter(|done| **done == effect).count()
}

fn endpoints(vm: &UtilityVm, namespace: &str) -> Vec<String> {
    vm.network_namespaces().remove(namespace).unwrap_or_default()
}

#[tokio::test]
async fn a_namespace_is_added_once_and_must_be_there_for_its_endpoints() {
    let rig = Rig::new(Guest::default());
    let vm = rig.started().await;
    vm.add_net_ns("A1").await.unwrap();
    assert!(matches!(vm.add_net_ns("a1").await, Err(UvmError::NetNsAlreadyAttached)));
    let one = [endpoint("e", 1)];
    let described = [one[0].described.clone()];
    assert!(matches!(vm.add_endpoints_to_ns("b", &one).await, Err(UvmError::NetNsNotFound)));
    let removed = vm.remove_endpoints_from_ns("b", &described).await;
    assert!(matches!(removed, Err(UvmError::NetNsNotFound)));
    vm.remove_net_ns("b").await.unwrap();
    vm.remove_endpoints_from_ns("a1", &described).await.unwrap();
    vm.remove_net_ns("A1").await.unwrap();
    vm.add_net_ns("a1").await.unwrap();
    assert_eq!(count(&rig, "plug"), 0);
    vm.close().await.unwrap();
}

#[tokio::test]
async fn the_guest_is_told_each_endpoint_by_its_cards_own_id() {
    let guest = Guest::default();
    let rig = Rig::new(guest.clone());
    let vm = rig.started().await;
    vm.add_net_ns("NS").await.unwrap();
    let two = [endpoint("E1", 1), endpoint("E3", 3)];
    vm.add_endpoints_to_ns("ns", &two).await.unwrap();
    // The same ones in another case are skipped.
    vm.add_endpoints_to_ns("NS", &[endpoint("e1", 1)]).await.unwrap();
    assert_eq!((count(&rig, "plug"), endpoints(&vm, "ns").len()), (2, 2));

    let added = told(&guest);
    let (verb, first) = &added[0];
    assert_eq!((*verb, first.namespace_id.as_str()), (Verb::Add, "ns"));
    assert_eq!(first.mac_address, "02-00-00-00-00-01");
    assert_eq!((first.ip_address.as_str(), first.prefix_length), ("10.0.0.1", 24));
    assert_eq!((first.gateway_address.as_str(), first.encap_overhead), ("10.0.0.1", 50));
    assert_eq!(
        (first.dns_suffix.as_str(), first.dns_server_list.as_str()),
        ("example", "10.0.0.53")
    );
    assert_eq!((first.enable_low_metric, added[1].1.enable_low_metric), (false, true));
    assert_eq!(first.coracle.as_ref().unwrap().mtu, 1400);
    assert!(first.id != "E1" && uuid::Uuid::parse_str(&first.id).is_ok(), "{}", first.id);

    vm.remove_endpoints_from_ns("nS", &[two[0].described.clone()]).await.unwrap();
    let (verb, removed) = told(&guest).pop().unwrap();
    assert_eq!((verb, &removed.id), (Verb::Remove, &first.id));
    vm.remove_net_ns("ns").await.unwrap();
    assert_eq!((count(&rig, "unplug"), vm.network_namespaces().len()), (2, 0));
    vm.close().await.unwrap();
    rig.assert_clean().await;
}

#[tokio::test]
async fn adding_three_endpoints_is_all_or_nothing_wherever_it_fails() {
    let guest = Guest::default();
    let rig = Rig::new(guest.clone());
    let vm = rig.started().await;
    vm.add_net_ns("n").await.unwrap();
    let there = [endpoint("there", 9)];
    vm.add_endpoints_to_ns("n", &there).await.unwrap();
    let three = [endpoint("a", 1), endpoint("b", 2), endpoint("c", 3)];

    for failing in 1..=3 {
        for half in ["plug", "guest"] {
            let (plugs, unplugs) = (count(&rig, "plug"), count(&rig, "unplug"));
            match half {
                "plug" => rig.vmm.fail_at("plug", failing),
                _ => guest.service.refuses_change_in.store(failing, Ordering::Relaxed),
            }
            let error = vm.add_endpoints_to_ns("n", &three).await.unwrap_err();
            assert!(chain(&error).starts_with("failed to add the network endpoint"), "{error}");
            assert_eq!(endpoints(&vm, "n"), ["there"], "{half} {failing}");
            let plugged = count(&rig, "plug") - plugs - usize::from(half == "plug");
            assert_eq!(count(&rig, "unplug") - unplugs, plugged, "{half} {failing}");
        }
    }
    // So does one on a server that does not see the VM's memory, before its card is plugged in.
    let plugs = count(&rig, "plug");
    let mut served = three.clone();
    served[1].carrier = Carrier::VhostUser(Arc::new(File::open("/dev/null").unwrap().into()));
    let error = vm.add_endpoints_to_ns("n", &served).await.unwrap_err();
    assert!(matches!(error, UvmError::MemoryNotShared), "{error}");
    assert_eq!((endpoints(&vm, "n"), count(&rig, "plug") - plugs), (vec!["there".to_owned()], 1));
    // An endpoint that is none undoes those before it too.
    let mut same = three.clone();
    same[2].described.mac_address = same[0].described.mac_address.clone();
    let error = vm.add_endpoints_to_ns("n", &same).await.unwrap_err();
    assert!(error.to_string().contains("that of endpoint a"), "{error}");
    assert_eq!(endpoints(&vm, "n"), ["there"]);

    vm.add_endpoints_to_ns("n", &three).await.unwrap();
    assert_eq!(endpoints(&vm, "n"), ["a", "b", "c", "there"]);
    vm.close().await.unwrap();
    rig.assert_clean().await;
}

#[tokio::test]
async fn a_removal_goes_on_after_a_failure_and_can_be_tried_again() {
    let guest = Guest::default();
    let rig = Rig::new(guest.clone());
    let vm = rig.started().await;
    vm.add_net_ns("n").await.unwrap();
    let three = [endpoint("a", 1), endpoint("b", 2), endpoint("c", 3)];
    vm.add_endpoints_to_ns("n", &three).await.unwrap();
    guest.service.refuses_change_in.store(2, Ordering::Relaxed);
    let error = vm.remove_net_ns("n").await.unwrap_err();
    assert!(chain(&error).starts_with("failed to remove the network endpoint b"), "{error}");
    assert_eq!(endpoints(&vm, "n"), ["b"]);
    // The guest lets go, the host does not; the guest is asked again, and knows nothing of it.
    rig.vmm.fail("unplug");
    vm.remove_net_ns("n").await.unwrap_err();
    rig.vmm.mend("unplug");
    vm.remove_net_ns("n").await.unwrap();
    assert!(vm.network_namespaces().is_empty());
    // The same ids may come again.
    vm.add_net_ns("N").await.unwrap();
    vm.add_endpoints_to_ns("N", &three).await.unwrap();
    assert_eq!(endpoints(&vm, "n").len(), 3);
    vm.close().await.unwrap();
    rig.assert_clean().await;
}

#[tokio::test]
async fn a_caller_that_goes_away_leaves_no_endpoints() {
    let rig = Rig::new(Guest::default());
    let vm = rig.started().await;
    vm.add_net_ns("n").await.unwrap();
    rig.vmm.fail("slowly");
    let two = [endpoint("a", 1), endpoint("b", 2)];
    let add = vm.add_endpoints_to_ns("n", &two);
    tokio::time::timeout(std::time::Duration::from_millis(60), add).await.unwrap_err();
    rig.vmm.mend("slowly");
    let gone = async {
        while count(&rig, "unplug") < 2 {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(30), gone).await.unwrap();
    vm.remove_net_ns("n").await.unwrap();
    vm.close().await.unwrap();
    rig.assert_clean().await;
}

#[tokio::test]
async fn a_guest_that_knows_no_namespaces_is_only_given_the_card() {
    let guest = Guest::default();
    guest.service.knows_no_networks.store(true, Ordering::Relaxed);
    let rig = Rig::new(guest.clone());
    let vm = rig.started().await;
    vm.add_net_ns("n").await.unwrap();
    vm.add_endpoints_to_ns("n", &[endpoint("a", 1)]).await.unwrap();
    assert!(told(&guest).is_empty());
    vm.remove_net_ns("n").await.unwrap();
    assert_eq!((count(&rig, "plug"), count(&rig, "unplug")), (1, 1));
    vm.close().await.unwrap();
}
