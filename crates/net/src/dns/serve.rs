//! The server: datagrams and connections in, answers out.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

use super::answer::{Decision, decide};
use crate::private::{NetworkRecord, Networks};
use crate::process::Sidecar;
use crate::{NetError, Result};

const PORT: u16 = 53;
/// The largest datagram; more than any resolver sends or takes.
const LARGEST: usize = 4096;
/// How many questions are under way at once: more are not read meanwhile.
const AT_ONCE: usize = 256;
/// How long another server may take.
const PATIENCE: Duration = Duration::from_secs(4);
/// How long a connection may say nothing.
const IDLE: Duration = Duration::from_secs(10);
/// How often we look whether the network is still there.
const LOOK: Duration = Duration::from_secs(2);

/// Serves the names of the network in `folder` until its record is gone. Calls `ready` once it
/// listens.
///
/// Not cancel safe, nor need it be: it owns its sockets and tasks, which end with the runtime.
///
/// # Errors
/// The record cannot be read; an address cannot be listened on.
pub async fn serve(folder: &Path, ready: impl FnOnce()) -> Result<()> {
    let gone = || NetError::NoNetwork { name: folder.display().to_string() };
    let network = NetworkRecord::read(folder)?.ok_or_else(gone)?;
    let server = Arc::new(Server {
        networks: Networks::at(folder.parent().unwrap_or(folder).to_owned(), None),
        name: network.name.clone(),
        questions: Arc::new(Semaphore::new(AT_ONCE)),
    });
    for ip in network.gateways() {
        let address = SocketAddr::new(ip, PORT);
        let failed = |source| NetError::Listen { address, source };
        let datagrams = UdpSocket::bind(address).await.map_err(failed)?;
        let connections = TcpListener::bind(address).await.map_err(failed)?;
        tokio::spawn(server.clone().take_datagrams(Arc::new(datagrams)));
        tokio::spawn(server.clone().take_connections(connections));
    }
    ready();
    // Whoever started us and died before it wrote so down must not leave us in the way of the next.
    let is_us = |sidecar: Sidecar| sidecar.pid == std::process::id();
    loop {
        sleep(LOOK).await;
        let network = NetworkRecord::read(folder).ok().flatten();
        if !network.and_then(|network| network.names).is_some_and(is_us) {
            return Ok(());
        }
    }
}

#[derive(Debug)]
struct Server {
    networks: Networks,
    name: String,
    questions: Arc<Semaphore>,
}

impl Server {
    async fn take_datagrams(self: Arc<Self>, socket: Arc<UdpSocket>) {
        let mut buffer = [0; LARGEST];
        loop {
            let Ok(permit) = self.questions.clone().acquire_owned().await else { return };
            let Ok((length, from)) = socket.recv_from(&mut buffer).await else { continue };
            let (question, server, socket) =
                (buffer[..length].to_vec(), self.clone(), socket.clone());
            tokio::spawn(async move {
                if let Some(answer) = server.answer(from.ip(), &question, Upstream::Datagrams).await
                {
                    // Whoever does not hear it asks again.
                    let _ = socket.send_to(&answer, from).await;
                }
                drop(permit);
            });
        }
    }

    async fn take_connections(self: Arc<Self>, listener: TcpListener) {
        loop {
            let Ok(permit) = self.questions.clone().acquire_owned().await else { return };
            let Ok((stream, from)) = listener.accept().await else { continue };
            let server = self.clone();
            tokio::spawn(async move {
                // A connection ends when its peer does, says nothing, or makes no sense.
                let _ = server.converse(stream, from.ip()).await;
                drop(permit);
            });
        }
    }

    async fn converse(&self, mut stream: TcpStream, from: IpAddr) -> io::Result<()> {
        loop {
            let question = timeout(IDLE, read_message(&mut stream)).await??;
            let answer = self.answer(from, &question, Upstream::Connections).await;
            let Some(answer) = answer else { return Ok(()) };
            timeout(IDLE, write_message(&mut stream, &answer)).await??;
        }
    }

    async fn answer(&self, from: IpAddr, question: &[u8], by: Upstream) -> Option<Vec<u8>> {
        match decide(&self.networks.all().ok()?, &self.name, from, question) {
            Decision::Answer(answer) => Some(answer),
            Decision::Ignore => None,
            Decision::AskOthers(failure) => Some(ask_others(question, by).await.unwrap_or(failure)),
        }
    }
}

#[derive(Debug, Clone, Copy)]
enum Upstream {
    Datagrams,
    Connections,
}

/// Asks the host's servers, one after the other.
async fn ask_others(question: &[u8], by: Upstream) -> Option<Vec<u8>> {
    let text = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    for server in servers(&text) {
        let asked = async {
            match by {
                Upstream::Datagrams => by_datagram(server, question).await,
                Upstream::Connections => by_connection(server, question).await,
            }
        };
        if let Ok(Ok(answer)) = timeout(PATIENCE, asked).await {
            return Some(answer);
        }
    }
    None
}

async fn by_datagram(server: SocketAddr, question: &[u8]) -> io::Result<Vec<u8>> {
    let any: IpAddr = if server.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(server).await?;
    socket.send(question).await?;
    let mut buffer = vec![0; LARGEST];
    loop {
        let length = socket.recv(&mut buffer).await?;
        // The first two bytes tell which question it answers.
        if length >= 2 && buffer[..2] == question[..2] {
            buffer.truncate(length);
            return Ok(buffer);
        }
    }
}

async fn by_connection(server: SocketAddr, question: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    write_message(&mut stream, question).await?;
    read_message(&mut stream).await
}

async fn read_message(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let length = stream.read_u16().await?;
    let mut message = vec![0; length.into()];
    stream.read_exact(&mut message).await?;
    Ok(message)
}

async fn write_message(stream: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(io::Error::other)?;
    let mut whole = length.to_be_bytes().to_vec();
    whole.extend(message);
    stream.write_all(&whole).await
}

/// The servers a `resolv.conf` names.
fn servers(text: &str) -> Vec<SocketAddr> {
    let address = |line: &str| {
        let mut words = line.split_whitespace();
        let ip = words.next().filter(|word| *word == "nameserver").and_then(|_| words.next())?;
        Some(SocketAddr::new(ip.parse().ok()?, PORT))
    };
    text.lines().filter_map(address).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_servers_are_read() {
        let text =
            "# x\nsearch a\nnameserver 10.0.0.53\nnameserver  fd00::53 \nnameserver fe80::1%eth0\n";
        let texts: Vec<String> = servers(text).iter().map(SocketAddr::to_string).collect();
        assert_eq!(texts, ["10.0.0.53:53", "[fd00::53]:53"]);
    }
}
