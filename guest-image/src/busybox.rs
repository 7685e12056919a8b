//! The built-in root file system for containers that bring none.
use crate::BuildError;
pub(crate) fn rootfs(_busybox: &[u8]) -> Result<Vec<u8>, BuildError> {
    Ok(Vec::new())
}
