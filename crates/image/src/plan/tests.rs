//! Where entries end up, layer upon layer.

use super::*;
use crate::erofs::DeviceNumber;
use proptest::prelude::*;

fn entry(path: &str, kind: EntryKind) -> Entry {
    let metadata = Metadata::with_mode(0o644);
    Entry { path: path.into(), kind, metadata, size: 0, segments: None }
}

fn file(path: &str) -> Entry {
    entry(path, EntryKind::File)
}

fn dir(path: &str) -> Entry {
    entry(path, EntryKind::Directory)
}

fn symlink(path: &str, target: &str) -> Entry {
    entry(path, EntryKind::Symlink(target.into()))
}

fn link(path: &str, target: &str) -> Entry {
    entry(path, EntryKind::HardLink(target.into()))
}

/// All paths of the tree that layers make; directories end with a slash.
fn paths(layers: Vec<Vec<Entry>>) -> Result<Vec<String>, PlanError> {
    let mut plan = Plan::new(Whiteouts::Apply);
    for layer in layers {
        plan.next_layer();
        for entry in layer {
            plan.place(entry)?;
        }
    }
    let tree = plan.into_tree();
    let mut all = Vec::new();
    let mut open = vec![(Tree::ROOT, String::new())];
    while let Some((id, path)) = open.pop() {
        for (name, child) in tree.children(id) {
            let path = format!("{path}{name}");
            match tree.node(child).kind.is_directory() {
                true => {
                    all.push(format!("{path}/"));
                    open.push((child, path + "/"));
                }
                false => all.push(path),
            }
        }
    }
    all.sort();
    Ok(all)
}

fn one(layer: Vec<Entry>) -> Result<Vec<String>, PlanError> {
    paths(vec![layer])
}

#[test]
fn absolute_paths_start_at_the_root_of_the_image() {
    assert_eq!(one(vec![file("/etc//./passwd")]).unwrap(), ["etc/", "etc/passwd"]);
}

#[test]
fn dots_that_lead_up_are_refused() {
    for path in ["../x", "a/../../x", "a/..", ".."] {
        let outcome = one(vec![file(path)]);
        let is_dots = matches!(&outcome, Err(PlanError::Path { source: NameError::Dots, .. }));
        assert!(is_dots, "{path}: {outcome:?}");
        let outcome = one(vec![file("f"), link("l", path)]);
        assert!(matches!(outcome, Err(PlanError::Path { .. })), "{path}: {outcome:?}");
    }
}

#[test]
fn names_no_file_can_have_are_refused() {
    let long = "n".repeat(256);
    assert!(matches!(one(vec![file(&long)]), Err(PlanError::Path { .. })));
    assert!(matches!(one(vec![file("a\0b")]), Err(PlanError::Path { .. })));
    assert!(matches!(one(vec![file("")]), Err(PlanError::Path { .. })));
    let deep = "d/".repeat(2100);
    assert!(matches!(one(vec![file(&deep)]), Err(PlanError::PathTooLong { len: 4200, .. })));
    assert_eq!(one(vec![file(&"n".repeat(255))]).unwrap().len(), 1);
}

#[test]
fn symlinked_parents_are_followed_within_the_image_only() {
    let tree = one(vec![
        symlink("abs", "/target"),
        file("abs/a"),
        symlink("up", "../../../../target/./"),
        file("up/b"),
        symlink("target/back", "../other"),
        file("abs/back/c"),
    ]);
    let expected =
        ["abs", "other/", "other/c", "target/", "target/a", "target/b", "target/back", "up"];
    assert_eq!(tree.unwrap(), expected);
}

#[test]
fn symlinks_that_go_in_circles_are_an_error() {
    let outcome = one(vec![symlink("a", "b"), symlink("b", "a"), file("a/x")]);
    assert!(matches!(outcome, Err(PlanError::SymlinkLoop { .. })), "{outcome:?}");
    let outcome = one(vec![symlink("a", "a/a"), file("a/x")]);
    assert!(matches!(outcome, Err(PlanError::SymlinkLoop { .. })), "{outcome:?}");
}

#[test]
fn the_last_of_two_entries_wins_whatever_their_kinds() {
    assert_eq!(one(vec![file("a"), dir("a"), file("a/b")]).unwrap(), ["a/", "a/b"]);
    assert_eq!(one(vec![dir("a"), file("a/b"), file("a")]).unwrap(), ["a"]);
    assert_eq!(one(vec![symlink("a", "b"), dir("a"), file("a/c")]).unwrap(), ["a/", "a/c"]);
    assert_eq!(one(vec![dir("a"), file("a/b"), dir("a")]).unwrap(), ["a/", "a/b"]);
}

