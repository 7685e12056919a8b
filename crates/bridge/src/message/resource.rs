//! What a [`ModifySettings`](super::ModifySettings) can be about.

use serde::{Deserialize, Serialize};

use super::{
    ContainerMount, CoracleAdapter, CoracleDisk, CoracleLayers, CoraclePci, CoraclePmem,
    CoracleShare, GuestResources, Pipe, ResourceError, ResourceType,
};
use crate::wire::{Json, Layout, WireError, Zero, always, layout, maybe};

/// A thing in the guest that can be added, removed or changed.
#[derive(Clone, Debug, PartialEq)]
pub enum Resource {
    /// A SCSI disk, and where it is mounted.
    MappedVirtualDisk(MappedVirtualDisk),
    /// A directory of the host.
    MappedDirectory(MappedDirectory),
    /// A persistent memory device with a read-only layer.
    VpmemDevice(VpmemDevice),
    /// Layers and a scratch directory, combined to a root.
    CombinedLayers(CombinedLayers),
    /// A network adapter.
    Network(NetworkAdapter),
    /// A network adapter as Windows guests know it.
    WindowsNetwork(WindowsAdapter),
    /// A network namespace; Windows guests.
    NetworkNamespace(NetworkNamespace),
    /// A PCI device.
    VpciDevice(VpciDevice),
    /// The limits of a container.
    ContainerConstraints(ContainerConstraints),
    /// What the guest shall allow its host.
    SecurityPolicy(SecurityPolicy),
    /// The addresses of the VM's sockets; Windows guests.
    HvSocket(HvSocketAddress),
    /// Ours: something of the VM, seen in a container that runs.
    ContainerMount(ContainerMount),
    /// Ours: a socket in the guest that stands for one on the host.
    Pipe(Pipe),
    /// Ours: what the guest has to do to use more or less of the VM.
    GuestResources(GuestResources),
}

macro_rules! resource_types {
    ($($variant:ident: $name:literal,)*) => {
        impl Resource {
            /// Its name on the wire.
            pub const fn resource_type(&self) -> ResourceType {
                match self {
                    $(Self::$variant(_) => ResourceType::new($name),)*
                }
            }

            /// Its settings as they are sent.
            ///
            /// # Errors
            /// When a document in them has a map whose keys are no text.
            pub fn settings(&self) -> Result<Option<Json>, WireError> {
                if let Self::NetworkNamespace(NetworkNamespace(settings)) = self {
                    return Ok(settings.clone());
                }
                Ok(match self {
                    $(Self::$variant(settings) => Some(Json::of_message(settings)?),)*
                })
            }
        }
    };
}

resource_types! {
    MappedVirtualDisk: "MappedVirtualDisk",
    MappedDirectory: "MappedDirectory",
    VpmemDevice: "VPMemDevice",
    CombinedLayers: "CombinedLayers",
    Network: "Network",
    WindowsNetwork: "Network",
    NetworkNamespace: "NetworkNamespace",
    VpciDevice: "VPCIDevice",
    ContainerConstraints: "ContainerConstraints",
    SecurityPolicy: "SecurityPolicy",
    HvSocket: "HvSocket",
    ContainerMount: "CoracleContainerMount",
    Pipe: "CoraclePipe",
    GuestResources: "CoracleResources",
}

impl Resource {
    /// The resource of this type with these settings.
    pub(super) fn read(
        resource_type: &ResourceType,
        settings: Option<&Json>,
    ) -> Result<Self, ResourceError> {
        let name = resource_type.0.as_ref();
        if name == "NetworkNamespace" {
            return Ok(Self::NetworkNamespace(NetworkNamespace(settings.cloned())));
        }
        let known = Self::read_known(name, settings.unwrap_or(&Json::Null));
        let resource = known.ok_or_else(|| ResourceError::UnknownType(name.to_owned()))?;
        if settings.is_none() {
            return Err(ResourceError::Settings {
                resource_type: resource_type.clone(),
                source: WireError::Shape("missing".to_owned()),
            });
        }
        resource.map_err(|source| ResourceError::Settings {
            resource_type: resource_type.clone(),
            source,
        })
    }

