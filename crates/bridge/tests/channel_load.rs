//! Many connections through one channel.
#![allow(clippy::unwrap_used)]

mod channel_common;

use channel_common::{PATIENCE, pattern, start};
use coracle_bridge::channel::GuestChannel;
use std::fs;
use std::io::ErrorKind;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy};
use tokio::task::JoinSet;
use tokio::time::timeout;

const ECHO: u32 = 7;

/// Sends back whatever is sent, on every connection the host opens.
async fn echo(guest: GuestChannel) {
    while let Ok((_, stream)) = guest.accept().await {
        tokio::spawn(async move {
            let (mut reader, mut writer) = tokio::io::split(stream);
            if copy(&mut reader, &mut writer).await.is_ok() {
                let _ = writer.shutdown().await;
            }
        });
    }
}

fn open_descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

#[tokio::test]
async fn two_hundred_connections_at_once_are_all_served() {
    let channel = start().await;
    tokio::spawn(echo(channel.guest.clone()));
    let mut dials = JoinSet::new();
    for n in 0..200u64 {
        let dir = channel.dir.clone();
        dials.spawn(async move {
            let mut host = dir.dial_within(ECHO, PATIENCE).await.unwrap();
            let sent = pattern(n, 5000);
            host.write_all(&sent).await.unwrap();
            host.shutdown().await.unwrap();
            let mut got = Vec::new();
            host.read_to_end(&mut got).await.unwrap();
            assert!(got == sent, "connection {n} got other bytes than it sent");
        });
    }
    let mut served = 0;
    while let Some(end) = dials.join_next().await {
        end.unwrap();
        served += 1;
    }
    assert_eq!(served, 200);
}

#[tokio::test]
async fn ten_thousand_connections_leave_no_descriptor_behind() {
    let channel = start().await;
    tokio::spawn(echo(channel.guest.clone()));
    let dial = async |n: u32| {
        let mut host = channel.dir.dial_within(ECHO, PATIENCE).await.unwrap();
        // Every way of leaving: politely, at once, and with bytes unread.
        match n % 3 {
            0 => {
                host.write_u32(n).await.unwrap();
                host.shutdown().await.unwrap();
                assert_eq!(host.read_u32().await.unwrap(), n);
                assert_eq!(host.read(&mut [0]).await.unwrap(), 0);
            }
            1 => {}
            _ => host.write_u32(n).await.unwrap(),
        }
    };
    for n in 0..20 {
        dial(n).await;
    }
    let before = open_descriptors();
    for n in 0..10_000 {
        dial(n).await;
    }
    // The last ones may still be on their way out.
    timeout(PATIENCE, async {
        while open_descriptors() > before + 8 {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap_or_else(|_| panic!("{} descriptors, {before} before", open_descriptors()));
}

#[tokio::test]
async fn a_reader_that_stalls_holds_up_its_own_writer_only() {
    let channel = start().await;
    let listener = channel.dir.listen(9).unwrap();
    let (stalled, writer) = tokio::join!(listener.accept(), channel.guest.dial(9));
    let (stalled, mut writer) = (stalled.unwrap(), writer.unwrap());
    let flood = tokio::spawn(async move {
        let mut written = 0u64;
        let bytes = vec![0; 64 * 1024];
        while let Ok(n) = writer.write(&bytes).await {
            written += n as u64;
        }
        written
    });
    tokio::spawn(echo(channel.guest.clone()));
    let mut other = channel.dir.dial_within(ECHO, PATIENCE).await.unwrap();
    for n in 0..2000 {
        timeout(PATIENCE, async {
            other.write_u32(n).await.unwrap();
            assert_eq!(other.read_u32().await.unwrap(), n);
        })
        .await
        .expect("a stalled reader holds up another");
    }
    assert!(!flood.is_finished(), "the flood found room without end");
    drop(stalled);
    let written = timeout(PATIENCE, flood).await.expect("a write hangs").unwrap();
    assert!(written < 2 << 20, "{written} bytes were held for a reader that did not read");
}

#[tokio::test]
async fn a_host_that_closes_with_bytes_unread_resets_the_guest() {
    let channel = start().await;
    let listener = channel.dir.listen(9).unwrap();
    let (host, guest) = tokio::join!(listener.accept(), channel.guest.dial(9));
    let mut guest = guest.unwrap();
    guest.write_all(b"never read").await.unwrap();
    let mut host = host.unwrap();
    host.read_exact(&mut [0]).await.unwrap();
    drop(host);
    let error = timeout(PATIENCE, guest.read(&mut [0])).await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn a_host_that_closes_ends_the_guests_reading_and_its_writing() {
    let channel = start().await;
    let listener = channel.dir.listen(9).unwrap();
    let (host, guest) = tokio::join!(listener.accept(), channel.guest.dial(9));
    let mut guest = guest.unwrap();
    let mut host = host.unwrap();
    host.write_all(b"bye").await.unwrap();
    drop(host);
    let mut text = String::new();
    timeout(PATIENCE, guest.read_to_string(&mut text)).await.unwrap().unwrap();
    assert_eq!(text, "bye");
    let error = timeout(PATIENCE, async {
        loop {
            if let Err(error) = guest.write_all(&[0; 1024]).await {
                return error;
            }
        }
    });
    assert_eq!(error.await.unwrap().kind(), ErrorKind::BrokenPipe);
}

#[tokio::test]
async fn a_guests_last_words_arrive_however_soon_it_hangs_up() {
    let channel = start().await;
    for n in 0..100 {
        let words = pattern(n, 3000);
        let guest = async {
            let (_, mut guest) = channel.guest.accept().await.unwrap();
            guest.write_all(&words).await.unwrap();
            guest.shutdown().await.unwrap();
            // It reads no more, and says so in the same breath as everything before.
            drop(guest);
        };
        let (host, ()) = tokio::join!(channel.dir.dial_within(9, PATIENCE), guest);
        let mut host = host.unwrap();
        let mut got = Vec::new();
        timeout(PATIENCE, host.read_to_end(&mut got)).await.unwrap().unwrap();
        assert!(got == words, "{} of {} bytes came", got.len(), words.len());
        let error = timeout(PATIENCE, async {
            loop {
                if let Err(error) = host.write_all(b"too late").await {
                    return error;
                }
            }
        });
        assert_eq!(error.await.unwrap().kind(), ErrorKind::BrokenPipe);
    }
}
