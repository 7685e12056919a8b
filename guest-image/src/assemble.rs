//! From the inputs to the folder, step by step.

use std::path::{Path, PathBuf};

use crate::folder::{FolderLock, GuestFiles};
use crate::initrd::{self, ModulePlan};
use crate::kernel::{Kernel, is_x86_64_elf, needs_interpreter};
use crate::manifest::{FileRecord, KernelRecord, Manifest, ModuleRecord, SCHEMA};
use crate::modules::{ModuleError, ModuleIndex, module_name, read_module};
use crate::{BuildError, busybox, root};

/// Changes whenever the same inputs give other outputs, so that older files count as stale. A
/// test pins it to the digests of a set of files made from fixed inputs.
pub(crate) const RECIPE: u32 = 1;

/// Inputs larger than this are not what they claim to be.
const MAX_INPUT: u64 = 512 << 20;

/// What to make the guest's files of.
#[derive(Debug, Clone)]
pub struct GuestRecipe {
    /// A distribution's `vmlinuz`.
    pub kernel: PathBuf,
    /// Its modules: the directory named after the release, one that holds it, or the root of a
    /// package taken apart (`lib/modules/RELEASE` below it).
    pub modules: PathBuf,
    /// The agent, a static executable.
    pub agent: PathBuf,
    /// A static busybox, for the built-in root file system.
    pub busybox: PathBuf,
    /// The folder to fill.
    pub output: PathBuf,
    /// Make the files even when they are up to date.
    pub force: bool,
}

/// One step of [`build`], reported when it is done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// The file that was made.
    pub output: String,
    /// Its size in bytes.
    pub size: u64,
    /// What it was made of, for people.
    pub note: String,
}

/// What [`build`] did.
#[derive(Debug)]
pub enum Built {
    /// The files were made.
    Made(GuestFiles),
    /// They were made of the same inputs before and are whole.
    UpToDate(GuestFiles),
}

impl Built {
    /// The files, made now or before.
    #[must_use]
    pub fn files(&self) -> &GuestFiles {
        let (Self::Made(files) | Self::UpToDate(files)) = self;
        files
    }
}

/// Makes the guest's files, or finds that nothing is to be done. `report` is called after each
/// file. Concurrent calls for one folder wait for each other.
///
/// # Errors
/// [`BuildError`], with the folder as it was before.
pub fn build(recipe: &GuestRecipe, mut report: impl FnMut(&Step)) -> Result<Built, BuildError> {
    let lock = FolderLock::acquire(&recipe.output)?;
    let inputs = Inputs::read(recipe)?;
    if !recipe.force
        && let Ok(files) = GuestFiles::open(&recipe.output)
        && files.manifest().made_of(RECIPE, &inputs.records)
        && files.are_whole()?
    {
        return Ok(Built::UpToDate(files));
    }

    let mut staging = lock.stage()?;
    let mut step = |name, bytes: &[u8], note: String| -> Result<(), BuildError> {
        let record = staging.write(name, bytes)?;
        report(&Step { output: record.name.clone(), size: record.size, note });
        Ok(())
    };
    let kernel_fault = |source| BuildError::Kernel { path: recipe.kernel.clone(), source };
    let vmlinux = inputs.kernel.vmlinux().map_err(kernel_fault)?;
    step(
        "vmlinux",
        &vmlinux,
        format!("Linux {} ({})", inputs.kernel.release, inputs.kernel.compression),
    )?;
    drop(vmlinux);
    step("kernel", &inputs.kernel_image, "the distribution's own".into())?;
    let tree =
        initrd::guest_tree(&inputs.agent, &inputs.kernel.release, &inputs.plan, &inputs.modules);
    let modules = format!("the agent and {} modules", inputs.modules.len());
    step("initrd.img", &initrd::initrd(&tree), modules.clone())?;
    step("root.img", &root::root_image(&tree)?, modules)?;
    step("rootfs.erofs", &busybox::rootfs(&inputs.busybox)?, "busybox".into())?;

    let manifest = inputs.manifest();
    Ok(Built::Made(staging.publish(manifest)?))
}