    fn read_known(name: &str, settings: &Json) -> Option<Result<Self, WireError>> {
        let windows = ["AdapterId", "AdapterInstanceId"].iter().any(|n| settings.get(n).is_some());
        Some(match name {
            "MappedVirtualDisk" => settings.decode().map(Self::MappedVirtualDisk),
            "MappedDirectory" => settings.decode().map(Self::MappedDirectory),
            "VPMemDevice" => settings.decode().map(Self::VpmemDevice),
            "CombinedLayers" => settings.decode().map(Self::CombinedLayers),
            "Network" if windows => settings.decode().map(Self::WindowsNetwork),
            "Network" => settings.decode().map(Self::Network),
            "VPCIDevice" => settings.decode().map(Self::VpciDevice),
            "ContainerConstraints" => settings.decode().map(Self::ContainerConstraints),
            "SecurityPolicy" => settings.decode().map(Self::SecurityPolicy),
            "HvSocket" => settings.decode().map(Self::HvSocket),
            "CoracleContainerMount" => settings.decode().map(Self::ContainerMount),
            "CoraclePipe" => settings.decode().map(Self::Pipe),
            "CoracleResources" => settings.decode().map(Self::GuestResources),
            _ => return None,
        })
    }
}

/// A SCSI disk and where it is mounted. Without a mount path nothing is mounted; a remove always
/// makes the guest let go of the disk.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct MappedVirtualDisk {
    /// Where in the guest; Linux.
    pub mount_path: String,
    /// Where in the guest; Windows.
    pub container_path: String,
    /// Logical unit on the controller.
    pub lun: u8,
    /// Controller.
    pub controller: u8,
    /// Mount read-only.
    pub read_only: bool,
    /// Set up dm-crypt.
    pub encrypted: bool,
    /// Mount options.
    pub options: Vec<String>,
    /// Set up dm-verity; read-only disks.
    pub verity_info: Option<VerityInfo>,
    /// Ours: how to find it and what is on it.
    pub coracle: Option<CoracleDisk>,
}

/// How to check a device with dm-verity.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct VerityInfo {
    /// Size of the file system; the hash tree follows it.
    pub ext4_size_in_bytes: i64,
    /// Format version.
    pub version: i32,
    /// Hash algorithm.
    pub algorithm: String,
    /// The hash tree begins with a superblock.
    pub super_block: bool,
    /// Root hash in hex.
    pub root_digest: String,
    /// Salt in hex.
    pub salt: String,
    /// Block size in bytes.
    pub block_size: i32,
}

/// A directory of the host, by 9P.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct MappedDirectory {
    /// Where in the guest.
    pub mount_path: String,
    /// The server's port.
    pub port: u32,
    /// The share's name on the server.
    pub share_name: String,
    /// Mount read-only.
    pub read_only: bool,
    /// Ours: how the host serves it.
    pub coracle: Option<CoracleShare>,
}

/// A persistent memory device with a read-only layer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct VpmemDevice {
    /// Which one: `/dev/pmem<n>`.
    pub device_number: u32,
    /// Where in the guest.
    pub mount_path: String,
    /// The part of the device the layer lies in.
    pub mapping_info: Option<VpmemMapping>,
    /// Set up dm-verity.
    pub verity_info: Option<VerityInfo>,
    /// Ours: which one it is, and what is on it.
    pub coracle: Option<CoraclePmem>,
}

/// A part of a persistent memory device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct VpmemMapping {
    /// Where it begins.
    pub device_offset_in_bytes: u64,
    /// How long it is.
    pub device_size_in_bytes: u64,
}

/// Layers, top-most first, and a scratch directory, combined to a root.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct CombinedLayers {
    /// The container it is for. hcsshim 0.9's host sends it also when it is empty, 0.8's not at all,
    /// and the guest spells it `ContainerId`.
    #[serde(rename = "ContainerID")]
    pub container_id: Option<String>,
    /// The root to make.
    pub container_root_path: String,
    /// The read-only layers.
    pub layers: Vec<Layer>,
    /// Holds `upper` and `work`; empty makes a read-only root.
    pub scratch_path: String,
    /// Ours: what becomes of the scratch directory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub coracle: Option<CoracleLayers>,
}

