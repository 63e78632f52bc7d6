//! What every home of [`GuestTree`] must do alike: the tree in memory says what is right, a mounted one follows.

use super::*;
use uvm_guest::{MemoryTree, create_dir_all, edit, remove_all, resolve, write_bytes};

const AT: Attributes =
    Attributes { mode: 0o644, uid: 1, gid: 70_000, mtime: Timestamp { seconds: -1, nanoseconds: 5 } };

fn p(path: &str) -> GuestPath {
    GuestPath::absolute(path).unwrap()
}

/// Calls each home in the same way, and collects everything it says.
fn converse(tree: &mut dyn GuestTree) -> Vec<String> {
    let mut said = Vec::new();
    let mut say = |what: &str, answer: String| said.push(format!("{what}: {answer}"));
    changes(tree, &mut say);
    refusals(tree, &mut say);
    through_links(tree, &mut say);
    helpers(tree, &mut say);
    let mut pending = vec![GuestPath::root()];
    while let Some(path) = pending.pop() {
        let metadata = tree.metadata(&path).unwrap().unwrap();
        let contents = match metadata.kind {
            Kind::File { .. } => Some(tree.read(&path, 1 << 20).unwrap()),
            Kind::Symlink => Some(tree.read_link(&path).unwrap()),
            Kind::Directory => {
                let entries = tree.list(&path).unwrap();
                pending.extend(entries.iter().map(|(name, _)| path.join(name).unwrap()));
                None
            }
            _ => None,
        };
        // The times of directories move with their entries where a kernel keeps them.
        let mut attributes = metadata.attributes;
        if metadata.kind == Kind::Directory {
            attributes.mtime = Timestamp::default();
        }
        let xattrs = tree.xattrs(&path).unwrap();
        say(&path.to_string(), format!("{:?} {attributes:?} {contents:?} {xattrs:?}", metadata.kind));
    }
    said
}

fn kind<T: std::fmt::Debug>(result: Result<T>) -> String {
    match result {
        Ok(value) => format!("{value:?}"),
        Err(error) => format!("{:?}", error.kind()),
    }
}

fn changes(tree: &mut dyn GuestTree, say: &mut dyn FnMut(&str, String)) {
    tree.set_attributes(&p("/"), Attributes { mode: 0o750, ..AT }).unwrap();
    tree.create_dir(&p("/d"), Attributes { mode: 0o2755, ..AT }).unwrap();
    tree.create_dir(&p("/d/empty"), AT).unwrap();
    write_bytes(tree, &p("/d/f"), AT, b"first").unwrap();
    tree.set_xattr(&p("/d/f"), b"user.note", b"gone with the file").unwrap();
    tree.hard_link(&p("/d/other"), &p("/d/f")).unwrap();
    write_bytes(tree, &p("/d/f"), Attributes { mode: 0o4755, ..AT }, b"second, longer").unwrap();
    say("replaced", kind(tree.read(&p("/d/f"), 14)));
    say("its other name", kind(tree.read(&p("/d/other"), 14)));
    tree.set_xattr(&p("/d/f"), b"user.b", b"").unwrap();
    tree.set_xattr(&p("/d/f"), b"trusted.a", &[7; 300]).unwrap();
    tree.set_xattr(&p("/d"), b"user.dir", b"1").unwrap();
    tree.symlink(&p("/l"), b"d", AT).unwrap();
    tree.symlink(&p("/dangling"), b"../../../../etc/passwd", AT).unwrap();
    tree.set_xattr(&p("/l"), b"trusted.link", b"of the link itself").unwrap();
    tree.set_attributes(&p("/l"), Attributes { uid: 9, ..AT }).unwrap();
    tree.create_special(&p("/d/null"), Kind::CharDevice { major: 1, minor: 3 }, AT).unwrap();
    tree.create_special(&p("/d/disk"), Kind::BlockDevice { major: 259, minor: 70_000 }, AT).unwrap();
    tree.create_special(&p("/d/fifo"), Kind::Fifo, Attributes { mode: 0o7777, ..AT }).unwrap();
    tree.create_special(&p("/d/socket"), Kind::Socket, AT).unwrap();
    tree.hard_link(&p("/d/null-2"), &p("/d/null")).unwrap();
    write_bytes(tree, &p("/d/fifo-2"), AT, b"x").unwrap();
    tree.rename(&p("/d/fifo"), &p("/d/fifo-2")).unwrap();
    tree.rename(&p("/d/f"), &p("/moved")).unwrap();
    tree.rename(&p("/d/empty"), &p("/e")).unwrap();
    write_bytes(tree, &p("/dangling-2"), AT, b"x").unwrap();
    tree.rename(&p("/dangling"), &p("/dangling-2")).unwrap();
    write_bytes(tree, &p("/d/null"), AT, b"a file now").unwrap();
    tree.set_attributes(&p("/moved"), Attributes { uid: 4_000_000_000, mode: 0o6711, ..AT }).unwrap();
    let mut sink = Vec::new();
    say("copied out", kind(tree.copy_out(&p("/moved"), &mut sink)) + &format!("{sink:?}"));
    say("listed", format!("{:?}", tree.list(&p("/d")).unwrap()));
}

