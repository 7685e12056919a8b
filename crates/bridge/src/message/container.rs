//! Requests about a container as a whole, or the VM, by the id in their envelope.

use serde::{Deserialize, Serialize};

use super::SchemaVersion;
use super::envelope::{empty_bodies, rpcs};
use crate::hresult::Hresult;
use crate::wire::{Body, Json, JsonString, Layout, Side, WireError, Zero, always, layout, maybe};

/// Create: makes a container. `C` is the document in the request; a host that talks to a Windows
/// guest sends [`SystemConfig`] for the VM itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase", bound(deserialize = "C: serde::de::DeserializeOwned"))]
pub struct Create<C = ContainerConfig> {
    /// The container.
    pub container_config: JsonString<C>,
    /// A field of the guest's struct that no host fills in.
    pub supported_versions: Option<ProtocolSupport>,
}

impl<C> Default for Create<C> {
    fn default() -> Self {
        Self { container_config: JsonString(None), supported_versions: None }
    }
}

impl<C> Create<C> {
    /// The request for a container of this description.
    pub fn new(config: C) -> Self {
        Self { container_config: config.into(), supported_versions: None }
    }
}

/// A Linux container.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct ContainerConfig {
    /// The version of this document, at least 2.1.
    pub schema_version: Option<SchemaVersion>,
    /// The container's folder in the guest, `/run/gcs/c/<id>`.
    pub oci_bundle_path: String,
    /// The OCI runtime specification, unchanged.
    pub oci_specification: Option<Json>,
    /// A scratch disk for it; newer guests only.
    pub scratch_dir_path: String,
}

impl ContainerConfig {
    /// The version guests take.
    pub const SCHEMA: SchemaVersion = SchemaVersion { major: 2, minor: 1 };

    /// A container with this specification.
    ///
    /// # Errors
    /// When `specification` has a map whose keys are no text.
    pub fn new<S: Serialize>(bundle: impl Into<String>, spec: &S) -> Result<Self, WireError> {
        Ok(Self {
            schema_version: Some(Self::SCHEMA),
            oci_bundle_path: bundle.into(),
            oci_specification: Some(Json::of(spec)?),
            scratch_dir_path: String::new(),
        })
    }

    /// Whether a guest takes this version of the document.
    pub fn schema_is_supported(&self) -> bool {
        self.schema_version.unwrap_or_default() >= Self::SCHEMA
    }
}

/// The host's end of a Windows VM, which its guest wants to hear of by a Create on the null id.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct SystemConfig {
    /// `Container`
    pub system_type: String,
}

/// Versions as the guest's struct of [`Create`] has them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct ProtocolSupport {
    /// As text.
    pub minimum_version: String,
    /// As text.
    pub maximum_version: String,
    /// As number.
    pub minimum_protocol_version: u32,
    /// As number.
    pub maximum_protocol_version: u32,
}

/// The answer to [`Create`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct Created {
    /// Never filled in.
    pub selected_version: String,
    /// Always 0 from hcsshim's guest.
    pub selected_protocol_version: u32,
}

empty_bodies! {
    /// An answer that says no more than its envelope.
    Done
    /// Start: on Linux the container really starts with its first process.
    Start
    /// ShutdownGraceful: SIGTERM to the container's init; powers the VM off on the null id, where it
    /// has no answer: the stream ends.
    ShutdownGraceful
    /// ShutdownForced: SIGKILL to the container's init; on the null id as
    /// [`ShutdownGraceful`].
    ShutdownForced
    /// DeleteContainerState: forgets a container that has exited.
    DeleteContainerState
    /// DumpStacks: asks the guest program for its stacks.
    DumpStacks
}

/// The answer to [`DumpStacks`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct Stacks {
    /// Text for people.
    pub guest_stacks: String,
}

/// LifecycleNotification: the VM was saved or restored. A request in spite of its name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct LifecycleNotification {
    /// What happened, in the words of the platform.
    #[serde(rename = "Type")]
    pub kind: String,
    /// Whether it worked.
    pub result: Hresult,
}

impl<C: Body> super::Rpc for Create<C> {
    const REQUEST: crate::frame::MessageType = crate::frame::MessageType::CREATE;
    type Answer = Created;
}

rpcs! {
    Start = START -> Done;
    ShutdownGraceful = SHUTDOWN_GRACEFUL -> Done;
    ShutdownForced = SHUTDOWN_FORCED -> Done;
    DeleteContainerState = DELETE_CONTAINER_STATE -> Done;
    DumpStacks = DUMP_STACKS -> Stacks;
    LifecycleNotification = LIFECYCLE_NOTIFICATION -> Done;
}

/// The versions in a guest's Create.
const SUPPORT: Layout = &[
    maybe("MinimumVersion"),
    maybe("MaximumVersion"),
    always("MinimumProtocolVersion", Zero::Number),
    always("MaximumProtocolVersion", Zero::Number),
];

/// [`ContainerConfig`] as the host writes it.
const HOST_CONFIG: Layout = &[
    always("SchemaVersion", Zero::Null),
    always("OciBundlePath", Zero::Text),
    always("OciSpecification", Zero::Null),
    maybe("ScratchDirPath"),
];

/// [`ContainerConfig`] as the guest's struct would write it.
const GUEST_CONFIG: Layout = &[
    always("SchemaVersion", Zero::Object),
    maybe("OciBundlePath"),
    maybe("OciSpecification"),
    maybe("ScratchDirPath"),
];

impl<C: Body> Body for Create<C> {
    fn layout(&self, side: Side) -> Layout {
        let linux = self.container_config.0.as_ref().is_some_and(|c| !c.layout(side).is_empty());
        match (side, linux) {
            (Side::Host, true) => {
                layout![always("ContainerConfig", Zero::QuotedNull).holding(HOST_CONFIG)]
            }
            (Side::Host, false) => layout![always("ContainerConfig", Zero::QuotedNull)],
            (Side::Guest, _) => layout![
                always("ContainerConfig", Zero::Text).holding(GUEST_CONFIG),
                always("SupportedVersions", Zero::Object).holding(SUPPORT),
            ],
        }
    }
}

impl Body for ContainerConfig {
    fn layout(&self, side: Side) -> Layout {
        match side {
            Side::Host => HOST_CONFIG,
            Side::Guest => GUEST_CONFIG,
        }
    }
}

impl Body for SystemConfig {}

impl Body for Created {
    fn layout(&self, side: Side) -> Layout {
        match side {
            Side::Host => &[],
            Side::Guest => {
                layout![maybe("SelectedVersion"), always("SelectedProtocolVersion", Zero::Number)]
            }
        }
    }
}

impl Body for Stacks {
    fn layout(&self, _side: Side) -> Layout {
        layout![always("GuestStacks", Zero::Text)]
    }
}

impl Body for LifecycleNotification {}
