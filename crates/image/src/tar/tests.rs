//! Tars written by the `tar` crate or by hand, and damaged ones.

use super::*;
use crate::erofs::DeviceNumber;
use ::tar::{Builder, EntryType, Header};

fn header(path: &str, entry_type: EntryType, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.as_gnu_mut().unwrap().name[..path.len()].copy_from_slice(path.as_bytes());
    header.set_entry_type(entry_type);
    header.set_size(size);
    header.set_mode(0o644);
    header.set_uid(1000);
    header.set_gid(100);
    header.set_mtime(12);
    header.set_cksum();
    header
}

fn block(header: &Header) -> Vec<u8> {
    header.as_bytes().to_vec()
}

fn padded(data: &[u8]) -> Vec<u8> {
    let mut data = data.to_vec();
    data.resize(data.len().next_multiple_of(BLOCK), 0);
    data
}

fn record(entry_type: u8, data: &[u8]) -> Vec<u8> {
    let header = header("x", EntryType::new(entry_type), data.len() as u64);
    [block(&header), padded(data)].concat()
}

fn pax(pairs: &[(&str, &[u8])]) -> Vec<u8> {
    let mut data = Vec::new();
    for (key, value) in pairs {
        let body = [b" ", key.as_bytes(), b"=", value, b"\n"].concat();
        let mut len = body.len() + 1;
        while len != body.len() + len.to_string().len() {
            len = body.len() + len.to_string().len();
        }
        data.extend_from_slice(len.to_string().as_bytes());
        data.extend_from_slice(&body);
    }
    record(b'x', &data)
}

fn entries(tar: &[u8]) -> Result<Vec<(Entry, Vec<u8>)>, TarError> {
    let mut reader = Reader::new(tar);
    let mut all = Vec::new();
    while let Some(entry) = reader.next_entry()? {
        let mut data = Vec::new();
        let mut buffer = [0; 100];
        loop {
            match reader.read_data(&mut buffer)? {
                0 => break,
                len => data.extend_from_slice(&buffer[..len]),
            }
        }
        all.push((entry, data));
    }
    Ok(all)
}

#[test]
fn what_the_tar_crate_writes_is_read() {
    let mut builder = Builder::new(Vec::new());
    let long = "d/".repeat(100) + "file";
    let mut header = Header::new_gnu();
    header.set_size(5);
    header.set_mode(0o4755);
    header.set_uid(5_000_000);
    header.set_gid(7);
    header.set_mtime(1_700_000_000);
    builder.append_data(&mut header, &long, b"hello".as_slice()).unwrap();
    let mut header = Header::new_gnu();
    header.set_entry_type(EntryType::Symlink);
    header.set_size(0);
    header.set_mode(0o777);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    builder.append_link(&mut header, "link", "t".repeat(150)).unwrap();
    let all = entries(&builder.into_inner().unwrap()).unwrap();
    assert_eq!(all[0].0.path, long.as_bytes());
    assert_eq!(all[0].1, b"hello");
    assert_eq!(all[0].0.metadata.mode, 0o4755);
    assert_eq!(all[0].0.metadata.uid, 5_000_000);
    assert_eq!(all[0].0.metadata.mtime.seconds, 1_700_000_000);
    assert_eq!(all[1].0.kind, EntryKind::Symlink(vec![b't'; 150]));
}

#[test]
fn pax_records_beat_the_header() {
    let capability = [1, 0, 0, 2, 0x0a, b'=', 0, 0xff];
    let tar = [
        pax(&[
            ("path", b"new/name"),
            ("uid", b"4000000000"),
            ("gid", b"12"),
            ("mtime", b"-1.5"),
            ("size", b"3"),
            ("SCHILY.xattr.security.capability", &capability),
            ("SCHILY.xattr.trusted.overlay.redirect", b"/evil"),
            ("SCHILY.xattr.system.nfs4_acl", b"no place for it"),
        ]),
        block(&header("old", EntryType::Regular, 0)),
        padded(b"abc"),
        block(&header("next", EntryType::Regular, 0)),
    ]
    .concat();
    let all = entries(&tar).unwrap();
    let (entry, data) = &all[0];
    assert_eq!(entry.path, b"new/name");
    assert_eq!((entry.metadata.uid, entry.metadata.gid), (4_000_000_000, 12));
    assert_eq!((entry.metadata.mtime.seconds, entry.metadata.mtime.nanoseconds), (-2, 500_000_000));
    assert_eq!(data, b"abc");
    let xattrs: Vec<_> = entry.metadata.xattrs.iter().collect();
    assert_eq!(xattrs.len(), 1);
    assert_eq!(&**xattrs[0].0, b"security.capability");
    assert_eq!(&**xattrs[0].1, capability);
    assert_eq!(all[1].0.path, b"next", "records are for one entry only");
}

#[test]
fn global_records_hold_until_taken_back() {
    let global = record(b'g', b"9 uid=77\n");
    let file = block(&header("f", EntryType::Regular, 0));
    let tar = [global, file.clone(), pax(&[("uid", b"78")]), file.clone(), file].concat();
    let owners: Vec<u32> =
        entries(&tar).unwrap().iter().map(|(entry, _)| entry.metadata.uid).collect();
    assert_eq!(owners, [77, 78, 77]);
}

#[test]
fn kinds_without_data_have_none_whatever_their_size_says() {
    let tar = [
        block(&header("link", EntryType::Link, 1000)),
        block(&header("dir", EntryType::Directory, 4096)),
        block(&header("file", EntryType::Regular, 2)),
        padded(b"ok"),
    ]
    .concat();
    let all = entries(&tar).unwrap();
    assert_eq!(all.len(), 3);
    assert_eq!(all[2].1, b"ok");
}

