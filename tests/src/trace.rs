//! What a process and all it starts change on the host, as strace sees it, in the order in which it
//! happens.

use std::collections::HashMap;
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// The calls that change something another process can see, and those that write.
const CALLS: &str = "execve,mount,umount2,mkdir,mkdirat,open,openat,creat,rename,renameat,renameat2,\
                     symlink,symlinkat,link,linkat,mknod,mknodat,bind,ioctl,unshare,setns,clone,clone3,\
                     fdatasync,pwrite64,write,sendto,sendmsg";

/// A command under strace, which ends with the last process it started.
#[derive(Debug)]
pub struct Traced {
    child: Child,
}

impl Traced {
    /// Starts it; what it does is written to `log`.
    ///
    /// # Panics
    /// There is no strace.
    pub fn start(command: &Command, log: &Path) -> Self {
        let mut traced = Command::new("strace");
        traced.args(["-f", "--seccomp-bpf", "-qq", "-v", "-y", "-s", "200000", "-e"]);
        traced.arg(format!("trace={CALLS}")).arg("-o").arg(log).arg("--");
        traced.arg(command.get_program()).args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => traced.env(name, value),
                None => traced.env_remove(name),
            };
        }
        let child = traced.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        Self { child: child.expect("strace, which `make setup` installs") }
    }

    /// Waits for the end of everything it started.
    ///
    /// # Panics
    /// It cannot be waited for.
    pub fn finish(mut self) {
        self.child.wait().unwrap();
    }
}

/// One call that succeeded.
#[derive(Debug, Clone)]
pub struct Call {
    /// Who.
    pub pid: u32,
    /// Which.
    pub name: String,
    /// Its arguments and its result, as strace writes them.
    pub arguments: String,
}

/// The calls of a log that succeeded, in the order in which they were begun.
pub fn calls(log: &str) -> Vec<Call> {
    let mut calls: Vec<Option<Call>> = Vec::new();
    let mut begun: HashMap<u32, usize> = HashMap::new();
    for line in log.lines() {
        let Some((pid, rest)) = line.split_once(' ') else { continue };
        let (Ok(pid), rest) = (pid.parse(), rest.trim_start()) else { continue };
        if let Some(resumed) = rest.strip_prefix("<... ") {
            let Some(at) = begun.remove(&pid) else { continue };
            let failed = result(resumed).is_none_or(|result| result.starts_with('-'));
            if failed {
                calls[at] = None;
            } else if let (Some(call), Some((_, more))) = (&mut calls[at], resumed.split_once('>'))
            {
                call.arguments.push_str(more);
            }
            continue;
        }
        let Some((name, arguments)) = rest.split_once('(') else { continue };
        let call = Call { pid, name: name.to_owned(), arguments: arguments.to_owned() };
        if arguments.ends_with("<unfinished ...>") {
            begun.insert(pid, calls.len());
            calls.push(Some(call));
        } else if result(arguments).is_some_and(|result| !result.starts_with('-')) {
            calls.push(Some(call));
        }
    }
    calls.into_iter().flatten().collect()
}

/// What a call came to.
fn result(line: &str) -> Option<&str> {
    line.rsplit_once(") = ").or_else(|| line.rsplit_once(" = ")).map(|(_, result)| result)
}

impl Call {
    /// The texts among its arguments, those in quotes.
    pub fn texts(&self) -> Vec<&str> {
        self.arguments.split('"').skip(1).step_by(2).collect()
    }

    /// The absolute paths it makes or renames to, if it makes any: those relative to a folder joined
    /// with what strace says the folder is.
    pub fn made(&self) -> Option<String> {
        let texts = self.texts();
        let at = |text: &str, folder: usize| {
            if text.starts_with('/') {
                return text.to_owned();
            }
            // `12</folder>`
            let folders: Vec<&str> = self.arguments.split('<').skip(1).collect();
            let folder = folders.get(folder).and_then(|rest| rest.split_once('>'));
            format!("{}/{text}", folder.map_or("?", |(folder, _)| folder))
        };
        let text = |index: usize| texts.get(index).copied();
        match self.name.as_str() {
            "mkdir" | "mkdirat" | "creat" | "mknod" | "mknodat" => Some(at(text(0)?, 0)),
            "open" | "openat" if self.arguments.contains("O_CREAT") => Some(at(text(0)?, 0)),
            "rename" | "renameat" | "renameat2" | "symlink" | "symlinkat" | "link" | "linkat" => {
                Some(at(text(1)?, 1))
            }
            _ => None,
        }
    }
}

