//! From the inputs to the folder, step by step.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use crate::folder::{FolderLock, GuestFiles};
use crate::initrd::{self, ModulePlan};
use crate::kernel::{Kernel, KernelError, is_x86_64_elf, needs_interpreter};
use crate::manifest::{FileRecord, KernelRecord, Manifest, ModuleRecord, SCHEMA};
use crate::modules::{Module, ModuleError, ModuleIndex, module_name, read_module};
use crate::tree::{self, Entry};
use crate::{BuildError, busybox, signature};

/// Changes whenever the same inputs give other outputs, so that older files count as stale. A
/// test pins it to the digests of a set of files made from fixed inputs.
pub(crate) const RECIPE: u32 = 4;

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
    let mut make = |name, note: String, fill: &dyn Fn(&mut File) -> Result<(), BuildError>| {
        let record = staging.create(name, fill)?;
        report(&Step { output: record.name, size: record.size, note });
        Ok::<_, BuildError>(())
    };
    let Kernel { release, compression, .. } = &inputs.kernel;
    let tree = initrd::guest_tree(&inputs.agent, release, &inputs.plan, &inputs.modules);
    let programs = busybox::programs(&inputs.busybox, &inputs.applets);
    let with_modules = format!("the agent and {} modules", inputs.modules.len());

    make("vmlinux", format!("Linux {release}, unpacked from {compression}"), &|file| {
        let vmlinux = inputs.kernel.vmlinux().map_err(|source| recipe.kernel_fault(source))?;
        write("vmlinux", file, &vmlinux)
    })?;
    make("kernel", "the same as the distribution packed it".into(), &|file| {
        write("kernel", file, &inputs.kernel_image)
    })?;
    make("initrd.img", with_modules.clone(), &|file| {
        write("initrd.img", file, &initrd::initrd(&tree))
    })?;
    make("rootfs.erofs", format!("busybox with {} applets", inputs.applets.len()), &|file| {
        erofs("rootfs.erofs", file, &busybox::rootfs(&inputs.busybox, &inputs.applets))
    })?;
    let tree = tree::with_parents(tree.into_iter().chain(programs).collect());
    make("root.img", format!("{with_modules}, and busybox"), &|file| {
        erofs("root.img", file, &tree)?;
        pad_to_pmem(file).map_err(|source| image_fault("root.img", source))
    })?;

    let manifest = inputs.manifest();
    Ok(Built::Made(staging.publish(manifest)?))
}

impl GuestRecipe {
    fn kernel_fault(&self, source: KernelError) -> BuildError {
        BuildError::Kernel { path: self.kernel.clone(), source }
    }
}

fn write(output: &'static str, file: &mut File, bytes: &[u8]) -> Result<(), BuildError> {
    file.write_all(bytes).map_err(|source| image_fault(output, source))
}

fn erofs(output: &'static str, file: &File, tree: &[Entry<'_>]) -> Result<(), BuildError> {
    let file = file.try_clone().map_err(|source| image_fault(output, source))?;
    tree::write_erofs(tree, file).map_err(|source| image_fault(output, source))
}

fn image_fault(
    output: &'static str,
    source: impl std::error::Error + Send + Sync + 'static,
) -> BuildError {
    BuildError::Image { output, source: Box::new(source) }
}

/// Rounds a file up to what the kernel accepts as persistent memory: whole 2 MiB pages.
fn pad_to_pmem(file: &File) -> std::io::Result<()> {
    file.set_len(file.metadata()?.len().next_multiple_of(2 << 20))
}

/// All inputs, read and checked.
struct Inputs {
    kernel: Kernel,
    kernel_image: Vec<u8>,
    agent: Vec<u8>,
    busybox: Vec<u8>,
    applets: Vec<String>,
    plan: ModulePlan,
    modules: Vec<Module>,
    signed: bool,
    records: Vec<FileRecord>,
}

