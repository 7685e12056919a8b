//! A pipe's throughput, beside a raw port: a program in the guest writes into a socket of the host.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use coracle_uvm::UtilityVm;
use tokio::io::AsyncReadExt;
use tokio::net::UnixListener;

use crate::live::in_vm;
use crate::raw;
use crate::table::{Budget, Row};

/// Blocks of 64 KiB.
const BLOCKS: u32 = 2048;

/// Nothing in the guest dials a unix socket, so this does.
const WRITER: &str = r#"
#include <string.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>
static char block[65536];
int main(int argc, char **argv) {
    struct sockaddr_un at = { .sun_family = AF_UNIX };
    strncpy(at.sun_path, argv[1], sizeof at.sun_path - 1);
    int s = socket(AF_UNIX, SOCK_STREAM, 0);
    if (connect(s, (struct sockaddr *)&at, sizeof at)) return 1;
    for (int n = atoi(argv[2]); n > 0; n--)
        for (size_t done = 0; done < sizeof block;) {
            ssize_t w = write(s, block + done, sizeof block - done);
            if (w <= 0) return 1;
            done += w;
        }
    return 0;
}"#;

/// From the guest to the host, three times, each beside a raw port's.
///
/// # Errors
/// The pipe or the port breaks.
pub async fn measure(vm: &UtilityVm, place: &Path, guest: &Path) -> Result<Row> {
    let tools = place.join("tools");
    std::fs::create_dir(&tools)?;
    std::fs::write(tools.join("w.c"), WRITER)?;
    let built = Command::new("gcc")
        .args(["-O2", "-static", "-o"])
        .args([tools.join("w"), tools.join("w.c")])
        .status()
        .context("cannot start gcc")?;
    ensure!(built.success(), "the writer cannot be built");
    let tools = tools.to_str().context("a path is no text")?;
    let share = vm.add_plan9(tools, "/run/mounts/w", true, false, &[]).await?;
    let socket = place.join("pipe.sock");
    let listener = UnixListener::bind(&socket)?;
    let socket = socket.to_str().context("a path is no text")?;
    let pipe = vm.add_pipe_at(socket, "/run/pipes/w").await?;
    let (mut ours, mut raw) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        let at = guest.to_owned();
        raw.push(tokio::task::spawn_blocking(move || raw::copy(&at, BLOCKS)).await??.to_host);
        let script = format!("/run/mounts/w/w /run/pipes/w {BLOCKS}");
        let process = vm.create_process(&in_vm(&script)).await?;
        let (mut stream, _) = listener.accept().await?;
        let mut buffer = vec![0; 1 << 18];
        let total = u64::from(BLOCKS) * 65536;
        let (began, mut got) = (Instant::now(), 0);
        while let count @ 1.. = stream.read(&mut buffer).await? {
            got += count as u64;
        }
        ensure!(got == total, "{got} of {total} bytes came");
        ours.push(raw::rate(total, began));
        process.wait().await?;
    }
    pipe.release().await?;
    share.release().await?;
    ours.sort_by(f64::total_cmp);
    raw.sort_by(f64::total_cmp);
    Ok(Row {
        what: "pipe guest to host vs. a raw port".to_owned(),
        value: ours[1] / raw[1],
        unit: "x",
        budget: Budget::AtLeast(0.4),
        detail: format!("{:.0} MB/s against {:.0} MB/s raw", ours[1] / 1e6, raw[1] / 1e6),
    })
}