/// Netlink's request for a new link.
const NEW_LINK: &str = "nlmsg_type=0x10 ";

impl Call {
    /// The descriptor it returned, and the path behind it.
    pub fn opened(&self) -> Option<(u32, &str)> {
        let (descriptor, path) = result(&self.arguments)?.split_once('<')?;
        Some((descriptor.parse().ok()?, path.strip_suffix('>')?))
    }

    /// The process it started.
    pub fn child(&self) -> Option<u32> {
        let is_it = matches!(self.name.as_str(), "clone" | "clone3" | "vfork" | "fork");
        result(&self.arguments).filter(|_| is_it)?.trim().parse().ok()
    }

    /// The names in a netlink request for a new link: runs of letters and digits in its attributes.
    pub fn links(&self) -> Vec<String> {
        // nft, which begins its batches with the same number, sends them otherwise.
        if self.name != "sendto" || !self.arguments.contains(NEW_LINK) {
            return Vec::new();
        }
        let mut names = vec![String::new()];
        for code in self.texts().concat().split("\\x").skip(1) {
            let byte = u8::from_str_radix(code, 16).unwrap_or(0);
            match (byte.is_ascii_alphanumeric(), names.last_mut()) {
                (true, Some(name)) => name.push(byte.into()),
                (false, _) | (true, None) => names.push(String::new()),
            }
        }
        names.retain(|name| name.len() > 3);
        names
    }

    /// The path of the unix socket it binds, in which `/proc/self/fd/N` stands for a folder.
    pub fn socket(&self) -> Option<&str> {
        let (_, path) = self.arguments.split_once("sun_path=\"").filter(|_| self.name == "bind")?;
        path.split('"').next()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_put_together_and_those_that_failed_are_left_out() {
        let log = "7 mkdir(\"/a\", 0700) = -1 EEXIST (File exists)\n\
                   7 mkdirat(5</x>, \"b\" <unfinished ...>\n\
                   8 write(1</dev/null>, \"hi\", 2) = 2\n\
                   7 <... mkdirat resumed>, 0700) = 0\n\
                   8 renameat(5</x>, \"n\", 5</x>, \"m\") = 0\n\
                   8 openat(AT_FDCWD</w>, \"f\", O_WRONLY|O_CREAT, 0600) = 3</w/f>\n";
        let calls = calls(log);
        assert_eq!(calls[2].opened(), None);
        assert_eq!(calls[3].opened(), Some((3, "/w/f")));
        let made: Vec<_> = calls.iter().map(|call| (call.pid, call.made())).collect();
        let path = |text: &str| Some(text.to_owned());
        assert_eq!(made, [(7, path("/x/b")), (8, None), (8, path("/x/m")), (8, path("/w/f"))]);
    }

    #[test]
    fn the_name_of_a_new_link_is_read_from_its_request() {
        let log = "9 sendto(3<socket:[1]>, [{nlmsg_len=52, nlmsg_type=0x10 /* NLMSG_??? */, \
                   nlmsg_flags=NLM_F_REQUEST, nlmsg_seq=1, nlmsg_pid=0}, \
                   \"\\x00\\x00\\x0a\\x00\\x03\\x00\\x63\\x6f\\x72\\x31\\x32\\x00\\x00\"], 52, 0, \
                   {sa_family=AF_NETLINK}, 12) = 52\n\
                   9 clone3({flags=0}, 88) = 12\n\
                   9 bind(4<socket:[2]>, {sa_family=AF_UNIX, sun_path=\"/proc/self/fd/3/a\"}, 9) = 0\n";
        let calls = calls(log);
        assert_eq!(calls[0].links(), ["cor12"]);
        assert_eq!(calls[1].child(), Some(12));
        assert_eq!(calls[2].socket(), Some("/proc/self/fd/3/a"));
    }
}
