//! `coracle guest`: make the files a VM boots from, and say what they are.

use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Context as _;
use clap::{Args, Subcommand, ValueEnum};
use coracle_engine::root::Root;
use coracle_guest_image::{Built, FolderError, GuestFiles, GuestRecipe, Manifest, Step, build};

use crate::report::Advice;

/// `coracle guest`.
#[derive(Debug, Args)]
pub struct GuestArgs {
    #[command(subcommand)]
    verb: GuestVerb,
}

/// The verbs of `coracle guest`.
#[derive(Debug, Subcommand)]
enum GuestVerb {
    /// Make kernel, initrd and root file systems from a distribution's kernel package.
    Build(Box<BuildArgs>),
    /// Say what guest files there are and what they were made of.
    Info(InfoArgs),
}

/// `coracle guest build`.
#[derive(Debug, Args)]
#[command(
    after_help = "Any distribution's kernel will do: a vmlinuz (bzImage) built with CONFIG_PVH, and \
        its modules with the modules.dep that depmod wrote. Nothing is done when the files are up \
        to date. The same inputs give the same bytes.\n\n\
        EXAMPLES:\n  \
        coracle guest build                            the kernel that `make setup` fetched\n  \
        coracle guest build --kernel /boot/vmlinuz-$(uname -r) --modules /lib/modules\n  \
        coracle guest build --agent ./coracle-guest    with an agent of your own making"
)]
struct BuildArgs {
    /// The kernel, a bzImage; the newest below DATA/kernels if not given.
    #[arg(long, value_name = "VMLINUZ", requires = "modules")]
    kernel: Option<PathBuf>,
    /// Its modules: lib/modules, the directory in it named after the release, or the root of a
    /// package taken apart.
    #[arg(long, value_name = "DIR", requires = "kernel")]
    modules: Option<PathBuf>,
    /// The agent, a static executable; `coracle-guest` beside this program if not given.
    #[arg(long, value_name = "FILE", env = "CORACLE_AGENT")]
    agent: Option<PathBuf>,
    /// A static busybox for the built-in root file system.
    #[arg(long, value_name = "FILE", default_value = "/bin/busybox")]
    busybox: PathBuf,
    /// The folder to fill; the installation's own if not given.
    #[arg(long, short, value_name = "DIR")]
    output: Option<PathBuf>,
    /// Make the files even if they are up to date.
    #[arg(long)]
    force: bool,
}

/// `coracle guest info`.
#[derive(Debug, Args)]
#[command(after_help = "EXAMPLES:\n  \
        coracle guest info\n  \
        coracle guest info --format json | jq -r .files.vmlinux")]
struct InfoArgs {
    /// The folder to look at; the installation's own if not given.
    #[arg(long, short, value_name = "DIR")]
    output: Option<PathBuf>,
    /// How to write it.
    #[arg(long, value_enum, default_value = "table")]
    format: InfoFormat,
}

/// The forms of `coracle guest info`.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum InfoFormat {
    /// For people.
    Table,
    /// One JSON object.
    Json,
}

/// Runs a verb of `coracle guest`.
///
/// # Errors
/// When the files cannot be made, or are not there to be described.
pub fn run(args: GuestArgs, root: &Root) -> anyhow::Result<ExitCode> {
    match args.verb {
        GuestVerb::Build(args) => run_build(*args, root),
        GuestVerb::Info(args) => run_info(args, root),
    }
}

fn run_build(args: BuildArgs, root: &Root) -> anyhow::Result<ExitCode> {
    let (kernel, modules) = match (args.kernel, args.modules) {
        (Some(kernel), Some(modules)) => (kernel, modules),
        _ => newest_kernel(&root.data().join("kernels"))?,
    };
    let recipe = GuestRecipe {
        kernel,
        modules,
        agent: match args.agent {
            Some(agent) => agent,
            None => agent_beside_us()?,
        },
        busybox: args.busybox,
        output: args.output.unwrap_or_else(|| root.guest()),
        force: args.force,
    };
    let mut progress = Progress::start();
    let built = build(&recipe, |step| progress.step(step))
        .with_context(|| format!("cannot make the guest's files in {}", recipe.output.display()))?;
    progress.finish(&built);
    Ok(ExitCode::SUCCESS)
}

/// The newest kernel package taken apart below `folder`, as vmlinuz and modules.
fn newest_kernel(folder: &Path) -> anyhow::Result<(PathBuf, PathBuf)> {
    let mut packages: Vec<PathBuf> = std::fs::read_dir(folder)
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| vmlinuz_of(path).is_some())
        .collect();
    packages.sort_by_key(|path| version_key(path));
    let newest = packages.pop().and_then(|package| Some((vmlinuz_of(&package)?, package)));
    newest.ok_or_else(|| {
        anyhow::anyhow!("there is no kernel package in {}", folder.display()).context(Advice(
            "`make setup` fetches one, or name yours with --kernel and --modules".into(),
        ))
    })
}

fn vmlinuz_of(package: &Path) -> Option<PathBuf> {
    let boot = std::fs::read_dir(package.join("boot")).ok()?;
    boot.filter_map(|entry| Some(entry.ok()?.path())).find(|path| {
        path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz"))
    })
}

/// Orders `6.1.0-56` after `6.1.0-9`: numbers as numbers, all else as text.
fn version_key(path: &Path) -> Vec<(u64, String)> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.split(['.', '-', '+', '~', '_'])
        .map(|part| (part.parse().unwrap_or_default(), part.to_owned()))
        .collect()
}

