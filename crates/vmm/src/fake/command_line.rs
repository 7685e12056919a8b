//! Reading QEMU's command line, as far as the fake has what it speaks of.

use std::{collections::BTreeMap, os::fd::RawFd};

use serde_json::Value;
use uuid::Uuid;

use super::{
    Program,
    model::{Interrupt, Model, Refusal},
};
use crate::effect::Interruption;

/// What the command line asks for.
#[derive(Debug)]
pub(super) struct Setup {
    pub(super) model: Model,
    /// The listening control socket.
    pub(super) control: RawFd,
    /// Listening sockets of the serial ports, by the port's name in the guest.
    pub(super) ports: BTreeMap<String, RawFd>,
    pub(super) guest: Option<Program>,
    pub(super) paused: bool,
    /// Commands until the connection breaks, once; 0 is never reached.
    pub(super) hang_up: u64,
}

/// Options the fake knows and has no use for, each with a value.
const IGNORED: [&str; 16] = [
    "-name",
    "-machine",
    "-global",
    "-accel",
    "-cpu",
    "-m",
    "-overcommit",
    "-bios",
    "-kernel",
    "-initrd",
    "-append",
    "-mon",
    "-serial",
    "-display",
    "-action",
    "-sandbox",
];

pub(super) fn parse(words: impl Iterator<Item = String>) -> Result<Setup, String> {
    let mut words = words;
    let mut model = Model::default();
    let mut sockets = BTreeMap::new();
    let mut ports = BTreeMap::new();
    let (mut guest, mut paused, mut hang_up) = (None, false, 0);
    while let Some(option) = words.next() {
        if ["-nodefaults", "-no-user-config"].contains(&option.as_str()) {
            continue;
        }
        if option == "-S" {
            paused = true;
            continue;
        }
        let value = words.next().ok_or_else(|| format!("{option} has no value"))?;
        match option.as_str() {
            ignored if IGNORED.contains(&ignored) => {}
            "-smp" => {
                let first = value.split(',').next().unwrap_or_default();
                model.vcpus = first.parse().map_err(|_| format!("-smp {value}"))?;
                let most = field(&value, "maxcpus").and_then(|most| most.parse().ok());
                model.max_vcpus = most.unwrap_or(model.vcpus);
            }
            "-uuid" => model.uuid = value.parse::<Uuid>().map_err(|error| error.to_string())?,
            "-chardev" => chardev(&value, &mut sockets, &mut model)?,
            "-add-fd" => {
                let set = field(&value, "set").and_then(|set| set.parse().ok());
                let note = field(&value, "opaque").unwrap_or_default();
                model.add_cold_set(set.ok_or("-add-fd without a set")?, note);
            }
            "-object" => model.add_object(&json(&value)?),
            "-blockdev" => done(model.blockdev_add(&json(&value)?))?,
            "-device" => {
                let device = json(&value)?;
                if device["driver"] == "virtserialport" {
                    let text = |key: &str| device[key].as_str().unwrap_or_default().to_owned();
                    let socket: Option<&RawFd> = sockets.get(&text("chardev"));
                    ports.insert(text("name"), *socket.ok_or("a port without a socket")?);
                }
                done(model.device_add(&device))?;
            }
            "-fake-guest" => {
                let words: Vec<String> =
                    serde_json::from_str(&value).map_err(|error| error.to_string())?;
                guest = Some(words.into_iter().map(Into::into).collect());
            }
            "-fake-hang-up" => {
                hang_up = value.parse().map_err(|_| format!("-fake-hang-up {value}"))?;
            }
            "-fake-interrupt" => model.interrupt = Some(interrupt(&value)?),
            unknown => return Err(format!("{unknown}: invalid option")),
        }
    }
    let control = *sockets.get("vm.qmp").ok_or("no control socket")?;
    Ok(Setup { model, control, ports, guest, paused, hang_up })
}

fn chardev(
    value: &str,
    sockets: &mut BTreeMap<String, RawFd>,
    model: &mut Model,
) -> Result<(), String> {
    let id = field(value, "id").ok_or("-chardev without an id")?;
    model.chardevs.insert(id.to_owned());
    if let Some(fd) = field(value, "fd") {
        sockets.insert(id.to_owned(), fd.parse().map_err(|_| format!("-chardev with fd={fd}"))?);
    }
    Ok(())
}

fn interrupt(value: &str) -> Result<Interrupt, String> {
    let complaint = || format!("-fake-interrupt {value} is not N:fail or N:die");
    let (at, how) = value.split_once(':').ok_or_else(complaint)?;
    let how = match how {
        "fail" => Interruption::Fail,
        "die" => Interruption::Die,
        _ => return Err(complaint()),
    };
    Ok(Interrupt { left: at.parse().map_err(|_| complaint())?, how })
}

/// A value in QEMU's `key=value,key=value`.
fn field<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    text.split(',').filter_map(|part| part.split_once('=')).find(|(k, _)| *k == key).map(|(_, v)| v)
}

fn json(text: &str) -> Result<Value, String> {
    serde_json::from_str(text).map_err(|error| format!("{text}: {error}"))
}

fn done(result: Result<Value, Refusal>) -> Result<(), String> {
    result.map(|_| ()).map_err(|refusal| refusal.desc)
}
