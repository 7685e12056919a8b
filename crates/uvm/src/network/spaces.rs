//! Which endpoints are in which namespace. Pure.

use std::collections::{BTreeMap, BTreeSet};

use coracle_vmm::{DeviceId, MacAddress};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::errors::UvmError;

/// The namespaces of a VM.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Spaces {
    counter: u64,
    /// By id in lower case, then by the endpoint's id in lower case.
    spaces: BTreeMap<String, BTreeMap<String, Nic>>,
    /// On their way in or out, by namespace and endpoint: whoever restores this takes them away.
    underway: BTreeMap<String, BTreeSet<String>>,
}

/// A card that is plugged in for an endpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Nic {
    /// How the guest knows it: not the endpoint's id, which may be elsewhere too.
    pub(crate) id: Uuid,
    number: u64,
    pub(crate) mac: MacAddress,
}

impl Nic {
    pub(crate) fn device(&self) -> DeviceId {
        // The invariant: a word and at most twenty digits are a device's name.
        DeviceId::new(format!("nic{}", self.number))
            .expect("`nic` and a number are a device's name")
    }
}

/// An id as it is compared.
pub(crate) fn key(id: &str) -> String {
    id.to_ascii_lowercase()
}

/// `00-15-5d-00-11-22` or `00:15:5d:00:11:22`.
pub(crate) fn mac(text: &str) -> Option<MacAddress> {
    let mut bytes = [0; 6];
    let mut parts = text.split(['-', ':']);
    for byte in &mut bytes {
        let part = parts.next().filter(|part| part.len() == 2)?;
        *byte = u8::from_str_radix(part, 16).ok()?;
    }
    parts.next().is_none().then_some(MacAddress(bytes))
}

impl Spaces {
    pub(crate) fn add(&mut self, id: &str) -> Result<(), UvmError> {
        use std::collections::btree_map::Entry;
        match self.spaces.entry(key(id)) {
            Entry::Occupied(_) => Err(UvmError::NetNsAlreadyAttached),
            Entry::Vacant(place) => {
                place.insert(BTreeMap::new());
                Ok(())
            }
        }
    }

    /// The endpoints of a namespace.
    pub(crate) fn of(&self, id: &str) -> Result<&BTreeMap<String, Nic>, UvmError> {
        self.spaces.get(&key(id)).ok_or(UvmError::NetNsNotFound)
    }

    /// A card for an endpoint that is not there yet; none if it is.
    ///
    /// # Errors
    /// There is no such namespace; the hardware address is none, or another endpoint's.
    pub(crate) fn reserve(
        &mut self,
        namespace: &str,
        endpoint: &str,
        mac_address: &str,
    ) -> Result<Option<Nic>, UvmError> {
        let there = self.of(namespace)?;
        if there.contains_key(&key(endpoint)) {
            return Ok(None);
        }
        let bad = |why: String| UvmError::Endpoint { id: endpoint.to_owned(), why };
        if endpoint.is_empty() {
            return Err(bad("it has no id".to_owned()));
        }
        let wrong = || bad(format!("{mac_address:?} is no hardware address"));
        let mac = mac(mac_address).ok_or_else(wrong)?;
        if mac.0[0] & 1 != 0 {
            return Err(bad(format!("{mac} is a group's address, not one interface's")));
        }
        let holder = self.spaces.values().flatten().find(|(_, nic)| nic.mac == mac);
        if let Some((holder, _)) = holder {
            return Err(bad(format!("its hardware address {mac} is that of endpoint {holder}")));
        }
        self.counter += 1;
        Ok(Some(Nic { id: Uuid::new_v4(), number: self.counter, mac }))
    }

    /// The card is about to be plugged in.
    pub(crate) fn arrive(&mut self, namespace: &str, endpoint: &str, nic: Nic) {
        self.leave(namespace, endpoint);
        if let Some(there) = self.spaces.get_mut(&key(namespace)) {
            there.insert(key(endpoint), nic);
        }
    }

    /// The card is about to be unplugged.
    pub(crate) fn leave(&mut self, namespace: &str, endpoint: &str) {
        self.underway.entry(key(namespace)).or_default().insert(key(endpoint));
    }

    /// The card is plugged in, and the guest has it; or it is so still.
    pub(crate) fn settle(&mut self, namespace: &str, endpoint: &str) {
        if let Some(there) = self.underway.get_mut(&key(namespace)) {
            there.remove(&key(endpoint));
        }
    }

    /// The card is unplugged.
    pub(crate) fn forget(&mut self, namespace: &str, endpoint: &str) {
        self.settle(namespace, endpoint);
        if let Some(there) = self.spaces.get_mut(&key(namespace)) {
            there.remove(&key(endpoint));
        }
    }

    /// Namespaces and endpoints that are on their way in or out.
    pub(crate) fn underway(&self) -> Vec<(String, Vec<String>)> {
        let all = self.underway.iter().filter(|(_, endpoints)| !endpoints.is_empty());
        all.map(|(id, endpoints)| (id.clone(), endpoints.iter().cloned().collect())).collect()
    }

    /// Forgets a namespace that has no endpoints any more.
    pub(crate) fn remove(&mut self, namespace: &str) {
        let key = key(namespace);
        if self.spaces.get(&key).is_some_and(BTreeMap::is_empty) {
            self.spaces.remove(&key);
        }
    }

    pub(crate) fn list(&self) -> BTreeMap<String, Vec<String>> {
        let ids = |there: &BTreeMap<String, Nic>| there.keys().cloned().collect();
        self.spaces.iter().map(|(id, there)| (id.clone(), ids(there))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_the_same_in_any_case() {
        let mut spaces = Spaces::default();
        spaces.add("Ab").unwrap();
        assert!(matches!(spaces.add("aB"), Err(UvmError::NetNsAlreadyAttached)));
        let nic = spaces.reserve("AB", "E1", "02-00-00-00-00-01").unwrap().unwrap();
        spaces.arrive("ab", "E1", nic);
        spaces.settle("ab", "E1");
        assert_eq!(spaces.reserve("ab", "e1", "02:00:00:00:00:01").unwrap(), None);
        assert_eq!(spaces.list()["ab"], ["e1"]);
        spaces.remove("ab");
        assert!(spaces.of("ab").is_ok(), "a namespace with endpoints stays");
        spaces.forget("AB", "e1");
        spaces.remove("AB");
        assert!(matches!(spaces.of("ab"), Err(UvmError::NetNsNotFound)));
    }

    #[test]
    fn an_endpoint_needs_a_hardware_address_of_its_own() {
        let mut spaces = Spaces::default();
        spaces.add("n").unwrap();
        spaces.add("m").unwrap();
        let nic = spaces.reserve("n", "a", "02:00:00:00:00:01").unwrap().unwrap();
        spaces.arrive("n", "a", nic);
        let refused = |spaces: &mut Spaces, id: &str, mac: &str| {
            spaces.reserve("m", id, mac).unwrap_err().to_string()
        };
        assert!(refused(&mut spaces, "b", "02-00-00-00-00-01").contains("that of endpoint a"));
        assert!(refused(&mut spaces, "b", "").contains("no hardware address"));
        assert!(refused(&mut spaces, "b", "02:00:00:00:00:1").contains("no hardware address"));
        assert!(refused(&mut spaces, "b", "03:00:00:00:00:02").contains("group"));
        assert!(refused(&mut spaces, "", "02:00:00:00:00:02").contains("no id"));
        assert!(matches!(spaces.reserve("o", "b", ""), Err(UvmError::NetNsNotFound)));
    }
}
