//! Sessions whose ends have memory in common.

use super::super::places::WORTH_PLACING;
use super::*;
use crate::channel::area::{AREA_BYTES, GuestArea, HostArea, SLOT, TO_GUEST, TO_HOST};

/// A file in the place of a VM's memory.
pub(super) struct Memory {
    file: tempfile::NamedTempFile,
    guest: Arc<GuestArea>,
}

impl Memory {
    /// The slots of either direction.
    pub(super) const ALL: (usize, usize) = (TO_HOST as usize, TO_GUEST as usize);

    pub(super) fn new() -> Self {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(AREA_BYTES as u64).unwrap();
        let guest = GuestArea::of_file(file.path().to_owned());
        Memory { file, guest }
    }

    /// A session of a new host.
    pub(super) fn pair(&self) -> Pair {
        let host = Arc::new(HostArea::open(self.file.path()).unwrap());
        let pair = Pair::over(Area::Host(host), Area::Guest(Arc::clone(&self.guest)));
        pair.host.announce();
        pair.settle();
        pair
    }

    /// Slots towards the host and towards the guest that nobody uses.
    pub(super) fn at_home(&self) -> (usize, usize) {
        let waker = noop_waker();
        let cx = Context::from_waker(&waker);
        let outgoing: Vec<_> = std::iter::from_fn(|| self.guest.take_outgoing()).collect();
        let incoming: Vec<_> = std::iter::from_fn(|| self.guest.take_incoming(&cx)).collect();
        (outgoing.len(), incoming.len())
    }
}

/// Opens the windows of both directions as wide as they go, and has the guest grant its slots.
fn warm_up(pair: &Pair, host: &mut ChannelStream, guest: &mut ChannelStream) {
    for _ in 0..8 {
        assert!(write(host, &[1; SLOT]).is_ready());
        pair.settle();
        assert!(read(guest, SLOT).is_ready());
        pair.settle();
        assert!(write(guest, &[1; SLOT]).is_ready());
        pair.settle();
        assert!(read(host, SLOT).is_ready());
        pair.settle();
    }
}

/// Bytes of the records that carry `bytes` from one end to the other.
fn carried(from: &Mux, to: &Arc<Mux>) -> usize {
    let waker = noop_waker();
    let mut len = 0;
    while let Poll::Ready(outgoing) = from.poll_next(&mut Context::from_waker(&waker)) {
        len += outgoing.record.len();
        to.receive(&outgoing.record[HEADER..], outgoing.record.len()).unwrap();
    }
    len
}

#[test]
fn large_pieces_go_through_the_area_and_small_ones_through_the_port() {
    let memory = Memory::new();
    let mut pair = memory.pair();
    let (mut host, mut guest) = pair.open();
    warm_up(&pair, &mut host, &mut guest);
    let piece = Model::bytes(3, 16_000);

    assert!(matches!(write(&mut host, &piece), Poll::Ready(Ok(16_000))));
    assert!(carried(&pair.host, &pair.guest) < 200);
    assert_eq!(memory.at_home(), (24, 0), "one is being read, the others are the host's");
    assert!(matches!(read(&mut guest, 20_000), Poll::Ready(Ok(bytes)) if bytes == piece));
    assert_eq!(memory.at_home(), (24, 1));

    assert!(matches!(write(&mut guest, &piece), Poll::Ready(Ok(16_000))));
    assert!(carried(&pair.guest, &pair.host) < 200);
    assert!(matches!(read(&mut host, 20_000), Poll::Ready(Ok(bytes)) if bytes == piece));

    assert!(matches!(write(&mut host, b"small"), Poll::Ready(Ok(5))));
    assert!(matches!(write(&mut guest, b"small"), Poll::Ready(Ok(5))));
    pair.settle();
    assert!(matches!(read(&mut guest, 9), Poll::Ready(Ok(bytes)) if bytes == b"small"));
    assert!(matches!(read(&mut host, 9), Poll::Ready(Ok(bytes)) if bytes == b"small"));
}

