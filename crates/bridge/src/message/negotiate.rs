//! The first request: which version, and what the guest can do.

use serde::{Deserialize, Serialize};

use super::envelope::rpcs;
use super::{CoracleGuest, CoracleHost};
use crate::wire::{Body, Layout, Side, Zero, always, layout, maybe};

/// The only version of the protocol there is.
pub const PROTOCOL_VERSION: u32 = 4;

/// NegotiateProtocol: the first request on every connection.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct Negotiate {
    /// The least version the host speaks.
    pub minimum_version: u32,
    /// The greatest version the host speaks.
    pub maximum_version: u32,
    /// Our extension, offered.
    pub coracle: Option<CoracleHost>,
}

impl Negotiate {
    /// The request of a host that speaks version 4.
    pub fn new(coracle: Option<CoracleHost>) -> Self {
        Self { minimum_version: PROTOCOL_VERSION, maximum_version: PROTOCOL_VERSION, coracle }
    }

    /// Whether version 4 is in the range. A range turned around holds nothing.
    pub fn accepts_our_version(&self) -> bool {
        (self.minimum_version..=self.maximum_version).contains(&PROTOCOL_VERSION)
    }
}

/// The answer to [`Negotiate`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct Negotiated {
    /// The version the guest chose.
    pub version: u32,
    /// What it can do.
    pub capabilities: Capabilities,
    /// Our extension, accepted.
    pub coracle: Option<CoracleGuest>,
}

/// What a guest can do and what it needs.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct Capabilities {
    /// After the negotiation the guest wants a Create for the VM itself. Windows guests do.
    pub send_host_create_message: bool,
    /// And then a Start.
    pub send_host_start_message: bool,
    /// The guest takes its socket addresses at start.
    pub hv_socket_config_on_startup: bool,
    /// The guest wants LifecycleNotifications.
    pub send_lifecycle_notifications: bool,
    /// Versions of [`ContainerConfig`](super::ContainerConfig) it takes.
    pub supported_schema_versions: Vec<SchemaVersion>,
    /// `Linux` or `Windows` in any case; empty means Windows.
    pub runtime_os_type: String,
    /// What guests added over time.
    pub guest_defined_capabilities: Option<GuestDefinedCapabilities>,
}

impl Capabilities {
    /// What our agent, as hcsshim's Linux guest, says.
    pub fn linux() -> Self {
        Self {
            supported_schema_versions: vec![SchemaVersion { major: 2, minor: 1 }],
            runtime_os_type: "Linux".to_owned(),
            guest_defined_capabilities: Some(GuestDefinedCapabilities {
                namespace_add_request_supported: true,
                signal_process_supported: true,
                dump_stacks_supported: true,
                delete_container_state_supported: true,
            }),
            ..Self::default()
        }
    }

    /// The guest's operating system in lower case; `windows` when it did not say.
    pub fn os(&self) -> String {
        match self.runtime_os_type.as_str() {
            "" => "windows".to_owned(),
            os => os.to_lowercase(),
        }
    }
}

/// A version of the documents both ends exchange.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct SchemaVersion {
    /// Major version.
    pub major: u32,
    /// Minor version.
    pub minor: u32,
}

/// Features a guest may have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct GuestDefinedCapabilities {
    /// `NetworkNamespace` and `Network` can be added.
    pub namespace_add_request_supported: bool,
    /// SignalProcess takes options.
    pub signal_process_supported: bool,
    /// DumpStacks works.
    pub dump_stacks_supported: bool,
    /// DeleteContainerState works.
    pub delete_container_state_supported: bool,
}

rpcs! {
    Negotiate = NEGOTIATE_PROTOCOL -> Negotiated;
}

impl Body for Negotiate {
    fn layout(&self, _side: Side) -> Layout {
        layout![
            always("MinimumVersion", Zero::Number),
            always("MaximumVersion", Zero::Number),
            maybe("Coracle"),
        ]
    }
}

impl Body for Negotiated {
    fn layout(&self, side: Side) -> Layout {
        const HOST: Layout = &[
            always("SendHostCreateMessage", Zero::False),
            always("SendHostStartMessage", Zero::False),
            always("HvSocketConfigOnStartup", Zero::False),
            always("SendLifecycleNotifications", Zero::False),
            always("SupportedSchemaVersions", Zero::Null),
            always("RuntimeOsType", Zero::Text),
            always("GuestDefinedCapabilities", Zero::Null),
        ];
        const GUEST: Layout = &[
            maybe("SendHostCreateMessage"),
            maybe("SendHostStartMessage"),
            maybe("HvSocketConfigOnStartup"),
            maybe("SendLifecycleNotifications"),
            maybe("SupportedSchemaVersions"),
            maybe("RuntimeOsType"),
            always("GuestDefinedCapabilities", Zero::Object),
        ];
        match side {
            Side::Host => layout![
                maybe("Version"),
                always("Capabilities", Zero::Object).holding(HOST),
                maybe("Coracle"),
            ],
            Side::Guest => layout![
                always("Version", Zero::Number),
                always("Capabilities", Zero::Object).holding(GUEST),
                maybe("Coracle"),
            ],
        }
    }
}