/// All inputs, read and checked.
struct Inputs {
    kernel: Kernel,
    kernel_image: Vec<u8>,
    agent: Vec<u8>,
    busybox: Vec<u8>,
    plan: ModulePlan,
    modules: Vec<crate::modules::Module>,
    records: Vec<FileRecord>,
}

impl Inputs {
    fn read(recipe: &GuestRecipe) -> Result<Self, BuildError> {
        let kernel_image = read_input("kernel", &recipe.kernel)?;
        let kernel = Kernel::parse(&kernel_image)
            .map_err(|source| BuildError::Kernel { path: recipe.kernel.clone(), source })?;
        let agent = read_executable("agent", &recipe.agent)?;
        let busybox = read_executable("busybox", &recipe.busybox)?;
        let (plan, modules) = read_modules(&recipe.modules, &kernel.release)
            .map_err(|source| BuildError::Modules { path: recipe.modules.clone(), source })?;

        let mut records = vec![
            FileRecord::of("kernel", &kernel_image),
            FileRecord::of("agent", &agent),
            FileRecord::of("busybox", &busybox),
        ];
        for module in &modules {
            records.push(FileRecord::of(format!("module/{}", module.file), &module.stored));
        }
        Ok(Self { kernel, kernel_image, agent, busybox, plan, modules, records })
    }

    /// The manifest, but for the outputs.
    fn manifest(self) -> Manifest {
        let names = |files: &[String]| files.iter().map(|file| module_name(file)).collect();
        let on_demand: Vec<String> =
            self.plan.all.iter().filter(|file| !self.plan.boot.contains(file)).cloned().collect();
        Manifest {
            schema: SCHEMA,
            recipe: RECIPE,
            coracle: env!("CARGO_PKG_VERSION").into(),
            modules: ModuleRecord {
                boot: names(&self.plan.boot),
                on_demand: names(&on_demand),
                absent: self.plan.absent,
            },
            kernel: KernelRecord {
                release: self.kernel.release,
                compression: self.kernel.compression.to_string(),
            },
            inputs: self.records,
            outputs: Vec::new(),
        }
    }
}

fn read_modules(
    directory: &Path,
    release: &str,
) -> Result<(ModulePlan, Vec<crate::modules::Module>), ModuleError> {
    let directory = modules_of_release(directory, release)?;
    let plan = ModulePlan::new(&ModuleIndex::read(&directory, release)?)?;
    let modules =
        plan.all.iter().map(|file| read_module(&directory, file)).collect::<Result<_, _>>()?;
    Ok((plan, modules))
}

/// Finds the directory that is named after the release.
fn modules_of_release(directory: &Path, release: &str) -> Result<PathBuf, ModuleError> {
    let named = directory.file_name().is_some_and(|name| name == release);
    let candidates = [
        directory.join(release),
        directory.join("lib/modules").join(release),
        directory.to_owned(),
    ];
    candidates
        .into_iter()
        .take(if named { 3 } else { 2 })
        .find(|candidate| candidate.is_dir())
        .ok_or_else(|| ModuleError::WrongRelease { release: release.to_owned() })
}

fn read_input(role: &'static str, path: &Path) -> Result<Vec<u8>, BuildError> {
    let read = || {
        let size = std::fs::metadata(path)?.len();
        if size > MAX_INPUT {
            return Err(std::io::Error::from(std::io::ErrorKind::FileTooLarge));
        }
        std::fs::read(path)
    };
    read().map_err(|source| BuildError::Input { role, path: path.to_owned(), source })
}

/// Reads a program the guest will start: in the initrd there is no loader and no library.
fn read_executable(role: &'static str, path: &Path) -> Result<Vec<u8>, BuildError> {
    let bytes = read_input(role, path)?;
    let fault = if !is_x86_64_elf(&bytes) {
        "is not an x86-64 executable"
    } else if needs_interpreter(&bytes) {
        "is not statically linked"
    } else {
        return Ok(bytes);
    };
    Err(BuildError::NotStatic { role, path: path.to_owned(), fault })
}