#[test]
fn a_slot_that_is_still_read_is_not_the_next_hosts() {
    let memory = Memory::new();
    let mut pair = memory.pair();
    let (mut host, mut guest) = pair.open();
    warm_up(&pair, &mut host, &mut guest);
    let piece = Model::bytes(3, 16_000);
    assert!(write(&mut host, &piece).is_ready());
    pair.settle();
    let waker = noop_waker();
    let taken = guest.poll_take(&mut Context::from_waker(&waker));
    let Poll::Ready(Ok(taken)) = taken else { panic!("nothing arrived") };

    pair.guest.end();
    assert_eq!(memory.at_home(), (24, 7));
    let mut next = memory.pair();
    let (mut host, mut other) = next.open();
    warm_up(&next, &mut host, &mut other);
    while write(&mut host, &[9; SLOT]).is_ready() {
        next.settle();
    }
    assert_eq!(
        taken.slices().0,
        piece,
        "the next host has written where the last one's bytes were"
    );
    drop((taken, guest));
    next.guest.end();
    assert_eq!(memory.at_home(), Memory::ALL);
}

#[test]
fn a_guest_whose_slots_are_all_under_way_waits_for_the_hosts_word() {
    let memory = Memory::new();
    let mut pair = memory.pair();
    let mut streams: Vec<_> = (0..6).map(|_| pair.open()).collect();
    for (host, guest) in &mut streams {
        warm_up(&pair, host, guest);
    }
    let held = memory.guest.take_fresh(100);
    let waker = noop_waker();
    let mut records = Vec::new();
    let (first, others) = streams.split_first_mut().unwrap();
    for number in 0..4 * others.len() {
        let (_, guest) = &mut others[number % 5];
        // Those with a small window have had enough at some time.
        let _ = write(guest, &[7; WORTH_PLACING]);
        while let Poll::Ready(record) = pair.guest.poll_next(&mut Context::from_waker(&waker)) {
            records.push(record.record);
        }
    }
    assert!(memory.guest.is_exhausted());
    let (host, guest) = first;
    assert!(write(guest, &[8; WORTH_PLACING]).is_pending());
    for record in records {
        pair.host.receive(&record[HEADER..], record.len()).unwrap();
    }
    pair.settle();
    assert!(write(guest, &[8; WORTH_PLACING]).is_ready());
    pair.settle();
    let Poll::Ready(Ok(bytes)) = read(host, 1 << 20) else { panic!("nothing arrived") };
    assert!(bytes == [8; WORTH_PLACING]);
    drop(held);
}

#[test]
fn a_host_without_slots_uses_the_port() {
    let memory = Memory::new();
    let mut pair = memory.pair();
    let (mut host, mut guest) = pair.open();
    warm_up(&pair, &mut host, &mut guest);
    let host_that_is_granted_nothing = Arc::new(HostArea::open(memory.file.path()).unwrap());
    assert!(host_that_is_granted_nothing.take().is_none());
    pair.host.lock().places.end();
    assert!(matches!(write(&mut host, &[7; 10_000]), Poll::Ready(Ok(10_000))));
    assert!(carried(&pair.host, &pair.guest) > 10_000);
    assert!(matches!(read(&mut guest, 10_000), Poll::Ready(Ok(bytes)) if bytes == [7; 10_000]));
}

#[test]
fn who_speaks_of_a_slot_that_is_not_his_loses_the_session() {
    let id = StreamId(2);
    let placed = |slot, from, len| Frame::Placed(id, Place { slot, from, len });
    let (ours, slot) = (u16::from(TO_HOST), u32::try_from(SLOT).unwrap());
    let cases = [
        placed(ours, 0, 1),
        placed(0, 0, slot + 1),
        placed(0, slot, 1),
        placed(u16::MAX, 0, 1),
        Frame::Grant(0),
        Frame::Grant(32),
    ];
    for wrong in cases {
        let memory = Memory::new();
        let pair = memory.pair();
        let error = receive(&pair.host, &[Frame::Open(id, 1), wrong]).unwrap_err();
        assert!(matches!(error, MuxError::Slot(_)), "{wrong:?}: {error}");
    }
    let memory = Memory::new();
    let mut pair = memory.pair();
    let (mut host, mut guest) = pair.open();
    let odd = StreamId(1);
    let early = receive(&pair.guest, &[Frame::Placed(odd, Place { slot: ours, from: 0, len: 1 })]);
    assert!(matches!(early, Err(MuxError::Slot(_))), "it was not granted");
    warm_up(&pair, &mut host, &mut guest);
    assert!(matches!(receive(&pair.host, &[Frame::Grant(ours.into())]), Err(MuxError::Slot(_))));
    let long =
        receive(&pair.guest, &[Frame::Placed(odd, Place { slot: ours, from: 1, len: slot })]);
    assert!(matches!(long, Err(MuxError::Slot(_))));

    let without = Pair::new();
    assert!(receive(&without.host, &[placed(0, 0, 1)]).is_err());
    assert!(receive(&without.guest, &[Frame::Grant(24)]).is_err());
}

