//! Boots a VM, prints its process id and its timeline, and waits until it ends.
//!
//! ```text
//! cargo run -p coracle-uvm --example boot [RUN_DIR]
//! ```

use coracle_uvm::UtilityVm;
use coracle_uvm::options::OptionsLcow;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut options = OptionsLcow::new_default("", "example");
    options.options.memory_size_in_mb = 256;
    options.options.processor_count = 1;
    options.host.run_dir = std::env::args_os().nth(1).map(Into::into);
    let vm = UtilityVm::create_lcow(options).await?;
    vm.start().await?;
    println!("pid {}", vm.vm_identity().pid);
    let timeline = vm.timeline();
    for (stage, at) in &timeline.marks {
        let since = *at - timeline.marks[0].1;
        println!("{:>6} ms  {}", since.as_millis(), stage.name());
    }
    vm.wait().await;
    vm.exit_error()?;
    vm.close().await?;
    Ok(())
}
