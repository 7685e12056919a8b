//! What only Windows guests have: for the backend to come the rules as pure, tested code, and on this
//! host the answers that the seed gives for a Linux guest.

pub mod pipes;
pub mod vsmb;

use std::path::PathBuf;

use crate::errors::{Result, UvmError};
use crate::lifecycle::UtilityVm;

use vsmb::{ShareOptions, VsmbShare};

impl UtilityVm {
    /// Shares a directory by SMB. A Linux guest has no SMB: this is never supported here.
    ///
    /// # Errors
    /// [`UvmError::NotSupported`].
    #[doc(alias = "AddVSMB")]
    pub async fn add_vsmb(&self, _host_path: &str, _options: &ShareOptions) -> Result<VsmbShare> {
        Err(UvmError::NotSupported)
    }

    /// Removes such a share.
    ///
    /// # Errors
    /// [`UvmError::NotSupported`].
    #[doc(alias = "RemoveVSMB")]
    pub async fn remove_vsmb(&self, _host_path: &str) -> Result<()> {
        Err(UvmError::NotSupported)
    }

    /// Where such a share is in the guest.
    ///
    /// # Errors
    /// [`UvmError::NoVsmbPath`] without a path; the path cannot be examined;
    /// [`UvmError::NotAttached`], as nothing is ever shared so.
    #[doc(alias = "GetVSMBUvmPath")]
    pub async fn get_vsmb_uvm_path(&self, host_path: &str) -> Result<String> {
        if host_path.is_empty() {
            return Err(UvmError::NoVsmbPath);
        }
        std::fs::metadata(host_path).map_err(|source| UvmError::Source {
            operation: "examine the share",
            path: PathBuf::from(host_path),
            source,
        })?;
        Err(UvmError::NotAttached)
    }

    /// Combines Windows layers (id and path each). A Linux guest cannot.
    ///
    /// # Errors
    /// [`UvmError::NotSupported`].
    #[doc(alias = "CombineLayersWCOW")]
    pub async fn combine_layers_wcow(
        &self,
        _layers: &[(String, String)],
        _container_root_path: &str,
    ) -> Result<()> {
        Err(UvmError::NotSupported)
    }
}