#[test]
fn a_file_is_no_directory_within_one_layer() {
    let outcome = one(vec![file("a"), file("a/b")]);
    assert!(matches!(outcome, Err(PlanError::NotADirectory { .. })), "{outcome:?}");
}

#[test]
fn the_root_can_be_described_but_not_replaced() {
    let mut plan = Plan::new(Whiteouts::Keep);
    let metadata = Metadata { uid: 7, ..Metadata::with_mode(0o700) };
    plan.place(Entry { metadata: metadata.clone(), ..dir("./") }).unwrap();
    assert_eq!(plan.into_tree().node(Tree::ROOT).metadata, metadata);
    assert!(matches!(one(vec![symlink("/", "x")]), Err(PlanError::Root { .. })));
}

#[test]
fn hard_links_lead_to_files_in_the_image_or_nowhere() {
    assert_eq!(one(vec![file("f"), link("l", "/f")]).unwrap(), ["f", "l"]);
    assert_eq!(one(vec![file("f"), link("f", "f")]).unwrap(), ["f"]);
    assert_eq!(paths(vec![vec![file("f")], vec![link("l", "f")]]).unwrap(), ["f", "l"]);
    for (path, target) in [("l", "none"), ("l", "/"), ("l", "d"), ("d", "d/f"), ("l", "f/x")] {
        let outcome = one(vec![dir("d"), file("d/f"), file("f"), link(path, target)]);
        let is_nowhere = matches!(outcome, Err(PlanError::LinkTarget { .. }));
        assert!(is_nowhere, "{path} -> {target}: {outcome:?}");
    }
}

#[test]
fn a_hard_link_to_a_symlink_is_one_to_the_symlink_itself() {
    let mut plan = Plan::new(Whiteouts::Keep);
    for entry in [symlink("s", "/etc/shadow"), link("l", "s")] {
        plan.place(entry).unwrap();
    }
    let tree = plan.into_tree();
    let find = |name: &[u8]| tree.lookup(Tree::ROOT, &Name::new(name).unwrap());
    assert_eq!(find(b"s"), find(b"l"));
}

#[test]
fn what_erofs_cannot_hold_is_refused_by_name() {
    let number = DeviceNumber { major: 5000, minor: 0 };
    for kind in [EntryKind::CharDevice(number), EntryKind::Symlink(Vec::new())] {
        let outcome = one(vec![entry("bad", kind)]);
        let Err(PlanError::Unfit { path, .. }) = outcome else { panic!("{outcome:?}") };
        assert_eq!(path, "bad");
    }
}

#[test]
fn a_whiteout_hides_what_lower_layers_have() {
    let base = || vec![dir("a"), file("a/x"), file("a/y"), file("z")];
    assert_eq!(paths(vec![base(), vec![file("a/.wh.x")]]).unwrap(), ["a/", "a/y", "z"]);
    assert_eq!(paths(vec![base(), vec![file(".wh.a")]]).unwrap(), ["z"]);
    assert_eq!(paths(vec![base(), vec![file("none/.wh.x"), file(".wh.none")]]).unwrap().len(), 4);
}

#[test]
fn a_whiteout_spares_its_own_layer_wherever_it_stands() {
    let base = || vec![dir("a"), file("a/old"), file("f")];
    let new = || vec![dir("a"), file("a/new"), file("f")];
    let before = [vec![file(".wh.a"), file(".wh.f")], new()].concat();
    let after = [new(), vec![file(".wh.a"), file(".wh.f")]].concat();
    for layer in [before, after] {
        assert_eq!(paths(vec![base(), layer]).unwrap(), ["a/", "a/new", "f"]);
    }
    // The directory itself is not in the layer, only something in it.
    let layer = vec![file("a/new"), file(".wh.a")];
    assert_eq!(paths(vec![base(), layer]).unwrap(), ["a/", "a/new", "f"]);
}

#[test]
fn an_opaque_directory_shows_only_its_own_layer() {
    let base = || vec![dir("a"), file("a/x"), dir("a/d"), file("a/d/y"), file("z")];
    let before = vec![dir("a"), file("a/.wh..wh..opq"), file("a/new")];
    let after = vec![dir("a"), file("a/new"), file("a/.wh..wh..opq")];
    for layer in [before, after] {
        assert_eq!(paths(vec![base(), layer]).unwrap(), ["a/", "a/new", "z"]);
    }
    let deeper = vec![file("a/d/new"), file("a/.wh..wh..opq")];
    assert_eq!(paths(vec![base(), deeper]).unwrap(), ["a/", "a/d/", "a/d/new", "z"]);
    let root = vec![file(".wh..wh..opq"), file("only")];
    assert_eq!(paths(vec![base(), root]).unwrap(), ["only"]);
}

