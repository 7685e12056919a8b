//! Whether this host forwards packets between its networks.
//!
//! It must as long as there is a private network. If it was us who made it, a file among the records
//! says so, and the last network to go puts it back.

use std::fs;
use std::io;
use std::path::Path;

use crate::{NetError, Result};

/// The switch and the file that says we turned it.
const SWITCHES: [(&str, &str); 2] = [
    ("/proc/sys/net/ipv4/ip_forward", "forwarding-ipv4"),
    ("/proc/sys/net/ipv6/conf/all/forwarding", "forwarding-ipv6"),
];

/// Has the host forward packets of these families.
pub(super) fn forward(records: &Path, v4: bool, v6: bool) -> Result<()> {
    for ((switch, mark), wanted) in SWITCHES.into_iter().zip([v4, v6]) {
        if !wanted || fs::read_to_string(switch).is_ok_and(|now| now.trim() != "0") {
            continue;
        }
        let failed =
            |path: &Path, source| NetError::File { what: "write", path: path.into(), source };
        let mark = records.join(mark);
        fs::write(&mark, "").map_err(|source| failed(&mark, source))?;
        fs::write(switch, "1").map_err(|source| failed(Path::new(switch), source))?;
    }
    Ok(())
}

/// Puts back what [`forward`] turned.
pub(super) fn put_back(records: &Path) -> Result<()> {
    for (switch, mark) in SWITCHES {
        let mark = records.join(mark);
        if !mark.exists() {
            continue;
        }
        let failed = |path: &Path, source: io::Error| NetError::File {
            what: "write",
            path: path.to_owned(),
            source,
        };
        fs::write(switch, "0").map_err(|source| failed(Path::new(switch), source))?;
        fs::remove_file(&mark).map_err(|source| failed(&mark, source))?;
    }
    Ok(())
}
