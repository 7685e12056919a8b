//! When the node of a disk is good for something.
//!
//! The kernel makes a disk known in two steps: first its folder in sysfs and its node appear, then
//! its number leads to it. In between, whoever opens or mounts the node is told that there is no such
//! device (`ENXIO`). So a node that exists is not enough; it must open.

use std::fs::File;
use std::path::Path;

use nix::errno::Errno;

/// Whether a disk answers behind `node`. Whatever else is wrong with it is for its user to find.
pub fn is_live(node: &Path) -> bool {
    match File::open(node) {
        Ok(_) => true,
        Err(error) => {
            let errno = error.raw_os_error().map(Errno::from_raw);
            !matches!(errno, Some(Errno::ENXIO | Errno::ENOENT))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn a_node_that_leads_nowhere_yet_is_not_live() {
        let place = tempfile::tempdir().unwrap();
        let node = place.path().join("sda");
        assert!(!is_live(&node), "there is none");
        // A socket answers to open(2) as a disk does whose number is not in use yet.
        let socket = UnixListener::bind(&node).unwrap();
        let error = File::open(&node).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(Errno::ENXIO as i32));
        assert!(!is_live(&node), "its number leads nowhere");
        drop(socket);
        std::fs::remove_file(&node).unwrap();
        std::fs::write(&node, "").unwrap();
        assert!(is_live(&node));
    }
}
