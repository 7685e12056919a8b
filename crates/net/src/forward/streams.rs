//! Connections, each carried to its end in both directions.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustix::net::sockopt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

/// How many connections one port carries at once; more wait.
const AT_ONCE: usize = 1024;
/// How long the sandbox may take to accept one.
const PATIENCE: Duration = Duration::from_secs(10);

/// Listens, and carries on a task of its own what comes in.
pub(super) async fn listen(address: SocketAddr, to: SocketAddr) -> io::Result<()> {
    let listener = TcpListener::from_std(bind(address)?)?;
    tokio::spawn(accept(listener, to));
    Ok(())
}

/// An IPv6 socket is of that family alone: the other has one of its own.
fn bind(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, listen, socket_with};
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = socket_with(family, SocketType::STREAM, flags, None)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    if address.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, true)?;
    }
    bind(&socket, &address)?;
    listen(&socket, 128)?;
    Ok(socket.into())
}

async fn accept(listener: TcpListener, to: SocketAddr) {
    let room = Arc::new(Semaphore::new(AT_ONCE));
    loop {
        let Ok(permit) = room.clone().acquire_owned().await else { return };
        let Ok((stream, _)) = listener.accept().await else {
            // No descriptor is free: one will be.
            sleep(Duration::from_millis(50)).await;
            continue;
        };
        tokio::spawn(async move {
            // Either end may go at any time, which is how connections end.
            let _ = carry(stream, to).await;
            drop(permit);
        });
    }
}

async fn carry(mut from: TcpStream, to: SocketAddr) -> io::Result<()> {
    let mut to = timeout(PATIENCE, TcpStream::connect(to)).await??;
    from.set_nodelay(true)?;
    to.set_nodelay(true)?;
    tokio::io::copy_bidirectional(&mut from, &mut to).await?;
    Ok(())
}
