//! The commands we use, each a struct whose fields are its arguments.
//!
//! Field names follow QEMU's QMP reference. What a command gives back is its `Reply`.

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;

use crate::PciAddress;

/// A QMP command: its arguments, its name and the type of its result.
pub trait Command: Serialize + Send + Sync {
    /// The name under `execute`.
    const NAME: &'static str;
    /// What it gives back.
    type Reply: DeserializeOwned;
}

/// The empty result most commands give.
#[derive(Debug, Deserialize)]
pub struct Nothing {}

macro_rules! commands {
    ($($(#[$doc:meta])* $name:ident = $qmp:literal -> $reply:ty $({ $($(#[$fdoc:meta])* $field:ident: $kind:ty),* $(,)? })?;)*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Serialize)]
        #[serde(rename_all = "kebab-case")]
        pub struct $name { $($($(#[$fdoc])* pub $field: $kind),*)? }
        impl Command for $name {
            const NAME: &'static str = $qmp;
            type Reply = $reply;
        }
    )*};
}

commands! {
    /// Ends the negotiation after the greeting.
    QmpCapabilities = "qmp_capabilities" -> Nothing;
    /// The run state.
    QueryStatus = "query-status" -> RunState;
    /// The VM's UUID.
    QueryUuid = "query-uuid" -> Identity;
    /// Runs the virtual CPUs.
    Cont = "cont" -> Nothing;
    /// Stops the virtual CPUs.
    Stop = "stop" -> Nothing;
    /// Ends QEMU.
    Quit = "quit" -> Nothing;
    /// Adds the descriptor sent along to a new set, for files named `/dev/fdset/<id>`.
    AddFd = "add-fd" -> AddedFd {
        /// A note that `query-fdsets` repeats.
        opaque: String,
    };
    /// Removes a set once nothing uses it.
    RemoveFd = "remove-fd" -> Nothing {
        /// The set.
        fdset_id: u64,
    };
    /// All sets.
    QueryFdsets = "query-fdsets" -> Vec<FdSet>;
    /// Names the descriptor sent along, for `netdev_add` and chardevs.
    GetFd = "getfd" -> Nothing {
        /// The name.
        #[serde(rename = "fdname")]
        name: String,
    };
    /// Closes a named descriptor.
    CloseFd = "closefd" -> Nothing {
        /// The name.
        #[serde(rename = "fdname")]
        name: String,
    };
    /// Removes a block node.
    BlockdevDel = "blockdev-del" -> Nothing {
        /// The node.
        node_name: String,
    };
    /// Asks the guest to let a device go; `DEVICE_DELETED` tells when it has.
    DeviceDel = "device_del" -> Nothing {
        /// The device.
        id: String,
    };
    /// Adds a network backend on a tap.
    NetdevAddTap = "netdev_add" -> Nothing {
        /// `tap`.
        #[serde(rename = "type")]
        kind: &'static str,
        /// The backend's id.
        id: String,
        /// The name given by `getfd`.
        fd: String,
    };
    /// Puts a network backend on the server behind a character device.
    NetdevAddVhostUser = "netdev_add" -> Nothing {
        /// `vhost-user`.
        #[serde(rename = "type")]
        kind: &'static str,
        /// The backend's id.
        id: String,
        /// The character device.
        chardev: String,
    };
    /// Makes a network up.
    NetdevAddUser = "netdev_add" -> Nothing {
        /// `user`.
        #[serde(rename = "type")]
        kind: &'static str,
        /// The backend's id.
        id: String,
        /// No IPv6.
        ipv6: bool,
        /// The guest may begin to talk to nobody.
        restrict: bool,
        /// Ports of the host that lead to the guest.
        hostfwd: Vec<Words>,
    };
    /// Removes a network backend.
    NetdevDel = "netdev_del" -> Nothing {
        /// The backend.
        id: String,
    };
    /// Removes an object.
    ObjectDel = "object-del" -> Nothing {
        /// The object.
        id: String,
    };
    /// Removes a character device.
    ChardevRemove = "chardev-remove" -> Nothing {
        /// The character device.
        id: String,
    };
    /// Lists the children and properties of an object.
    QomList = "qom-list" -> Vec<QomItem> {
        /// The object.
        path: String,
    };
    /// Whether the VM runs on the processor or is emulated.
    QueryKvm = "query-kvm" -> KvmUse;
    /// All PCI devices, by bus.
    QueryPci = "query-pci" -> Vec<PciBus>;
    /// Reads a property of an object.
    QomGet = "qom-get" -> Value {
        /// The object.
        path: String,
        /// The property.
        property: &'static str,
    };
    /// Changes a property of an object.
    QomSet = "qom-set" -> Nothing {
        /// The object.
        path: String,
        /// The property.
        property: &'static str,
        /// Its new value.
        value: Value,
    };
    /// Lists the places for virtual processors, taken and free.
    QueryHotpluggableCpus = "query-hotpluggable-cpus" -> Vec<HotpluggableCpu>;
    /// Takes bytes out of a ring buffer.
    RingbufRead = "ringbuf-read" -> String {
        /// The character device.
        device: &'static str,
        /// How many bytes at most.
        size: u64,
    };
    /// Hands a connected client to a display.
    AddClient = "add_client" -> Nothing {
        /// `vnc`.
        protocol: &'static str,
        /// The name given by `getfd`.
        #[serde(rename = "fdname")]
        name: String,
        /// No password is asked.
        skipauth: bool,
    };
}

/// Adds a block node; the arguments are the node.
#[derive(Debug, Serialize)]
#[serde(transparent)]
pub struct BlockdevAdd(pub Value);
impl Command for BlockdevAdd {
    const NAME: &'static str = "blockdev-add";
    type Reply = Nothing;
}

/// Adds a device; the arguments are its driver and properties.
#[derive(Debug, Serialize)]
#[serde(transparent)]
pub struct DeviceAdd(pub Value);
impl Command for DeviceAdd {
    const NAME: &'static str = "device_add";
    type Reply = Nothing;
}

/// Adds an object.
#[derive(Debug, Serialize)]
#[serde(transparent)]
pub struct ObjectAdd(pub Value);
impl Command for ObjectAdd {
    const NAME: &'static str = "object-add";
    type Reply = Nothing;
}

/// A text in a list of texts, as QEMU has it.
#[derive(Debug, Clone, Serialize)]
pub struct Words {
    /// The text.
    #[serde(rename = "str")]
    pub text: String,
}

/// Adds a character device.
#[derive(Debug, Serialize)]
#[serde(transparent)]
pub struct ChardevAdd(pub Value);
impl Command for ChardevAdd {
    const NAME: &'static str = "chardev-add";
    type Reply = Value;
}

/// A place for a virtual processor.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct HotpluggableCpu {
    /// The driver to add there.
    #[serde(rename = "type")]
    pub kind: String,
    /// Where it is: socket, core, thread.
    pub props: Value,
    /// The processor there; none if the place is free.
    pub qom_path: Option<String>,
}

impl HotpluggableCpu {
    /// A number that rises with the place.
    pub fn number(&self) -> u64 {
        let part = |name: &str| self.props[name].as_u64().unwrap_or(0);
        (part("socket-id") << 32) | (part("core-id") << 8) | part("thread-id")
    }
}

/// The answer to `query-status`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct RunState {
    /// QEMU's word: `running`, `paused`, `prelaunch`, `shutdown`, `guest-panicked`, ...
    pub status: String,
}

/// The answer to `query-uuid`.
#[derive(Debug, Deserialize)]
pub struct Identity {
    /// The UUID.
    #[serde(rename = "UUID")]
    pub uuid: uuid::Uuid,
}

/// The answer to `query-kvm`.
#[derive(Debug, Deserialize)]
pub struct KvmUse {
    /// It runs on the processor.
    pub enabled: bool,
}

/// The answer to `add-fd`.
#[derive(Debug, Deserialize)]
pub struct AddedFd {
    /// The set made for it.
    #[serde(rename = "fdset-id")]
    pub fdset_id: u64,
    /// The descriptor's number in the monitor.
    pub fd: u64,
}

/// A set of descriptors.
#[derive(Debug, Deserialize)]
pub struct FdSet {
    /// Its id.
    #[serde(rename = "fdset-id")]
    pub fdset_id: u64,
    /// What is in it.
    pub fds: Vec<FdSetMember>,
}

/// One descriptor of a set.
#[derive(Debug, Deserialize)]
pub struct FdSetMember {
    /// The note given to `add-fd`.
    pub opaque: Option<String>,
}

/// A child or property of an object.
#[derive(Debug, Deserialize)]
pub struct QomItem {
    /// Its name.
    pub name: String,
    /// Its type; a child's is `child<...>`.
    #[serde(rename = "type")]
    pub kind: String,
}

/// A PCI bus and what is on it.
#[derive(Debug, Deserialize)]
pub struct PciBus {
    /// Its devices.
    pub devices: Vec<PciFunction>,
}

/// A PCI function, perhaps a bridge.
#[derive(Debug, Deserialize)]
pub struct PciFunction {
    /// The bus, as the guest numbered it.
    pub bus: u32,
    /// The slot.
    pub slot: u32,
    /// The function.
    pub function: u32,
    /// Its id as a device; empty without one.
    #[serde(default)]
    pub qdev_id: String,
    /// What is behind it, if it is a bridge.
    pub pci_bridge: Option<PciBridge>,
}

/// What is behind a bridge.
#[derive(Debug, Deserialize)]
pub struct PciBridge {
    /// The devices; none where the guest has given no bus number yet.
    #[serde(default)]
    pub devices: Vec<PciFunction>,
}

impl PciBus {
    /// Where the device of that id is.
    pub fn find(&self, id: &str) -> Option<PciAddress> {
        self.devices.iter().find_map(|function| function.find(id))
    }
}

impl PciFunction {
    fn find(&self, id: &str) -> Option<PciAddress> {
        if self.qdev_id == id {
            let (bus, slot) = (u8::try_from(self.bus).ok()?, u8::try_from(self.slot).ok()?);
            let function = u8::try_from(self.function).ok()?;
            return Some(PciAddress { domain: 0, bus, slot, function });
        }
        self.pci_bridge.as_ref()?.devices.iter().find_map(|function| function.find(id))
    }
}
