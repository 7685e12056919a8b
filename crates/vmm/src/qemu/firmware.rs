//! UEFI firmware: where distributions keep it, and a VM's own copy of its variables.

use std::{
    fs::File,
    io::{self, Seek, Write},
    os::fd::OwnedFd,
    path::Path,
};

use rustix::fs::{MemfdFlags, memfd_create};

use crate::VmmError;

/// Code and variable store, in order of preference.
const PLACES: [(&str, &str); 4] = [
    ("/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"),
    ("/usr/share/OVMF/OVMF_CODE.fd", "/usr/share/OVMF/OVMF_VARS.fd"),
    ("/usr/share/edk2/ovmf/OVMF_CODE.fd", "/usr/share/edk2/ovmf/OVMF_VARS.fd"),
    ("/usr/share/edk2/x64/OVMF_CODE.4m.fd", "/usr/share/edk2/x64/OVMF_VARS.4m.fd"),
];

/// Opens the code, and copies the variables to memory: they end with the VM.
pub(super) fn open() -> Result<(OwnedFd, OwnedFd), VmmError> {
    let place = PLACES.iter().find(|(code, vars)| exists(code) && exists(vars));
    let Some((code, variables)) = place else {
        return Err(VmmError::NotInstalled { program: "UEFI firmware".into(), package: "ovmf" });
    };
    let failed =
        |path: &str, source| VmmError::Open { what: "firmware", path: path.into(), source };
    let code = File::open(code).map_err(|error| failed(code, error))?;
    let copy = copy(variables).map_err(|error| failed(variables, error))?;
    Ok((code.into(), copy))
}

fn exists(path: &str) -> bool {
    Path::new(path).exists()
}

fn copy(path: &str) -> io::Result<OwnedFd> {
    in_memory("firmware-variables", &std::fs::read(path)?)
}

/// A file in memory with this content, read from its start.
pub(super) fn in_memory(name: &str, content: &[u8]) -> io::Result<OwnedFd> {
    let mut file = File::from(memfd_create(name, MemfdFlags::CLOEXEC)?);
    file.write_all(content)?;
    file.rewind()?;
    Ok(file.into())
}
