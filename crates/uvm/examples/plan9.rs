//! The 9P server of one share as a process of its own, for programs that are not `coracle`.
//!
//! ```text
//! plan9 --vm-pid PID --vm-start TICKS [--read-only] -- DIR      (the socket is standard input)
//! ```

use std::os::fd::AsFd;

use coracle_uvm::share::server::{Order, run};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let value = |name: &str| {
        let at = arguments.iter().position(|argument| argument == name);
        at.and_then(|at| arguments.get(at + 1)).ok_or_else(|| format!("there is no {name}"))
    };
    let order = Order {
        directory: arguments.last().ok_or("there is no directory")?.into(),
        read_only: arguments.iter().any(|argument| argument == "--read-only"),
        allowed: None,
        vm: (value("--vm-pid")?.parse()?, value("--vm-start")?.parse()?),
    };
    run(&order, std::io::stdin().as_fd().try_clone_to_owned()?)?;
    Ok(())
}
