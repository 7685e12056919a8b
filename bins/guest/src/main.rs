//! The agent: PID 1 of a utility VM.
//!
//! One static program with three faces, told apart by how it is started:
//!
//! - as PID 1 it boots the VM ([`boot`]) and does what the host asks over the bridge ([`service`]);
//! - as `coracle-guest container ...` it is the short-lived helper that makes containers
//!   ([`container`]);
//! - as `coracle-guest fake ...` it is an ordinary process that plays a guest for tests ([`fake`]).
//!
//! It knows the bridge and nothing else of coracle.
#![deny(unsafe_code)]

mod boot;
mod container;
mod fake;
mod log;
mod network;
mod pci;
mod power;
mod process;
mod reaper;
mod service;
mod stacks;
mod storage;
mod sys;

use std::process::ExitCode;

const USAGE: &str = "coracle-guest is the init of a coracle VM; it is not meant to be run by hand.\n\
                     usage: coracle-guest fake --control SOCKET --streams SOCKET [...]";

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    if std::process::id() == 1 {
        return match boot::run() {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                boot::say_last_words(&format!("{error:#}"));
                ExitCode::FAILURE
            }
        };
    }
    match arguments.next().as_deref() {
        Some("container") => container::main(),
        Some("fake") => fake::main(arguments.collect()),
        Some(_) | None => {
            eprintln!("{USAGE}");
            ExitCode::from(2)
        }
    }
}
