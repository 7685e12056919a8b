//! A real distribution: Debian as debootstrap makes it, and real work in it.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use coracle_tests::Place;
use coracle_tests::place::text;

const INPUT_BYTES: u64 = 100_000_000;

/// Sums all bytes modulo 2^32, counts them, and pipes them through `sha256sum`.
const PERL: &str = r#"
    open(IN, "<", "/srv/input") or die "input: $!"; binmode(IN);
    open(SUM, "|-", "sha256sum") or die "sha256sum: $!"; binmode(SUM);
    my ($count, $sum) = (0, 0);
    while (my $n = read(IN, my $block, 1 << 20)) {
        $count += $n; $sum = ($sum + unpack("%32C*", $block)) % 4294967296; print SUM $block;
    }
    $| = 1; print "$count $sum\n"; close(SUM) or die "sha256sum failed"; exit 3;
"#;

/// Sets, reads, lists and removes an attribute of a file on a share.
const ATTRIBUTES: &str = r#"
    my ($path, $name, $value, $room) = ("/mnt/file", "user.test", "from here", "\0" x 256);
    my ($set, $get, $list, $remove) = (188, 191, 194, 197);
    syscall($set, $path, $name, $value, length($value), 0) == 0 or die "set: $!";
    my $length = syscall($get, $path, $name, $room, length($room));
    $length > 0 or die "get: $!"; print substr($room, 0, $length), "\n";
    $length = syscall($list, $path, $room, length($room));
    $length > 0 or die "list: $!"; print join(" ", split(/\0/, substr($room, 0, $length))), "\n";
    print syscall($remove, $path, $name), "\n";
"#;

/// Appends the files below `dir` to `out` until it has `INPUT_BYTES`.
fn gather(dir: &Path, out: &mut File, size: &mut u64) {
    let mut entries: Vec<_> = fs::read_dir(dir).into_iter().flatten().flatten().collect();
    entries.sort_by_key(fs::DirEntry::path);
    for entry in entries {
        if *size >= INPUT_BYTES {
            return;
        }
        let Ok(kind) = entry.file_type() else { continue };
        if kind.is_dir() {
            gather(&entry.path(), out, size);
        } else if kind.is_file() {
            let Ok(file) = File::open(entry.path()) else { continue };
            *size += std::io::copy(&mut file.take(INPUT_BYTES - *size), out).unwrap();
        }
    }
}

#[test]
fn perl_in_debian_reads_a_hundred_megabytes_as_the_host_does() {
    let place = Place::new();
    let root = place.root().join("debian");
    let made = Command::new("debootstrap")
        .args(["--variant=minbase", "bookworm"])
        .arg(&root)
        .stdin(Stdio::null())
        .output()
        .expect("debootstrap is installed by `make setup`");
    assert!(made.status.success(), "{}{}", text(&made.stdout), text(&made.stderr));

    let input = root.join("srv/input");
    let mut file = File::create(&input).unwrap();
    let mut size = 0;
    gather(Path::new("/usr/lib"), &mut file, &mut size);
    file.flush().unwrap();
    assert_eq!(size, INPUT_BYTES, "this machine has too few files of its own");
    let sum = fs::read(&input)
        .unwrap()
        .iter()
        .fold(0_u32, |sum, byte| sum.wrapping_add(u32::from(*byte)));
    let on_host =
        Command::new("sha256sum").stdin(File::open(&input).unwrap()).output().unwrap().stdout;

    let out = place.coracle(["run"]).arg(&root).args(["--", "perl", "-e", PERL]).output().unwrap();
    let expected = format!("{INPUT_BYTES} {sum}\n{}", text(&on_host));
    assert_eq!(text(&out.stdout), expected, "{}", text(&out.stderr));
    assert_eq!(out.status.code(), Some(3));

    let again = ["sh", "-c", "cat /etc/debian_version; id -un; dpkg -s perl-base | grep ^Status"];
    let out = place.coracle(["run", "-u", "www-data"]).arg(&root).arg("--").args(again).output();
    let out = out.unwrap();
    let version = fs::read_to_string(root.join("etc/debian_version")).unwrap();
    assert_eq!(
        text(&out.stdout),
        format!("{version}www-data\nStatus: install ok installed\n"),
        "{}",
        text(&out.stderr)
    );

    // On the disk of the build: older kernels have no attributes of users in a tmpfs.
    let shared = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    fs::write(shared.path().join("file"), "").unwrap();
    let share = format!("{}:/mnt", shared.path().display());
    let mut run = place.coracle(["run", "--share", &share]);
    let out = run.arg(&root).args(["--", "perl", "-e", ATTRIBUTES]).output().unwrap();
    assert_eq!(text(&out.stdout), "from here\nuser.test\n0\n", "{}", text(&out.stderr));
    let list = rustix::fs::listxattr(shared.path().join("file"), &mut [0; 256]).unwrap();
    assert_eq!(list, 0, "it was removed again");
    place.assert_nothing_left();
}
