//! Named pipes of Windows. Pure.

use super::vsmb::PREFIX;
use crate::lifecycle::UtilityVm;

/// What every named pipe's path begins with, in exactly these letters.
const PIPE: &str = r"\\.\pipe\";

/// Whether a path is that of a named pipe. Upper and lower case count.
#[doc(alias = "IsPipe")]
pub fn is_pipe(host_path: &str) -> bool {
    host_path.starts_with(PIPE)
}

/// The source and destination a pipe mount of a container has: within a VM the pipe comes over SMB, in
/// a process of the host it is the pipe itself.
#[doc(alias = "GetContainerPipeMapping")]
pub fn get_container_pipe_mapping(
    uvm: Option<&UtilityVm>,
    source: &str,
    destination: &str,
) -> (String, String) {
    mapping(uvm.is_some(), source, destination)
}

fn mapping(in_vm: bool, source: &str, destination: &str) -> (String, String) {
    let name = |path: &str| path.strip_prefix(PIPE).unwrap_or(path).to_owned();
    let from = if in_vm { format!(r"{PREFIX}IPC$\{}", name(source)) } else { source.to_owned() };
    (from, name(destination))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pipe_is_told_by_the_beginning_of_its_path() {
        assert!(is_pipe(r"\\.\pipe\docker"));
        for other in [r"\\.\PIPE\docker", r"\\.\pipe", r"C:\pipe\x", ""] {
            assert!(!is_pipe(other), "{other}");
        }
    }

    #[test]
    fn a_pipe_comes_over_smb_in_a_vm_and_is_itself_elsewhere() {
        let (from, to) = (r"\\.\pipe\db", r"\\.\pipe\inside");
        let outside = get_container_pipe_mapping(None, from, to);
        assert_eq!(outside, (from.to_owned(), "inside".to_owned()));
        let guid = "dcc079ae-60ba-4d07-847c-3493609c0870";
        let expected = format!(r"\\?\VMSMB\VSMB-{{{guid}}}\IPC$\db");
        assert_eq!(mapping(true, from, to), (expected, "inside".to_owned()));
    }
}
