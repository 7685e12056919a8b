//! The `coracle` command: parse, dispatch, map the outcome to an exit code.

mod accel;
mod attach;
mod cli;
mod columns;
mod complete;
mod cp;
mod detach;
mod detached;
mod doctor;
mod dump;
mod events;
mod exec;
mod explain;
mod foreground;
mod fsck;
mod further;
mod gc;
mod guest;
mod health;
mod keeper;
mod life;
mod logs;
mod monitor;
mod net;
mod pipe;
mod plan9;
mod plug;
mod progress;
mod recover;
mod report;
mod resources;
mod run;
mod settings;
mod signals;
mod size;
mod state;
mod streams;
mod terminal;
mod top;

use std::process::ExitCode;

use clap::Parser;
use coracle_engine::plug::Kind;
use coracle_engine::root::Root;

use cli::{Cli, Command, Format};

fn main() -> ExitCode {
    pipe::end_quietly();
    complete::answer();
    let raw: Vec<_> = std::env::args_os().collect();
    let cli = match Cli::try_parse_from(&raw) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are data; everything else is talk, and our failure.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { report::EXIT_FAILURE } else { 0 });
        }
    };
    start_log(&cli.log);
    let root = Root::choose(cli.root.as_deref());
    let mut format = Format::Text;
    let outcome = match cli.command {
        Command::Run(args) => {
            format = args.format;
            let swallowed = cli::dashes_swallowed(&raw, args.words.len());
            run::run(&args, cli::split_words(&args.words, swallowed), &root)
        }
        Command::Create(args) => {
            format = args.format;
            let swallowed = cli::dashes_swallowed(&raw, args.words.len());
            run::create(&args, cli::split_words(&args.words, swallowed), &root)
        }
        Command::Start(args) => {
            format = args.format;
            detached::start_all(&args, &root)
        }
        Command::Exec(args) => {
            format = args.format;
            exec::run(&args, &root)
        }
        Command::Ls(args) => {
            format = args.format;
            life::ls(&args, &root)
        }
        Command::Inspect(args) => {
            format = args.format;
            life::inspect(&args, &root)
        }
        Command::Logs(args) => {
            format = args.format;
            logs::run(&args, &root)
        }
        Command::Recover(args) => {
            format = args.format;
            recover::run(&args, &root)
        }
        Command::Gc(args) => {
            format = args.format;
            gc::run(&args, &root)
        }
        Command::Fsck(args) => {
            format = args.format;
            fsck::run(&args, &root)
        }
        Command::Wait(args) => {
            format = args.format;
            life::wait(&args, &root)
        }
        Command::Stats(args) => {
            format = args.format;
            resources::stats(&args, &root)
        }
        Command::Update(args) => {
            format = args.format;
            resources::update(&args, &root)
        }
        Command::Pause(args) => {
            format = args.format;
            resources::set_paused(&args, true, &root)
        }
        Command::Resume(args) => {
            format = args.format;
            resources::set_paused(&args, false, &root)
        }
        Command::Attach(args) => {
            format = args.format;
            attach::run(&args, &root)
        }
        Command::Events(args) => {
            format = args.format;
            events::run(&args, &root)
        }
        Command::Cp(args) => {
            format = args.format;
            cp::run(&args, &root)
        }
        Command::Dump(args) => {
            format = args.format;
            dump::run(&args, &root)
        }
        Command::Top(args) => {
            format = args.format;
            top::run(&args, &root)
        }
        Command::Settings(args) => {
            format = args.format;
            settings::run(&args)
        }
        Command::Api => print_api(),
        Command::Explain(args) => {
            format = args.format;
            explain::run(&args)
        }
        Command::Kill(args) => {
            format = args.format;
            life::kill(&args, &root)
        }
        Command::Stop(args) => {
            format = args.format;
            life::stop(&args, &root)
        }
        Command::Rm(args) => {
            format = args.format;
            life::rm(&args, &root)
        }
        Command::Disk(verb) => plugged(verb.into(), &root, &mut format),
        Command::Pmem(verb) => plugged(plug::Verb::plain(Kind::Pmem, verb), &root, &mut format),
        Command::Share(verb) => plugged(verb.into(), &root, &mut format),
        Command::Pipe(verb) => plugged(plug::Verb::plain(Kind::Pipe, verb), &root, &mut format),
        Command::Device(verb) => plugged(verb.into(), &root, &mut format),
        Command::Net(verb) => {
            format = verb.format();
            net::run(verb, &root)
        }
        Command::NetNames(args) => net::serve_names(&args),
        Command::NetPorts(args) => net::serve_ports(&args),
        Command::Plan9(args) => plan9::run(args),
        Command::Monitor(args) => monitor::run(&args, &root),
        Command::Guest(args) => guest::run(args, &root),
        Command::Doctor(args) => doctor::run(args, &root),
        Command::State(args) => {
            format = args.format();
            state::run(args, &root)
        }
        Command::Keeper(args) => keeper::run(args, &root),
        Command::Completion { shell } => {
            let printed = complete::print_script(shell, &mut std::io::stdout());
            printed.map(|()| ExitCode::SUCCESS).map_err(Into::into)
        }
    };
    outcome.unwrap_or_else(|error| {
        if pipe::is_broken(&error) {
            return pipe::broken();
        }
        report::print_error(&error, format);
        ExitCode::from(report::EXIT_FAILURE)
    })
}

fn plugged(verb: plug::Verb, root: &Root, format: &mut Format) -> anyhow::Result<ExitCode> {
    *format = verb.format();
    plug::run(verb, root)
}

fn print_api() -> anyhow::Result<ExitCode> {
    println!("{}", serde_json::to_string_pretty(&coracle_engine::monitor::openapi()?)?);
    Ok(ExitCode::SUCCESS)
}

/// Talk goes to stderr; a filter that does not parse falls back to warnings.
fn start_log(filter: &str) {
    let filter = tracing_subscriber::EnvFilter::try_new(filter)
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        // Told on standard error as well, by a macro that panics when it cannot: a full disk must not
        // end a monitor whose log is on it.
        .log_internal_errors(false)
        .with_target(false)
        .without_time()
        .init();
}