#[test]
fn devices_and_old_directories_are_recognised() {
    let mut device = header("null", EntryType::Char, 0);
    device.set_device_major(1).unwrap();
    device.set_device_minor(3).unwrap();
    device.set_cksum();
    let tar = [block(&device), block(&header("old/", EntryType::Regular, 0))].concat();
    let all = entries(&tar).unwrap();
    assert_eq!(all[0].0.kind, EntryKind::CharDevice(DeviceNumber { major: 1, minor: 3 }));
    assert_eq!(all[1].0.kind, EntryKind::Directory);
}

#[test]
fn a_tar_cut_anywhere_is_an_error_or_shorter_but_never_more() {
    let tar = [
        pax(&[("path", b"a/long/name")]),
        block(&header("a", EntryType::Regular, 700)),
        padded(&[7; 700]),
        block(&header("b", EntryType::Regular, 1)),
        padded(b"x"),
        vec![0; 1024],
    ]
    .concat();
    let whole = entries(&tar).unwrap();
    assert_eq!(whole.len(), 2);
    for len in 0..tar.len() {
        match entries(&tar[..len]) {
            Ok(some) => assert_eq!(some, whole[..some.len()], "cut at {len}"),
            Err(TarError::Truncated { at, .. }) => assert!(at <= len as u64),
            Err(other) => panic!("cut at {len}: {other}"),
        }
    }
    let cut = entries(&tar[..512 * 4]);
    let Err(TarError::Truncated { entry: Some(entry), .. }) = cut else { panic!("{cut:?}") };
    assert_eq!(entry, "a/long/name");
}

#[test]
fn a_wrong_checksum_is_found() {
    let mut bytes = block(&header("f", EntryType::Regular, 0));
    bytes[0] = b'g';
    assert!(matches!(entries(&bytes), Err(TarError::Header { at: 0, .. })));
    assert!(matches!(entries(&[b'x'; 512]), Err(TarError::Header { at: 0, .. })));
}

#[test]
fn a_lone_zero_block_is_no_end() {
    let file = block(&header("f", EntryType::Regular, 0));
    let tar = [file.clone(), vec![0; 512], file.clone()].concat();
    assert!(matches!(entries(&tar), Err(TarError::Header { at: 512, .. })));
    assert_eq!(entries(&[file, vec![0; 512]].concat()).unwrap().len(), 1);
}

#[test]
fn huge_extension_records_are_refused_before_they_are_read() {
    for (entry_type, size) in [(b'L', 1 << 33), (b'K', 65 << 10), (b'x', 2 << 20), (b'g', 1 << 40)]
    {
        let tar = block(&header("x", EntryType::new(entry_type), size));
        let outcome = entries(&tar);
        assert!(matches!(outcome, Err(TarError::Oversized { .. })), "{outcome:?}");
    }
}

#[test]
fn unknown_kinds_are_named() {
    let outcome = entries(&block(&header("odd", EntryType::new(b'M'), 0)));
    let Err(TarError::Kind { entry, kind: 'M' }) = outcome else { panic!("{outcome:?}") };
    assert_eq!(entry, "odd");
}

#[test]
fn sparse_maps_that_lie_are_refused() {
    let file = |records: &[(&str, &[u8])], data: &[u8]| {
        let file = header("f", EntryType::Regular, data.len() as u64);
        [pax(records), block(&file), padded(data)].concat()
    };
    let old = |map: &'static [u8]| {
        file(&[("GNU.sparse.size", b"100"), ("GNU.sparse.map", map)], &[1; 10])
    };
    let good = entries(&old(b"5,5,20,5")).unwrap();
    assert_eq!(good[0].0.size, 100);
    let expected = [Segment { offset: 5, len: 5 }, Segment { offset: 20, len: 5 }];
    assert_eq!(good[0].0.segments.as_deref(), Some(expected.as_slice()));
    for map in [
        b"5,5,20,6".as_slice(),
        b"5,5,7,5",
        b"5,5,20",
        b"95,10",
        b"18446744073709551615,10",
        b"x",
        b"5,5,-1,5",
    ] {
        let tar = old(map);
        assert!(matches!(entries(&tar), Err(TarError::Record { what: "sparse", .. })), "{map:?}");
    }
    let records: &[(&str, &[u8])] = &[("GNU.sparse.major", b"1"), ("GNU.sparse.realsize", b"100")];
    let map = |text: &str| [padded(text.as_bytes()), vec![1; 10]].concat();
    assert_eq!(entries(&file(records, &map("1\n7\n10\n"))).unwrap()[0].1, [1; 10]);
    for text in ["99999999999\n", "2\n1\n", "1\n7\n11\n", "x\n", "1\n7\n10"] {
        assert!(entries(&file(records, &map(text))).is_err(), "{text:?}");
    }
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(200))]

    #[test]
    fn no_bytes_make_the_reader_panic_or_read_on(
        flips in proptest::collection::vec((0_usize..2560, proptest::num::u8::ANY), 0..8),
    ) {
        let mut tar = [
            pax(&[("path", b"p"), ("GNU.sparse.size", b"9"), ("GNU.sparse.map", b"0,4")]),
            block(&header("f", EntryType::Regular, 4)),
            padded(b"data"),
        ]
        .concat();
        let len = tar.len();
        for (at, byte) in flips {
            tar[at % len] = byte;
        }
        // Checksums are mended, so that the fields behind them are reached.
        for at in [0, 1024] {
            let mut header = Header::new_old();
            header.as_mut_bytes().copy_from_slice(&tar[at..at + BLOCK]);
            header.set_cksum();
            tar[at..at + BLOCK].copy_from_slice(header.as_bytes());
        }
        if let Ok(all) = entries(&tar) {
            proptest::prop_assert!(all.len() <= 4);
        }
    }
}