fn agent_beside_us() -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe().context("cannot find this program's own file")?;
    let folder = own.parent().unwrap_or(Path::new("/"));
    let candidates = [folder.join("coracle-guest"), folder.join("../lib/coracle/coracle-guest")];
    candidates.into_iter().find(|path| path.exists()).ok_or_else(|| {
        anyhow::anyhow!("there is no agent (coracle-guest) beside {}", own.display())
            .context(Advice("name it with --agent FILE; `make setup` builds one".into()))
    })
}

/// One line on stderr per file, and a spinner while one is being made if somebody watches.
struct Progress {
    spinner: Option<indicatif::ProgressBar>,
    begun: Instant,
}

impl Progress {
    fn start() -> Self {
        let spinner = std::io::stderr().is_terminal().then(|| {
            let spinner = indicatif::ProgressBar::new_spinner().with_message("making guest files");
            spinner.enable_steady_tick(std::time::Duration::from_millis(100));
            spinner
        });
        Self { spinner, begun: Instant::now() }
    }

    fn step(&mut self, step: &Step) {
        self.say(&format!("  {:<14}{:>10}   {}", step.output, size_text(step.size), step.note));
    }

    fn finish(self, built: &Built) {
        let folder = built.files().folder().display();
        let took = self.begun.elapsed().as_secs_f32();
        self.say(&match built {
            Built::Made(_) => format!("guest files made in {folder} ({took:.1} s)"),
            Built::UpToDate(_) => format!("guest files in {folder} are up to date ({took:.1} s)"),
        });
    }

    fn say(&self, line: &str) {
        match &self.spinner {
            Some(spinner) => spinner.suspend(|| eprintln!("{line}")),
            None => eprintln!("{line}"),
        }
    }
}

fn run_info(args: InfoArgs, root: &Root) -> anyhow::Result<ExitCode> {
    let folder = args.output.unwrap_or_else(|| root.guest());
    let files = GuestFiles::open(folder).map_err(|error| {
        let advice = match &error {
            FolderError::Absent { .. } => "make them with `coracle guest build` (or `make setup`)",
            _ => "make them anew with `coracle guest build --force`",
        };
        anyhow::Error::new(error).context(Advice(advice.into()))
    })?;
    match args.format {
        InfoFormat::Table => print!("{}", info_table(&files)),
        InfoFormat::Json => println!("{:#}", info_json(&files)),
    }
    Ok(ExitCode::SUCCESS)
}

fn info_json(files: &GuestFiles) -> serde_json::Value {
    serde_json::json!({
        "schema": 1,
        "folder": files.folder(),
        "files": {
            "vmlinux": files.vmlinux(),
            "kernel": files.kernel(),
            "initrd": files.initrd(),
            "rootfs": files.rootfs(),
            "root_image": files.root_image(),
        },
        "manifest": files.manifest(),
    })
}

fn info_table(files: &GuestFiles) -> String {
    let Manifest { kernel, modules, outputs, coracle, .. } = files.manifest();
    let mut table = format!(
        "folder     {}\nkernel     Linux {}\nmade by    coracle {coracle}\nat boot    {}\non demand  {}\n",
        files.folder().display(),
        kernel.release,
        modules.boot.join(" "),
        modules.on_demand.join(" "),
    );
    if !modules.absent.is_empty() {
        table += &format!("absent     {}\n", modules.absent.join(" "));
    }
    table += &format!("\n{:<14}{:>10}   {}\n", "FILE", "SIZE", "SHA256");
    for record in outputs {
        table +=
            &format!("{:<14}{:>10}   {}\n", record.name, size_text(record.size), record.sha256);
    }
    table
}

/// A size with one decimal, in MiB or KiB.
fn size_text(bytes: u64) -> String {
    let tenths = |unit: u64| (bytes.saturating_mul(10) + unit / 2) / unit;
    let (unit, name) = if bytes >= 1 << 20 { (1 << 20, "MiB") } else { (1 << 10, "KiB") };
    format!("{}.{} {name}", tenths(unit) / 10, tenths(unit) % 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_kernel_is_the_one_with_the_highest_numbers() {
        let folder = tempfile::tempdir().unwrap();
        for version in ["6.1.0-9", "6.1.0-56", "5.10.0-99", "6.1.0-57-empty"] {
            std::fs::create_dir_all(folder.path().join(version).join("boot")).unwrap();
        }
        for version in ["6.1.0-9", "6.1.0-56", "5.10.0-99"] {
            std::fs::write(folder.path().join(version).join("boot/vmlinuz-x"), "").unwrap();
        }
        let (kernel, modules) = newest_kernel(folder.path()).unwrap();
        assert_eq!(modules, folder.path().join("6.1.0-56"));
        assert_eq!(kernel, modules.join("boot/vmlinuz-x"));
    }

    #[test]
    fn without_any_kernel_the_error_says_how_to_get_one() {
        let error = newest_kernel(Path::new("/nonexistent")).unwrap_err();
        assert!(error.downcast_ref::<Advice>().unwrap().0.contains("make setup"));
    }

    #[test]
    fn sizes_are_rounded_to_a_tenth() {
        assert_eq!(size_text(512), "0.5 KiB");
        assert_eq!(size_text(65_906_612), "62.9 MiB");
    }
}
