//! Layers in the guest, combined to a container's root. Nothing on the host takes part, and no
//! state is kept: the guest paths are all there is.

use coracle_bridge::message::{CombinedLayers, CoracleLayers, Layer, Resource, Verb};

use crate::errors::{Result, UvmError};
use crate::lifecycle::UtilityVm;

impl UtilityVm {
    /// Combines read-only layers, top-most first, and a scratch folder into an overlay at
    /// `rootfs_path`. Without a scratch folder the root is read-only. All are paths in the guest.
    ///
    /// # Errors
    /// The VM does not run or has no guest connection; the guest refuses.
    #[doc(alias = "CombineLayersLCOW")]
    pub async fn combine_layers_lcow(
        &self,
        layer_paths: &[&str],
        scratch_path: Option<&str>,
        rootfs_path: &str,
    ) -> Result<()> {
        let layer = |path: &&str| Layer { path: (*path).to_owned(), ..Layer::default() };
        let layers = CombinedLayers {
            container_root_path: rootfs_path.to_owned(),
            layers: layer_paths.iter().map(layer).collect(),
            scratch_path: scratch_path.unwrap_or_default().to_owned(),
            ..CombinedLayers::default()
        };
        self.modify_layers(Verb::Add, "combine layers at", layers).await
    }

    /// Takes the overlay at `rootfs_path` away. There being none is success.
    ///
    /// # Errors
    /// As [`UtilityVm::combine_layers_lcow`].
    #[doc(alias = "RemoveCombinedLayers")]
    pub async fn remove_combined_layers(&self, rootfs_path: &str) -> Result<()> {
        let layers = CombinedLayers {
            container_root_path: rootfs_path.to_owned(),
            ..CombinedLayers::default()
        };
        self.modify_layers(Verb::Remove, "remove the combined layers at", layers).await
    }

    /// The same, and what was written to its scratch folder goes with it, and the folder. An agent
    /// that does not know this leaves them.
    ///
    /// # Errors
    /// As [`UtilityVm::combine_layers_lcow`].
    pub async fn discard_combined_layers(
        &self,
        rootfs_path: &str,
        scratch_path: &str,
    ) -> Result<()> {
        let layers = CombinedLayers {
            container_root_path: rootfs_path.to_owned(),
            scratch_path: scratch_path.to_owned(),
            coracle: Some(CoracleLayers { discard: true }),
            ..CombinedLayers::default()
        };
        self.modify_layers(Verb::Remove, "discard the combined layers at", layers).await
    }

    async fn modify_layers(
        &self,
        verb: Verb,
        operation: &'static str,
        layers: CombinedLayers,
    ) -> Result<()> {
        self.machine.running_guest(operation)?;
        let object = layers.container_root_path.clone();
        let done = self.machine.modify_guest(verb, Resource::CombinedLayers(layers)).await;
        done.map_err(|source| UvmError::Modify { operation, object, source })
    }
}