/// A read-only layer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct Layer {
    /// Windows only.
    pub id: String,
    /// Where it is in the guest.
    pub path: String,
    /// Windows only.
    pub path_type: String,
    /// Windows only.
    pub cache: String,
}

/// A network adapter of a Linux guest. Without an address the guest asks DHCP.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct NetworkAdapter {
    /// The namespace it belongs to.
    #[serde(rename = "NamespaceID")]
    pub namespace_id: String,
    /// The adapter.
    #[serde(rename = "ID")]
    pub id: String,
    /// Six bytes in hex.
    pub mac_address: String,
    /// Its address.
    #[serde(rename = "IPAddress")]
    pub ip_address: String,
    /// Length of the network's prefix in bits.
    pub prefix_length: u8,
    /// The default gateway.
    pub gateway_address: String,
    /// Search domains, separated by commas.
    #[serde(rename = "DNSSuffix")]
    pub dns_suffix: String,
    /// Name servers, separated by commas.
    #[serde(rename = "DNSServerList")]
    pub dns_server_list: String,
    /// Its default route goes behind others.
    pub enable_low_metric: bool,
    /// Bytes an encapsulation takes from the MTU.
    pub encap_overhead: u16,
    /// Ours: what there is no room for above.
    pub coracle: Option<CoracleAdapter>,
}

/// A network adapter of a Windows guest.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct WindowsAdapter {
    /// The adapter.
    pub adapter_id: String,
    /// The adapter, in older guests.
    pub adapter_instance_id: String,
    /// `PreAdd`, `Add` or `Remove`.
    pub request_type: String,
    /// The endpoint, as the host's network service describes it.
    pub settings: Option<Json>,
}

/// A network namespace, as the host's network service describes it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct NetworkNamespace(pub Option<Json>);

/// A PCI device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct VpciDevice {
    /// The channel it comes by.
    #[serde(rename = "VMBusGUID")]
    pub vmbus_guid: String,
    /// Ours: where it is.
    pub coracle: Option<CoraclePci>,
}

/// The limits of a container.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct ContainerConstraints {
    /// OCI's `windows.resources`.
    pub windows: Option<Json>,
    /// OCI's `linux.resources`.
    pub linux: Option<Json>,
}

/// What the guest shall allow its host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct SecurityPolicy {
    /// Base64 of a JSON document.
    pub security_policy: String,
}

/// The addresses of the VM's sockets, GUIDs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct HvSocketAddress {
    /// The guest's own.
    pub local_address: String,
    /// The host's.
    pub parent_address: String,
}

/// The layouts of a resource's settings on either side.
pub(super) struct Settings {
    pub host: Layout,
    pub guest: Layout,
}

/// Settings that both sides write in the struct's order.
pub(super) const AS_IT_IS: Settings = Settings { host: &[], guest: &[] };

/// The guest's struct leaves no field of this out.
const GUEST_VERITY: Layout = &[
    always("Ext4SizeInBytes", Zero::Number),
    always("Version", Zero::Number),
    always("Algorithm", Zero::Text),
    always("SuperBlock", Zero::False),
    always("RootDigest", Zero::Text),
    always("Salt", Zero::Text),
    always("BlockSize", Zero::Number),
];

pub(super) const MAPPED_VIRTUAL_DISK: Settings = Settings {
    host: &[],
    guest: layout![
        maybe("MountPath"),
        maybe("Lun"),
        maybe("Controller"),
        maybe("ReadOnly"),
        maybe("Encrypted"),
        maybe("Options"),
        maybe("VerityInfo").holding(GUEST_VERITY),
    ],
};

pub(super) const VPMEM_DEVICE: Settings = Settings {
    host: &[],
    guest: layout![
        maybe("DeviceNumber"),
        maybe("MountPath"),
        maybe("MappingInfo"),
        maybe("VerityInfo").holding(GUEST_VERITY),
    ],
};

pub(super) const COMBINED_LAYERS: Settings = Settings {
    host: &[],
    guest: layout![
        maybe("Layers"),
        maybe("ScratchPath"),
        always("ContainerRootPath", Zero::Text),
        maybe("ContainerId"),
    ],
};
