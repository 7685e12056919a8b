//! Datagrams: each sender has a socket of its own toward the sandbox for as long as it says something.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::net::sockopt;
use tokio::net::UdpSocket;
use tokio::time::timeout;

/// How long a sender is remembered after the last answer to it.
const IDLE: Duration = Duration::from_secs(60);
/// How many senders one port has at once; further ones are not heard.
const AT_ONCE: usize = 512;
const LARGEST: usize = 65_536;

type Senders = Arc<Mutex<HashMap<SocketAddr, Arc<UdpSocket>>>>;

/// Listens, and carries on a task of its own what comes in.
pub(super) async fn listen(address: SocketAddr, to: SocketAddr) -> io::Result<()> {
    let socket = Arc::new(UdpSocket::from_std(bind(address)?)?);
    tokio::spawn(take(socket, to));
    Ok(())
}

fn bind(address: SocketAddr) -> io::Result<std::net::UdpSocket> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, socket_with};
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = socket_with(family, SocketType::DGRAM, flags, None)?;
    if address.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, true)?;
    }
    bind(&socket, &address)?;
    Ok(socket.into())
}

async fn take(socket: Arc<UdpSocket>, to: SocketAddr) {
    let senders = Senders::default();
    let mut buffer = vec![0; LARGEST];
    loop {
        // An error here is an answer to something sent before.
        let Ok((length, from)) = socket.recv_from(&mut buffer).await else { continue };
        let known = locked(&senders).get(&from).cloned();
        let toward = match known {
            Some(toward) => toward,
            None if locked(&senders).len() >= AT_ONCE => continue,
            None => {
                let Ok(toward) = dial(to).await else { continue };
                let toward = Arc::new(toward);
                locked(&senders).insert(from, toward.clone());
                tokio::spawn(answer(socket.clone(), toward.clone(), from, senders.clone()));
                toward
            }
        };
        // What gets lost is lost, as datagrams do.
        let _ = toward.send(&buffer[..length]).await;
    }
}

/// Carries answers back until there were none for a while.
async fn answer(back: Arc<UdpSocket>, toward: Arc<UdpSocket>, to: SocketAddr, senders: Senders) {
    let mut buffer = vec![0; LARGEST];
    while let Ok(received) = timeout(IDLE, toward.recv(&mut buffer)).await {
        if let Ok(length) = received {
            let _ = back.send_to(&buffer[..length], to).await;
        } else {
            // Nobody listens there as yet: do not spin on it.
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    locked(&senders).remove(&to);
}

async fn dial(to: SocketAddr) -> io::Result<UdpSocket> {
    let any: IpAddr = if to.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(to).await?;
    Ok(socket)
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // Each change is one call.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