impl Inputs {
    fn read(recipe: &GuestRecipe) -> Result<Self, BuildError> {
        let kernel_image = read_input("kernel", &recipe.kernel)?;
        let kernel = Kernel::parse(&kernel_image).map_err(|source| recipe.kernel_fault(source))?;
        let agent = read_executable("agent", &recipe.agent)?;
        let busybox = read_executable("busybox", &recipe.busybox)?;
        let applets = busybox::applets(&recipe.busybox).map_err(|source| BuildError::Input {
            role: "busybox",
            path: recipe.busybox.clone(),
            source,
        })?;
        let modules_fault = |source| BuildError::Modules { path: recipe.modules.clone(), source };
        let directory =
            modules_of_release(&recipe.modules, &kernel.release).map_err(modules_fault)?;
        // A kernel of which nothing is known keeps them.
        let configuration = signature::configuration(&directory, &kernel.release);
        let signed = !configuration.as_deref().is_some_and(signature::are_optional);
        let (plan, modules) =
            read_modules(&directory, &kernel.release, signed).map_err(modules_fault)?;

        let mut records = vec![
            FileRecord::of("kernel", &kernel_image),
            FileRecord::of("agent", &agent),
            FileRecord::of("busybox", &busybox),
        ];
        if let Some(text) = &configuration {
            records.push(FileRecord::of("configuration", text.as_bytes()));
        }
        for module in &modules {
            records.push(FileRecord::of(format!("module/{}", module.file), &module.stored));
        }
        Ok(Self { kernel, kernel_image, agent, busybox, applets, plan, modules, signed, records })
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
                signed: self.signed,
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
    signed: bool,
) -> Result<(ModulePlan, Vec<Module>), ModuleError> {
    let plan = ModulePlan::new(&ModuleIndex::read(directory, release)?)?;
    let read = |file: &String| {
        let mut module = read_module(directory, file)?;
        if !signed {
            let length = signature::without_signature(&module.object).len();
            module.object.truncate(length);
        }
        Ok(module)
    };
    let modules = plan.all.iter().map(read).collect::<Result<_, _>>()?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_keep_their_signatures_only_where_they_must() {
        let place = tempfile::tempdir().unwrap();
        let mut dep = String::new();
        for name in crate::BOOT_MODULES {
            let module = b"\x7fELFsig\0\0\x02\0\0\0\0\0\0\0\0\x03~Module signature appended~\n";
            std::fs::write(place.path().join(format!("{name}.ko")), module).unwrap();
            dep += &format!("{name}.ko:\n");
        }
        std::fs::write(place.path().join("modules.dep"), dep).unwrap();
        std::fs::write(place.path().join("modules.builtin"), "").unwrap();
        let objects = |signed| read_modules(place.path(), "6.1.0", signed).unwrap().1;
        assert!(objects(false).iter().all(|module| module.object == b"\x7fELF"));
        assert!(objects(true).iter().all(|module| module.object == module.stored));
        assert!(objects(true).len() >= crate::BOOT_MODULES.len());
    }

    /// If this fails, the recipe has changed: give [`RECIPE`] the next number, so that files made
    /// before count as stale, and write the new digest here.
    #[test]
    fn the_recipe_number_stands_for_these_bytes() {
        let module = Module {
            file: "kernel/erofs.ko".into(),
            stored: b"\x7fELF".to_vec(),
            object: b"\x7fELF".to_vec(),
        };
        let dep: String =
            crate::BOOT_MODULES.iter().map(|name| format!("kernel/{name}.ko:\n")).collect();
        let plan = ModulePlan::new(&ModuleIndex::parse(&dep, "").unwrap()).unwrap();
        let modules = [module];
        let tree = initrd::guest_tree(b"agent", "6.1.0", &plan, &modules);
        let mut bytes = initrd::initrd(&tree);
        let mut image = tempfile::tempfile().unwrap();
        erofs("rootfs.erofs", &image, &busybox::rootfs(b"busybox", &["bin/sh".into()])).unwrap();
        std::io::Seek::rewind(&mut image).unwrap();
        std::io::Read::read_to_end(&mut image, &mut bytes).unwrap();
        let digest = FileRecord::of("all", &bytes).sha256;
        assert_eq!(
            (RECIPE, digest.as_str()),
            (4, "4752f0293f56a9eaedad994060168ad268c9d8e33bf7a1ec93b873e022ddb259")
        );
    }
}