#[test]
fn a_host_that_knows_no_area_is_sent_nothing_through_it() {
    let memory = Memory::new();
    let mut pair = Pair::over(Area::None, Area::Guest(Arc::clone(&memory.guest)));
    pair.host.announce();
    let (mut host, mut guest) = pair.open();
    warm_up_in_port(&pair, &mut host, &mut guest);
    assert_eq!(memory.at_home(), Memory::ALL);
}

fn warm_up_in_port(pair: &Pair, host: &mut ChannelStream, guest: &mut ChannelStream) {
    for _ in 0..8 {
        let Poll::Ready(Ok(n)) = write(guest, &[1; SLOT]) else { panic!("no room") };
        assert!(carried(&pair.guest, &pair.host) > n);
        assert!(read(host, SLOT).is_ready());
        let Poll::Ready(Ok(n)) = write(host, &[1; SLOT]) else { panic!("no room") };
        assert!(carried(&pair.host, &pair.guest) > n);
        assert!(read(guest, SLOT).is_ready());
        pair.settle();
    }
}

#[test]
fn a_guest_that_cannot_map_the_area_uses_the_port() {
    let memory = Memory::new();
    let host = Arc::new(HostArea::open(memory.file.path()).unwrap());
    let nowhere = GuestArea::of_file("/nowhere".into());
    let mut pair = Pair::over(Area::Host(host), Area::Guest(nowhere));
    pair.host.announce();
    let (mut host, mut guest) = pair.open();
    warm_up_in_port(&pair, &mut host, &mut guest);
}

#[test]
fn what_was_read_into_a_slot_is_sent_from_there_and_the_slot_kept_until_all_is_done() {
    let memory = Memory::new();
    let mut pair = memory.pair();
    let (mut host, mut guest) = pair.open();
    warm_up(&pair, &mut host, &mut guest);
    let [mut fresh] = <[_; 1]>::try_from(memory.guest.take_fresh(1)).unwrap();
    let piece = Model::bytes(3, 60_000);
    fresh.bytes_mut()[..60_000].copy_from_slice(&piece);
    let bytes = fresh.freeze(60_000);
    let part = bytes.slice(100..);
    drop(bytes);

    let waker = noop_waker();
    let parts = [&b"sixteen of these"[..], &part].map(io::IoSlice::new);
    let sent = Pin::new(&mut guest).poll_write_vectored(&mut Context::from_waker(&waker), &parts);
    assert!(matches!(sent, Poll::Ready(Ok(59_916))));
    drop(part);
    assert_eq!(memory.at_home().0, 23, "it waits to be sent");
    let len = carried(&pair.guest, &pair.host);
    assert!(len < 200, "{len} bytes through the port");
    let Poll::Ready(Ok(arrived)) = read(&mut host, 65_536) else { panic!("nothing arrived") };
    assert_eq!(arrived[..16], *b"sixteen of these");
    assert!(arrived[16..] == piece[100..]);
    assert_eq!(memory.at_home().0, 23, "the host has not acknowledged it");
    pair.guest.end();
    assert_eq!(memory.at_home(), Memory::ALL);
}

#[test]
fn some_slots_are_kept_for_those_who_copy() {
    let memory = Memory::new();
    let fresh = memory.guest.take_fresh(100);
    assert_eq!((fresh.len(), memory.at_home().0), (16, 8));
    assert_eq!(memory.guest.take_fresh(1).len(), 0);
}

#[test]
fn who_holds_all_slots_holds_up_nobody() {
    let memory = Memory::new();
    let mut pair = memory.pair();
    let (mut host, mut guest) = pair.open();
    warm_up(&pair, &mut host, &mut guest);
    let held: Vec<_> = std::iter::from_fn(|| memory.guest.take_outgoing()).collect();
    assert!(write(&mut guest, &[7; 10_000]).is_ready());
    assert!(carried(&pair.guest, &pair.host) > 10_000);
    assert!(matches!(read(&mut host, 10_000), Poll::Ready(Ok(bytes)) if bytes == [7; 10_000]));
    drop(held);
}
