//! Puts a sandbox onto a private network and takes it off again, for tests that kill it half-way.
//!
//! `join FOLDER NETWORK` needs root, and had better run in a network namespace of its own.

use std::path::PathBuf;
use std::process::ExitCode;

use coracle_net::private::{Join, NetworkSpec, Networks};

fn main() -> ExitCode {
    let mut words = std::env::args().skip(1);
    let (Some(folder), Some(network)) = (words.next(), words.next()) else {
        eprintln!("usage: join FOLDER NETWORK");
        return ExitCode::from(2);
    };
    match run(folder.into(), &network) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run(folder: PathBuf, network: &str) -> coracle_net::Result<()> {
    let networks = Networks::at(folder, None);
    let network: NetworkSpec = network.parse()?;
    let name = network.name.clone();
    let joined = networks.join(&Join {
        sandbox: "a".to_owned(),
        network,
        aliases: Vec::new(),
        mac: None,
        published: vec!["8080:80".parse()?],
        egress: "10.0.0.0/8".parse()?,
        rates: coracle_net::rates::Rates { receive: Some(1 << 20), send: Some(1 << 33) },
    })?;
    drop(joined.tap);
    networks.leave(&name, "a")
}