fn refusals(tree: &mut dyn GuestTree, say: &mut dyn FnMut(&str, String)) {
    say("missing", kind(tree.metadata(&p("/x"))) + &kind(tree.metadata(&p("/x/y/z"))));
    say("through a file", kind(tree.metadata(&p("/moved/x"))) + &kind(tree.create_dir(&p("/moved/x"), AT)));
    say(
        "read",
        kind(tree.read(&p("/x"), 9)) + &kind(tree.read(&p("/d"), 9)) + &kind(tree.read(&p("/d/disk"), 9)),
    );
    say("fifo", kind(tree.read(&p("/d/fifo-2"), 9)) + &kind(tree.copy_out(&p("/l"), &mut Vec::new())));
    say("limit", kind(tree.read(&p("/moved"), 13)));
    say("list", kind(tree.list(&p("/moved"))) + &kind(tree.list(&p("/l"))) + &kind(tree.list(&p("/x"))));
    say(
        "no link",
        kind(tree.read_link(&p("/moved"))) + &kind(tree.read_link(&p("/"))) + &kind(tree.read_link(&p("/x"))),
    );
    say("write", kind(write_bytes(tree, &p("/d"), AT, b"")) + &kind(write_bytes(tree, &p("/x/y"), AT, b"")));
    say("write the root", kind(write_bytes(tree, &p("/"), AT, b"")));
    say("short", kind(tree.write(&p("/moved"), AT, 3, &mut &b"ab"[..])) + &kind(tree.read(&p("/moved"), 99)));
    let mut more = &b"abcd"[..];
    say("no more than said", kind(tree.write(&p("/d/abc"), AT, 3, &mut more)) + &format!("{more:?}"));
    for there in ["/d", "/l", "/moved"] {
        say("create", kind(tree.create_dir(&p(there), AT)) + &kind(tree.symlink(&p(there), b"x", AT)));
        say(
            "more",
            kind(tree.create_special(&p(there), Kind::Fifo, AT))
                + &kind(tree.hard_link(&p(there), &p("/moved"))),
        );
    }
    say("no target", kind(tree.symlink(&p("/new"), b"", AT)) + &kind(tree.symlink(&p("/new"), b"a\0", AT)));
    say("no special", kind(tree.create_special(&p("/new"), Kind::Directory, AT)));
    say("link", kind(tree.hard_link(&p("/new"), &p("/d"))) + &kind(tree.hard_link(&p("/new"), &p("/x"))));
    say("remove", kind(tree.remove(&p("/d"))) + &kind(tree.remove(&p("/x"))) + &kind(tree.remove(&p("/"))));
    say(
        "into itself",
        kind(tree.rename(&p("/d"), &p("/d/e"))) + &kind(tree.rename(&p("/moved"), &p("/moved"))),
    );
    say(
        "over a directory",
        kind(tree.rename(&p("/moved"), &p("/e"))) + &kind(tree.rename(&p("/e"), &p("/moved"))),
    );
    say("from nowhere", kind(tree.rename(&p("/x"), &p("/new"))) + &kind(tree.rename(&p("/l"), &p("/x/y"))));
    say(
        "the same file",
        kind(tree.hard_link(&p("/twin"), &p("/moved"))) + &kind(tree.rename(&p("/twin"), &p("/moved"))),
    );
    say(
        "nothing to set",
        kind(tree.set_attributes(&p("/x"), AT)) + &kind(tree.set_xattr(&p("/x"), b"user.x", b"")),
    );
    say("nothing to tell", kind(tree.xattrs(&p("/x"))));
}

