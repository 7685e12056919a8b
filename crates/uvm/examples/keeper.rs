//! A keeper of a VM's channel as a process of its own, for programs that are not `coracle`.
//!
//! ```text
//! keeper --dir RUN_DIR
//! ```

use coracle_uvm::keeper::{ChannelDir, Keeper, run};
use tokio::signal::unix::{SignalKind, signal};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args_os().skip(1);
    let (Some(flag), Some(dir)) = (arguments.next(), arguments.next()) else {
        return Err("usage: keeper --dir RUN_DIR".into());
    };
    if flag != "--dir" {
        return Err("usage: keeper --dir RUN_DIR".into());
    }
    let mut terminated = signal(SignalKind::terminate())?;
    let stop = async {
        terminated.recv().await;
    };
    run(Keeper::new(ChannelDir::new(dir)), stop).await?;
    Ok(())
}
