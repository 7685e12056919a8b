//! ModifySettings: adds, removes or changes something in the guest.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use super::envelope::rpcs;
use super::{Done, Resource, resource};
use crate::wire::{Body, Json, Layout, Side, WireError, Zero, always, layout, maybe};

/// ModifySettings. Goes to the null id for a resource of the VM, and to a container for
/// `ContainerConstraints` only.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct Modify {
    /// What to do. An object, not JSON in a string.
    pub request: Option<ModifySettings>,
}

impl Modify {
    /// Does `verb` to `resource`.
    ///
    /// # Errors
    /// When a document in the resource has a map whose keys are no text.
    pub fn new(verb: Verb, resource: &Resource) -> Result<Self, WireError> {
        Ok(Self { request: Some(ModifySettings::new(verb, resource)?) })
    }
}

/// What to do, in the words of the wire.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct ModifySettings {
    /// What to do.
    pub request_type: RequestType,
    /// What kind of thing it is about.
    pub resource_type: ResourceType,
    /// The thing; [`resource`](Self::resource) reads it.
    pub settings: Option<Json>,
}

impl ModifySettings {
    /// Does `verb` to `resource`.
    ///
    /// # Errors
    /// When a document in the resource has a map whose keys are no text.
    pub fn new(verb: Verb, resource: &Resource) -> Result<Self, WireError> {
        Ok(Self {
            request_type: verb.into(),
            resource_type: resource.resource_type(),
            settings: resource.settings()?,
        })
    }

    /// What to do.
    ///
    /// # Errors
    /// [`ResourceError::UnknownVerb`].
    pub fn verb(&self) -> Result<Verb, ResourceError> {
        match self.request_type.0.as_ref() {
            "" | "Add" => Ok(Verb::Add),
            "Remove" => Ok(Verb::Remove),
            "PreAdd" => Ok(Verb::PreAdd),
            "Update" => Ok(Verb::Update),
            other => Err(ResourceError::UnknownVerb(other.to_owned())),
        }
    }

    /// The thing it is about.
    ///
    /// # Errors
    /// [`ResourceError::UnknownType`] and [`ResourceError::Settings`].
    pub fn resource(&self) -> Result<Resource, ResourceError> {
        Resource::read(&self.resource_type, self.settings.as_ref())
    }
}

/// Why a [`ModifySettings`] cannot be understood.
#[derive(Debug, thiserror::Error)]
pub enum ResourceError {
    /// A request type outside [`Verb`]; upper and lower case count.
    #[error("the request type {0:?} is not supported")]
    UnknownVerb(String),
    /// A resource type outside [`Resource`]; upper and lower case count.
    #[error("the resource type {0:?} is not supported")]
    UnknownType(String),
    /// The settings are not those of the resource.
    #[error("the settings of a {resource_type}")]
    Settings {
        /// The resource's type.
        resource_type: ResourceType,
        /// What is wrong with them.
        #[source]
        source: WireError,
    },
}

/// What to do to a resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// Make it; also what an empty request type means.
    Add,
    /// Undo the add.
    Remove,
    /// Announce a network adapter before its add; Windows guests.
    PreAdd,
    /// Change it.
    Update,
}

/// A [`Verb`] in the words of the wire.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RequestType(pub Cow<'static, str>);

impl From<Verb> for RequestType {
    fn from(verb: Verb) -> Self {
        Self(Cow::Borrowed(match verb {
            Verb::Add => "Add",
            Verb::Remove => "Remove",
            Verb::PreAdd => "PreAdd",
            Verb::Update => "Update",
        }))
    }
}

/// The kind of a resource.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ResourceType(pub Cow<'static, str>);

impl ResourceType {
    /// A type whose name is known.
    pub const fn new(name: &'static str) -> Self {
        Self(Cow::Borrowed(name))
    }
}

impl std::fmt::Display for ResourceType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

rpcs! {
    Modify = MODIFY_SETTINGS -> Done;
}

/// Host and guest disagree on the order. The settings differ by resource.
macro_rules! layouts {
    ($side:expr, $settings:expr) => {
        match $side {
            Side::Host => layout![always("Request", Zero::Null).holding(layout![
                maybe("RequestType"),
                maybe("ResourceType"),
                maybe("Settings").holding($settings.host),
            ])],
            Side::Guest => layout![always("Request", Zero::Null).holding(layout![
                maybe("ResourceType"),
                maybe("RequestType"),
                maybe("Settings").holding($settings.guest),
            ])],
        }
    };
}

impl Body for Modify {
    fn layout(&self, side: Side) -> Layout {
        let request = self.request.as_ref();
        match request.map_or("", |request| request.resource_type.0.as_ref()) {
            "CombinedLayers" => layouts!(side, resource::COMBINED_LAYERS),
            "MappedVirtualDisk" => layouts!(side, resource::MAPPED_VIRTUAL_DISK),
            "VPMemDevice" => layouts!(side, resource::VPMEM_DEVICE),
            _ => layouts!(side, resource::AS_IT_IS),
        }
    }
}
