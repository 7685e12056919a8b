//! The two servers that stand beside a network, on loopback addresses of a namespace of the test's own.
#![allow(clippy::unwrap_used)] // A failed unwrap is a failed test.

#[path = "../../../fuzz/src/names.rs"]
mod fuzz;
mod support;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use coracle_net::private::{Lease, NetworkRecord};
use coracle_net::process::Sidecar;
use coracle_net::rates::Rates;
use coracle_net::{dns, forward};
use simple_dns::rdata::RData;
use simple_dns::{CLASS, Name, Packet, Question, RCODE, TYPE};
use support::World;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UdpSocket};
use tokio::sync::oneshot;

/// The servers run in the test's own process.
fn this_process() -> Sidecar {
    Sidecar { pid: std::process::id(), start_time: 0 }
}

fn lease(address: &str, published: &[&str], egress: &str) -> Lease {
    Lease {
        addresses: vec![address.parse().unwrap()],
        mac: String::new(),
        tap: String::new(),
        aliases: Vec::new(),
        published: published.iter().map(|port| port.parse().unwrap()).collect(),
        egress: egress.parse().unwrap(),
        rates: Rates::default(),
        forwarder: Some(this_process()),
    }
}

/// Writes the record of a network of these sandboxes.
fn record(folder: &Path, leases: Vec<(&str, Lease)>) {
    let network = NetworkRecord {
        schema: NetworkRecord::SCHEMA,
        name: "lab".to_owned(),
        namespace: (0, 0),
        table: String::new(),
        subnets: vec!["127.53.0.0/24".parse().unwrap()],
        mtu: 1500,
        is_ready: true,
        names: Some(this_process()),
        leases: leases.into_iter().map(|(n, l)| (n.to_owned(), l)).collect::<BTreeMap<_, _>>(),
    };
    std::fs::create_dir_all(folder).unwrap();
    let text = serde_json::to_vec(&network).unwrap();
    std::fs::write(folder.join("network.json"), text).unwrap();
}

/// Runs work in the namespace, on a runtime of its own, within a limit far longer than it can take.
fn run(world: &World, work: impl Future<Output = ()> + Send) {
    let done = world.run(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime
            .block_on(async { tokio::time::timeout(Duration::from_secs(60), work).await.unwrap() });
        runtime.shutdown_background();
        Ok(())
    });
    done.unwrap();
}

fn query(id: u16, name: &str) -> Vec<u8> {
    let mut packet = Packet::new_query(id);
    let name = Name::new(name).unwrap();
    packet.questions.push(Question::new(name, TYPE::A.into(), CLASS::IN.into(), false));
    packet.build_bytes_vec().unwrap()
}

#[test]
fn names_are_served_over_both_transports_until_the_network_is_gone() {
    let world = World::new();
    let folder = world.path("networks/lab");
    record(
        &folder,
        vec![("web", lease("127.53.0.2", &[], "all")), ("shut", lease("127.53.0.3", &[], "none"))],
    );
    run(&world, async {
        let (tell, ready) = oneshot::channel();
        let serving = dns::serve(&folder, || tell.send(()).unwrap());
        let asking = async {
            ready.await.unwrap();
            // By datagram.
            let socket = UdpSocket::bind("127.53.0.3:0").await.unwrap();
            let mut buffer = [0; 512];
            for (name, code, address) in
                [("web", RCODE::NoError, Some("127.53.0.2")), ("example.org", RCODE::Refused, None)]
            {
                socket.send_to(&query(7, name), "127.53.0.1:53").await.unwrap();
                let length = socket.recv(&mut buffer).await.unwrap();
                let answer = Packet::parse(&buffer[..length]).unwrap();
                assert_eq!((answer.id(), answer.rcode()), (7, code), "{name}");
                let found = answer.answers.first().map(|record| match &record.rdata {
                    RData::A(a) => std::net::Ipv4Addr::from(a.address).to_string(),
                    other => panic!("{other:?}"),
                });
                assert_eq!(found.as_deref(), address, "{name}");
            }
            // Two questions over one connection, and rubbish that ends it.
            let from = TcpSocket::new_v4().unwrap();
            from.bind("127.53.0.3:0".parse().unwrap()).unwrap();
            let mut stream = from.connect("127.53.0.1:53".parse().unwrap()).await.unwrap();
            for id in [1, 2] {
                let question = query(id, "web");
                stream.write_u16(u16::try_from(question.len()).unwrap()).await.unwrap();
                stream.write_all(&question).await.unwrap();
                let length = stream.read_u16().await.unwrap();
                let mut answer = vec![0; length.into()];
                stream.read_exact(&mut answer).await.unwrap();
                assert_eq!(Packet::parse(&answer).unwrap().id(), id);
            }
            stream.write_all(&[0, 3, 1, 2, 3]).await.unwrap();
            assert_eq!(stream.read(&mut buffer).await.unwrap(), 0);
            std::fs::remove_dir_all(&folder).unwrap();
        };
        let (served, ()) = tokio::join!(serving, asking);
        served.unwrap();
    });
}