#[test]
fn a_name_is_back_when_a_layer_above_the_whiteout_has_it() {
    let layers = vec![vec![file("f")], vec![file(".wh.f")], vec![file("f")]];
    assert_eq!(paths(layers).unwrap(), ["f"]);
}

#[test]
fn a_higher_layer_goes_through_a_symlink_of_a_lower_one() {
    let base = vec![dir("usr"), dir("usr/lib"), symlink("lib", "usr/lib"), file("usr/lib/old")];
    let layer = vec![file("lib/new"), file("lib/.wh.old")];
    assert_eq!(paths(vec![base, layer]).unwrap(), ["lib", "usr/", "usr/lib/", "usr/lib/new"]);
}

#[test]
fn kinds_may_change_from_layer_to_layer() {
    assert_eq!(paths(vec![vec![file("a")], vec![file("a/b")]]).unwrap(), ["a/", "a/b"]);
    assert_eq!(paths(vec![vec![dir("a"), file("a/b")], vec![file("a")]]).unwrap(), ["a"]);
    let over = vec![vec![symlink("a", "b"), dir("b")], vec![dir("a"), file("a/c")]];
    assert_eq!(paths(over).unwrap(), ["a/", "a/c", "b/"]);
}

#[test]
fn a_whiteout_of_nothing_is_refused_and_aufs_leftovers_are_ignored() {
    for path in [".wh.", ".wh...", "a/.wh.."] {
        let outcome = one(vec![dir("a"), file(path)]);
        assert!(matches!(outcome, Err(PlanError::Path { .. })), "{path}: {outcome:?}");
    }
    assert_eq!(one(vec![dir(".wh..wh.plnk"), file(".wh..wh.aufs")]).unwrap().len(), 0);
}

#[test]
fn in_a_plain_tar_a_whiteout_is_a_file() {
    let mut plan = Plan::new(Whiteouts::Keep);
    assert!(plan.place(file(".wh.x")).unwrap().is_some());
}

#[test]
fn replaced_contents_are_handed_back_to_be_given_up() {
    let dir = tempfile::tempdir().unwrap();
    let file_out = std::fs::File::create_new(dir.path().join("i")).unwrap();
    let mut writer = crate::erofs::Writer::new(file_out);
    let mut content = |len: usize| {
        let mut file = writer.file();
        file.write(&vec![1; len]).unwrap();
        file.finish().unwrap()
    };
    let mut plan = Plan::new(Whiteouts::Apply);
    let first = plan.place(file("a")).unwrap().unwrap();
    let old = content(5000);
    plan.fill(first, old.clone());
    plan.place(link("b", "a")).unwrap();
    plan.place(file("a")).unwrap();
    assert_eq!(plan.take_freed(), [], "b still has it");
    plan.next_layer();
    plan.place(file(".wh.b")).unwrap();
    assert_eq!(plan.take_freed(), [old]);
}

/// Paths of few names, so that they meet, and of unfriendly ones.
fn any_path() -> impl Strategy<Value = String> {
    let part = prop::sample::select(vec![
        "a",
        "b",
        "c",
        ".",
        "..",
        "",
        ".wh.a",
        ".wh.b",
        ".wh..wh..opq",
        "/",
        "d\0",
    ]);
    prop::collection::vec(part, 1..5).prop_map(|parts| parts.join("/"))
}

fn any_entry() -> impl Strategy<Value = Entry> {
    let kind = prop_oneof![
        3 => Just(EntryKind::File),
        3 => Just(EntryKind::Directory),
        2 => any_path().prop_map(|path| EntryKind::Symlink(path.into())),
        2 => any_path().prop_map(|path| EntryKind::HardLink(path.into())),
        1 => Just(EntryKind::Fifo),
    ];
    (any_path(), kind).prop_map(|(path, kind)| entry(&path, kind))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn any_layers_give_a_sound_tree_or_an_error(
        layers in prop::collection::vec(prop::collection::vec(any_entry(), 0..12), 1..4),
    ) {
        let mut plan = Plan::new(Whiteouts::Apply);
        for layer in layers {
            plan.next_layer();
            for entry in layer {
                // A hostile entry is refused; what was placed before stays sound.
                let _ = plan.place(entry);
            }
        }
        let tree = plan.into_tree();
        let mut names = std::collections::HashMap::new();
        let mut open = vec![Tree::ROOT];
        while let Some(id) = open.pop() {
            for (name, child) in tree.children(id) {
                let is_whiteout = name.as_bytes().starts_with(b".wh.");
                prop_assert!(!is_whiteout || tree.node(child).kind.is_directory(), "{name:?}");
                *names.entry(child).or_insert(0) += 1;
                prop_assert!(names[&child] == 1 || !tree.node(child).kind.is_directory());
                open.push(child);
            }
        }
        for (id, count) in names {
            prop_assert_eq!(tree.node(id).names(), count);
        }
    }
}
