//! The owner of one VM, for tests to kill: launches it paused, prints its identity as JSON on one
//! line, and waits until it is killed itself.
//!
//! `coracle-vm-owner (qemu | FAKE-PROGRAM) RUN-DIR (dies | stays) [EFFECT]`; with an effect's
//! number it dies by SIGKILL at that effect of the launch. `CORACLE_VM_NAME` names the VM.

use std::{env::args, process::ExitCode};

use coracle_vmm::{
    Accel, Boot, VmConfig, Vmm,
    effect::{Effects, Interruption},
    fake::FakeVmm,
    qemu::Qemu,
};

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let words: Vec<String> = args().skip(1).collect();
    let [monitor, run_dir, fate, effect @ ..] = words.as_slice() else {
        eprintln!("usage: coracle-vm-owner (qemu | FAKE-PROGRAM) RUN-DIR (dies | stays) [EFFECT]");
        return ExitCode::FAILURE;
    };
    let at = effect.first().and_then(|effect| effect.parse().ok()).unwrap_or(0);
    let effects = Effects::interrupt(at, Interruption::Die);
    let vmm: Box<dyn Vmm> = match monitor.as_str() {
        "qemu" => Box::new(Qemu::new().with_effects(effects)),
        program => Box::new(FakeVmm::new(program).with_effects(effects)),
    };
    let mut config = VmConfig::new(uuid::Uuid::new_v4(), run_dir, Boot::None);
    config.paused = true;
    config.accel = Accel::Tcg;
    if let Ok(name) = std::env::var("CORACLE_VM_NAME") {
        config.name = name;
    }
    config.die_with_owner = fate == "dies";
    match vmm.launch(config).await {
        Ok(vm) => {
            println!("{}", serde_json::to_string(vm.identity()).unwrap_or_default());
            let reason = vm.wait().await;
            eprintln!("{reason}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