#[test]
fn ports_carry_connections_with_their_ends_and_datagrams_with_their_senders() {
    let world = World::new();
    let folder = world.path("networks/lab");
    let ports = ["127.0.0.1:8080:80", "127.0.0.1:8053:53/udp"];
    record(&folder, vec![("web", lease("127.53.0.2", &ports, "all"))]);
    run(&world, async {
        // The sandbox: it answers a connection when that has ended, and each datagram at once.
        let streams = TcpListener::bind("127.53.0.2:80").await.unwrap();
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = streams.accept().await.unwrap();
                tokio::spawn(async move {
                    let mut asked = String::new();
                    stream.read_to_string(&mut asked).await.unwrap();
                    stream.write_all(asked.to_uppercase().as_bytes()).await.unwrap();
                });
            }
        });
        let datagrams = UdpSocket::bind("127.53.0.2:53").await.unwrap();
        tokio::spawn(async move {
            let mut buffer = [0; 2048];
            loop {
                let (length, from) = datagrams.recv_from(&mut buffer).await.unwrap();
                datagrams.send_to(&buffer[..length].to_ascii_uppercase(), from).await.unwrap();
            }
        });
        let (tell, ready) = oneshot::channel();
        let serving = forward::serve(&folder, "web", || tell.send(()).unwrap());
        let asking = async {
            ready.await.unwrap();
            let mut all = Vec::new();
            for n in 0..20 {
                all.push(tokio::spawn(async move {
                    let mut stream = TcpStream::connect("127.0.0.1:8080").await.unwrap();
                    let asked = format!("{n} ").repeat(5000) + "end";
                    let (mut read, mut write) = stream.split();
                    write.write_all(asked.as_bytes()).await.unwrap();
                    write.shutdown().await.unwrap();
                    let mut answer = String::new();
                    read.read_to_string(&mut answer).await.unwrap();
                    assert_eq!(answer, asked.to_uppercase());
                }));
            }
            for asked in all {
                asked.await.unwrap();
            }
            // Two senders, each of which hears its own answers.
            let one = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            let two = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            let mut buffer = [0; 64];
            for (socket, word) in [(&one, "one"), (&two, "two"), (&one, "again")] {
                socket.send_to(word.as_bytes(), "127.0.0.1:8053").await.unwrap();
                let length = socket.recv(&mut buffer).await.unwrap();
                assert_eq!(buffer[..length], *word.to_uppercase().as_bytes());
            }
            // Off the network, the ports are free.
            record(&folder, Vec::new());
        };
        let (served, ()) = tokio::join!(serving, asking);
        served.unwrap();
    });
    // Nobody else can have a port that is published.
    record(&folder, vec![("web", lease("127.53.0.2", &["127.0.0.1:8080:80"], "all"))]);
    run(&world, async {
        let _taken = TcpListener::bind("127.0.0.1:8080").await.unwrap();
        let error = forward::serve(&folder, "web", || panic!("it serves")).await.unwrap_err();
        assert_eq!(error.to_string(), "cannot listen on 127.0.0.1:8080");
        let error = forward::serve(&folder, "nobody", || panic!("it serves")).await.unwrap_err();
        assert!(error.to_string().contains("nobody"), "{error}");
    });
}

#[test]
fn the_name_server_holds_for_damaged_questions() {
    let mut questions = vec![Vec::new(), query(7, "web"), query(8, "example.org")];
    questions.push(query(9, "2.0.0.10.in-addr.arpa"));
    for question in questions {
        fuzz::name_question(&question);
        for at in 0..question.len() {
            for bit in 0..8 {
                let mut damaged = question.clone();
                damaged[at] ^= 1 << bit;
                fuzz::name_question(&damaged);
            }
            fuzz::name_question(&question[..at]);
        }
    }
}

#[test]
fn a_server_that_no_record_knows_of_ends() {
    let world = World::new();
    let folder = world.path("networks/lab");
    let mut unknown = lease("127.53.0.2", &["127.0.0.1:8080:80"], "all");
    unknown.forwarder = Some(Sidecar { pid: 1, start_time: 0 });
    record(&folder, vec![("web", unknown)]);
    run(&world, async { forward::serve(&folder, "web", || {}).await.unwrap() });
    let text = std::fs::read_to_string(folder.join("network.json")).unwrap();
    let own = format!("\"names\":{{\"pid\":{}", std::process::id());
    let text = text.replacen(&own, "\"names\":{\"pid\":1", 1);
    assert!(!text.contains(&own));
    std::fs::write(folder.join("network.json"), text).unwrap();
    run(&world, async { dns::serve(&folder, || {}).await.unwrap() });
}