fn through_links(tree: &mut dyn GuestTree, say: &mut dyn FnMut(&str, String)) {
    for path in ["/l/f", "/l/new", "/dangling-2/x"].map(p) {
        say("look", kind(tree.metadata(&path)) + &kind(tree.list(&path)) + &kind(tree.xattrs(&path)));
        say("read", kind(tree.read(&path, 9)) + &kind(tree.read_link(&path)));
        say("write", kind(write_bytes(tree, &path, AT, b"y")) + &kind(tree.create_dir(&path, AT)));
        say("make", kind(tree.symlink(&path, b"x", AT)) + &kind(tree.create_special(&path, Kind::Fifo, AT)));
        say("link", kind(tree.hard_link(&p("/new"), &path)) + &kind(tree.hard_link(&path, &p("/moved"))));
        say("move", kind(tree.rename(&path, &p("/new"))) + &kind(tree.rename(&p("/moved"), &path)));
        say("set", kind(tree.set_attributes(&path, AT)) + &kind(tree.set_xattr(&path, b"user.x", b"")));
        say("remove", kind(tree.remove(&path)));
    }
}

fn helpers(tree: &mut dyn GuestTree, say: &mut dyn FnMut(&str, String)) {
    say("resolved", kind(resolve(tree, &p("/l/other"))) + &kind(resolve(tree, &p("/dangling-2"))));
    create_dir_all(tree, &p("/a/b/c"), AT).unwrap();
    write_bytes(tree, &p("/a/b/c/f"), AT, b"x").unwrap();
    tree.symlink(&p("/a/b/out"), b"/d", AT).unwrap();
    remove_all(tree, &p("/a/b")).unwrap();
    let secret = Attributes { mode: 0o600, uid: 3, gid: 42, ..AT };
    write_bytes(tree, &p("/shadow"), secret, b"old\n").unwrap();
    tree.set_xattr(&p("/shadow"), b"security.selinux", b"system_u:object_r:shadow_t:s0").unwrap();
    tree.symlink(&p("/a/link"), b"../shadow", AT).unwrap();
    edit(tree, &p("/a/link"), AT, &mut |old| Ok([old, b"new\n"].concat())).unwrap();
}

#[test]
fn a_mounted_tree_says_what_the_tree_in_memory_says() {
    let folder = tempfile::tempdir().unwrap();
    let mut mounted = MountedTree::new(Tree::open(folder.path()).unwrap());
    let expected = converse(&mut MemoryTree::new());
    let said = converse(&mut mounted);
    assert!(expected.len() > 70, "{}", expected.len());
    let other: Vec<_> = expected.iter().zip(&said).filter(|(expected, said)| expected != said).collect();
    assert!(other.is_empty() && said.len() == expected.len(), "{other:#?}");
    mounted.sync().unwrap();
}

#[test]
fn what_was_changed_is_known() {
    let folder = tempfile::tempdir().unwrap();
    let mut tree = MountedTree::new(Tree::open(folder.path()).unwrap());
    write_bytes(&mut tree, &p("/a"), AT, b"1").unwrap();
    edit(&mut tree, &p("/a"), AT, &mut |old| Ok(old.to_vec())).unwrap();
    tree.rename(&p("/a"), &p("/b")).unwrap();
    tree.read(&p("/b"), 1).unwrap();
    let changed: Vec<String> = tree.changed().iter().map(ToString::to_string).collect();
    assert_eq!(changed, ["/a", "/b"]);
}
