//! Tables deleted, without `nft`: for that a name is enough, and starting the program takes longer than
//! all else that leaving a network does.
//!
//! One transaction, as the kernel's `nfnetlink` wants it: a message that begins it, one for each change,
//! one that ends it. Each is a netlink header, a netfilter header (family, version, subsystem) and, of a
//! change, the table's name.

use std::io;

use rtnetlink::sys::protocols::NETLINK_NETFILTER;
use rtnetlink::sys::{Socket, SocketAddr};

use super::table_of;
use crate::{NetError, Result};

const BEGIN: u16 = 0x10;
const END: u16 = 0x11;
const ERROR: u16 = 2;
/// `NFNL_SUBSYS_NFTABLES`, whose messages have it in the upper byte.
const NFTABLES: u16 = 10;
const NEW_TABLE: u16 = NFTABLES << 8;
const DELETE_TABLE: u16 = (NFTABLES << 8) | 2;

const REQUEST: u16 = 0x01;
const ACKNOWLEDGE: u16 = 0x04;
const CREATE: u16 = 0x400;

/// `NFPROTO_INET`: both versions of IP.
const INET: u8 = 1;
/// `NFTA_TABLE_NAME`
const NAME: u16 = 1;

/// Bytes of a netlink header.
const HEADER: usize = 16;

/// Deletes the tables of networks or taps. There being none is success. Blocks.
///
/// # Errors
/// The kernel refuses: all of them are there still.
pub fn delete(devices: &[&str]) -> Result<()> {
    let names: Vec<String> = devices.iter().map(|device| table_of(device)).collect();
    let failed = |source| NetError::System { what: "delete rules of the packet filter", source };
    run(&transaction(&names), names.len()).map_err(failed)
}

fn transaction(names: &[String]) -> Vec<u8> {
    let mut all = message(BEGIN, REQUEST, (0, NFTABLES), None);
    for name in names {
        // Deleting what is not there is an error, making what is there is none.
        all.extend(message(NEW_TABLE, REQUEST | CREATE, (INET, 0), Some(name)));
        all.extend(message(DELETE_TABLE, REQUEST | ACKNOWLEDGE, (INET, 0), Some(name)));
    }
    all.extend(message(END, REQUEST, (0, NFTABLES), None));
    all
}

fn message(kind: u16, flags: u16, (family, subsystem): (u8, u16), name: Option<&str>) -> Vec<u8> {
    let mut body = vec![family, 0];
    body.extend(subsystem.to_be_bytes());
    if let Some(name) = name {
        // Its header counts, what fills it up does not.
        let length = u16::try_from(4 + name.len() + 1).unwrap_or(u16::MAX);
        body.extend(length.to_ne_bytes());
        body.extend(NAME.to_ne_bytes());
        body.extend(name.as_bytes());
        body.push(0);
        body.resize(body.len().next_multiple_of(4), 0);
    }
    let length = u32::try_from(HEADER + body.len()).unwrap_or(u32::MAX);
    let mut message = length.to_ne_bytes().to_vec();
    message.extend(kind.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    // The number of the message, and of the sender: nobody else speaks here.
    message.extend([0; 8]);
    message.extend(body);
    message
}

fn run(transaction: &[u8], mut acknowledgements: usize) -> io::Result<()> {
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    socket.send(transaction, 0)?;
    while acknowledgements > 0 {
        let (answer, _) = socket.recv_from_full()?;
        acknowledgements = acknowledgements.saturating_sub(acknowledged(&answer)?);
    }
    Ok(())
}

/// How many acknowledgements are in an answer.
fn acknowledged(mut answer: &[u8]) -> io::Result<usize> {
    let cut_short =
        || io::Error::new(io::ErrorKind::InvalidData, "the kernel's answer is cut short");
    let mut count = 0;
    while !answer.is_empty() {
        let header = answer.first_chunk::<HEADER>().ok_or_else(cut_short)?;
        let [l0, l1, l2, l3, k0, k1, ..] = *header;
        let length = usize::try_from(u32::from_ne_bytes([l0, l1, l2, l3])).unwrap_or(usize::MAX);
        let message = answer.get(..length).filter(|_| length >= HEADER).ok_or_else(cut_short)?;
        if u16::from_ne_bytes([k0, k1]) == ERROR {
            let code = message[HEADER..].first_chunk().ok_or_else(cut_short)?;
            match i32::from_ne_bytes(*code) {
                0 => count += 1,
                code => return Err(io::Error::from_raw_os_error(code.saturating_neg())),
            }
        }
        answer = answer.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transaction_begins_makes_deletes_and_ends() {
        let bytes = transaction(&["coracle_a".to_owned()]);
        let mut kinds = Vec::new();
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let length = u32::from_ne_bytes(rest[..4].try_into().unwrap()) as usize;
            assert_eq!(length % 4, 0, "each begins where the kernel looks for it");
            kinds.push(u16::from_ne_bytes(rest[4..6].try_into().unwrap()));
            rest = &rest[length..];
        }
        assert_eq!(kinds, [BEGIN, NEW_TABLE, DELETE_TABLE, END]);
        let begin = &bytes[..20];
        assert_eq!(&begin[16..], [0, 0, 0, 10]);
        let table = &bytes[20..56];
        assert_eq!(&table[16..], b"\x01\0\0\0\x0e\0\x01\0coracle_a\0\0\0");
    }

    #[test]
    fn an_answer_is_counted_or_is_the_kernels_refusal() {
        let answer = |code: i32| {
            let mut bytes = message(ERROR, 0, (0, 0), None);
            bytes[HEADER..].copy_from_slice(&code.to_ne_bytes());
            bytes
        };
        assert_eq!(acknowledged(&[answer(0), answer(0)].concat()).unwrap(), 2);
        let refused = acknowledged(&[answer(0), answer(-1)].concat()).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::PermissionDenied);
        assert!(acknowledged(&answer(0)[..10]).is_err());
        assert!(acknowledged(&[1, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]).is_err());
    }
}
