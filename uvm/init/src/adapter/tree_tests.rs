//! What every home of [`GuestTree`] must do alike: the tree in memory says what is right, a mounted one and those under
//! construction follow; FAT as far as it has the means.

use std::ops::ControlFlow;
use std::sync::Arc;

use uvm_disk::Memory;
use uvm_disk::ext4::{Ext4Builder, Ext4Options, Journal, Variant};
use uvm_disk::fat::{FatBuilder, FatOptions, FatReader, FatType};
use uvm_guest::{
    Attributes, ErrorKind, GuestPath, GuestTree, Kind, MemoryTree, Result, Timestamp, create_dir_all, edit,
    layer, remove_all, resolve, write_bytes,
};
use uvm_sys::Tree;

use super::builder::{BuilderTree, Mounted, Volume};
use super::mounted::MountedTree;

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
                // mke2fs makes it, e2fsck wants it.
                let ours = entries.iter().filter(|(name, _)| name != b"lost+found");
                pending.extend(ours.map(|(name, _)| path.join(name).unwrap()));
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

/// The same with files and directories alone, and without what FAT drops.
fn converse_plainly(tree: &mut dyn GuestTree) -> Vec<String> {
    let mut said = Vec::new();
    let mut say = |what: &str, answer: String| said.push(format!("{what}: {answer}"));
    tree.set_attributes(&p("/"), AT).unwrap();
    tree.create_dir(&p("/d"), AT).unwrap();
    tree.create_dir(&p("/d/empty"), AT).unwrap();
    write_bytes(tree, &p("/d/File one"), AT, b"first").unwrap();
    write_bytes(tree, &p("/d/File one"), AT, b"second, longer").unwrap();
    say("replaced", kind(tree.read(&p("/d/File one"), 14)));
    write_bytes(tree, &p("/d/über"), AT, &[7; 100_000]).unwrap();
    tree.rename(&p("/d/File one"), &p("/moved")).unwrap();
    tree.rename(&p("/d/empty"), &p("/e")).unwrap();
    write_bytes(tree, &p("/gone"), AT, b"x").unwrap();
    write_bytes(tree, &p("/over"), AT, b"y").unwrap();
    tree.rename(&p("/gone"), &p("/over")).unwrap();
    let mut sink = Vec::new();
    say("copied out", kind(tree.copy_out(&p("/d/über"), &mut sink)) + &format!("{sink:?}"));
    say("listed", format!("{:?}", tree.list(&p("/d")).unwrap()));
    say("missing", kind(tree.metadata(&p("/x"))) + &kind(tree.metadata(&p("/x/y/z"))));
    say("through a file", kind(tree.metadata(&p("/moved/x"))) + &kind(tree.create_dir(&p("/moved/x"), AT)));
    say("read", kind(tree.read(&p("/x"), 9)) + &kind(tree.read(&p("/d"), 9)));
    say("limit", kind(tree.read(&p("/moved"), 13)));
    say("list", kind(tree.list(&p("/moved"))) + &kind(tree.list(&p("/x"))));
    say("no link", kind(tree.read_link(&p("/moved"))) + &kind(tree.read_link(&p("/x"))));
    say("write", kind(write_bytes(tree, &p("/d"), AT, b"")) + &kind(write_bytes(tree, &p("/x/y"), AT, b"")));
    say("write the root", kind(write_bytes(tree, &p("/"), AT, b"")));
    say("short", kind(tree.write(&p("/moved"), AT, 3, &mut &b"ab"[..])) + &kind(tree.read(&p("/moved"), 99)));
    say(
        "short and new",
        kind(tree.write(&p("/new"), AT, 3, &mut &b"ab"[..])) + &kind(tree.metadata(&p("/new"))),
    );
    let mut more = &b"abcd"[..];
    say("no more than said", kind(tree.write(&p("/d/abc"), AT, 3, &mut more)) + &format!("{more:?}"));
    say("create", kind(tree.create_dir(&p("/d"), AT)) + &kind(tree.create_dir(&p("/moved"), AT)));
    say("remove", kind(tree.remove(&p("/d"))) + &kind(tree.remove(&p("/x"))) + &kind(tree.remove(&p("/"))));
    let same = kind(tree.rename(&p("/moved"), &p("/moved")));
    say("into itself", kind(tree.rename(&p("/d"), &p("/d/e"))) + &same);
    let over = kind(tree.rename(&p("/e"), &p("/moved")));
    say("over a directory", kind(tree.rename(&p("/moved"), &p("/e"))) + &over);
    say("from nowhere", kind(tree.rename(&p("/x"), &p("/new"))) + &kind(tree.rename(&p("/d"), &p("/x/y"))));
    say("nothing to set", kind(tree.set_attributes(&p("/x"), AT)));
    say("nothing to tell", kind(tree.xattrs(&p("/x"))) + &kind(tree.xattrs(&p("/moved"))));
    create_dir_all(tree, &p("/a/b/c"), AT).unwrap();
    write_bytes(tree, &p("/a/b/c/f"), AT, b"x").unwrap();
    tree.rename(&p("/a/b"), &p("/e/b")).unwrap();
    remove_all(tree, &p("/a")).unwrap();
    edit(tree, &p("/e/b/c/f"), AT, &mut |old| Ok([old, b"new"].concat())).unwrap();
    let mut pending = vec![GuestPath::root()];
    while let Some(path) = pending.pop() {
        let entry = tree.metadata(&path).unwrap().unwrap().kind;
        let contents = if entry == Kind::Directory { Vec::new() } else { tree.read(&path, 1 << 20).unwrap() };
        if entry == Kind::Directory {
            pending.extend(tree.list(&path).unwrap().iter().map(|(name, _)| path.join(name).unwrap()));
        }
        say(&path.to_string(), format!("{entry:?} {contents:?}"));
    }
    said
}

fn same(expected: Vec<String>, said: Vec<String>) {
    let other: Vec<_> = expected.iter().zip(&said).filter(|(expected, said)| expected != said).collect();
    assert!(other.is_empty() && said.len() == expected.len(), "{other:#?}");
}

#[test]
fn a_mounted_tree_says_what_the_tree_in_memory_says() {
    let folder = tempfile::tempdir().unwrap();
    let mut mounted = MountedTree::new(Tree::open(folder.path()).unwrap());
    let expected = converse(&mut MemoryTree::new());
    assert!(expected.len() > 70, "{}", expected.len());
    same(expected, converse(&mut mounted));
    mounted.sync().unwrap();
}

fn ext4() -> Volume {
    let options = Ext4Options {
        journal: Journal::None,
        ..Ext4Options::new(Variant::Ext4, [1; 16], [2; 16], 1_700_000_000)
    };
    Ext4Builder::new(Arc::new(Memory::new(64 << 20, 512)), options).unwrap().into()
}

fn fat(memory: &Arc<Memory>, fat_type: FatType) -> Volume {
    let options = FatOptions { fat_type: Some(fat_type), timestamp: 1_700_000_000, ..FatOptions::default() };
    FatBuilder::new(Arc::clone(memory) as uvm_disk::Device, options).unwrap().into()
}

fn alone(volume: Volume) -> BuilderTree {
    BuilderTree::new(vec![Mounted { at: GuestPath::root(), volume }], AT).unwrap()
}

#[test]
fn an_ext4_under_construction_says_what_the_tree_in_memory_says() {
    let mut tree = alone(ext4());
    same(converse(&mut MemoryTree::new()), converse(&mut tree));
    tree.into_volumes().for_each(|volume| volume.finish().unwrap());
}

#[test]
fn a_fat_under_construction_says_what_the_tree_in_memory_says() {
    for (size, block, fat_type) in [
        (2 << 20, 512, FatType::Fat12),
        (16 << 20, 512, FatType::Fat16),
        (64 << 20, 4096, FatType::Fat16),
        (34 << 20, 512, FatType::Fat32),
    ] {
        let memory = Arc::new(Memory::new(size, block));
        let mut tree = alone(fat(&memory, fat_type));
        let expected = converse_plainly(&mut MemoryTree::new());
        assert!(expected.len() > 30, "{}", expected.len());
        same(expected, converse_plainly(&mut tree));
        tree.into_volumes().for_each(|volume| volume.finish().unwrap());
        let reader = FatReader::open(&*memory).unwrap();
        assert_eq!(reader.read_file("e/b/c/f", 9).unwrap(), b"xnew", "{fat_type:?}");
        assert_eq!(reader.read_file("d/Über", 1 << 20).unwrap(), [7; 100_000]);
    }
}

#[test]
fn what_fat_cannot_hold_is_refused_or_dropped() {
    let memory = Arc::new(Memory::new(16 << 20, 512));
    let mut tree = alone(fat(&memory, FatType::Fat16));
    write_bytes(&mut tree, &p("/Makefile"), Attributes { mode: 0o4755, ..AT }, b"1").unwrap();
    let attributes = tree.metadata(&p("/makeFILE")).unwrap().unwrap().attributes;
    let kept = Timestamp { seconds: 315_532_800, nanoseconds: 0 };
    assert_eq!(attributes, Attributes::root(0o755, kept), "in any case, root's, not before 1980");
    let later = Attributes { mtime: Timestamp { seconds: 1_700_000_001, nanoseconds: 9 }, ..AT };
    tree.set_attributes(&p("/Makefile"), later).unwrap();
    assert_eq!(tree.metadata(&p("/Makefile")).unwrap().unwrap().attributes.mtime.seconds, 1_700_000_000);
    let refused = [
        kind(write_bytes(&mut tree, &p("/makefile"), AT, b"2")),
        kind(tree.create_dir(&p("/MAKEFILE"), AT)),
        kind(tree.symlink(&p("/l"), b"Makefile", AT)),
        kind(tree.hard_link(&p("/h"), &p("/Makefile"))),
        kind(tree.create_special(&p("/null"), Kind::CharDevice { major: 1, minor: 3 }, AT)),
        kind(tree.set_xattr(&p("/Makefile"), b"user.x", b"1")),
        kind(write_bytes(&mut tree, &GuestPath::absolute(b"/\xff").unwrap(), AT, b"")),
        kind(write_bytes(&mut tree, &p("/a:b"), AT, b"")),
        kind(write_bytes(&mut tree, &p("/dot."), AT, b"")),
    ];
    let (exists, unsupported, invalid) = ("Exists", "Unsupported", "Invalid");
    let expected =
        [exists, exists, unsupported, unsupported, unsupported, unsupported, invalid, invalid, invalid];
    assert_eq!(refused, expected);
    tree.rename(&p("/Makefile"), &p("/makefile")).unwrap();
    assert_eq!(tree.list(&p("/")).unwrap(), [(b"makefile".to_vec(), Kind::File { size: 1 })]);
    assert_eq!(tree.read(&p("/makefile"), 9).unwrap(), b"1");
}

#[test]
fn names_of_one_archive_that_differ_in_case_alone_are_refused_on_fat() {
    let archive = |names: &[&str]| {
        let mut archive = tar::Builder::new(Vec::new());
        for name in names {
            let mut header = tar::Header::new_ustar();
            header.set_size(0);
            header.set_mode(0o644);
            header.set_uid(0);
            header.set_gid(0);
            header.set_mtime(0);
            archive.append_data(&mut header, name, std::io::empty()).unwrap();
        }
        archive.into_inner().unwrap()
    };
    let fill = |archives: &[&[&str]]| {
        let mut tree = alone(fat(&Arc::new(Memory::new(16 << 20, 512)), FatType::Fat16));
        archives.iter().try_fold(tree.list(&p("/")).unwrap(), |_, names| {
            let limits = layer::Limits::default();
            let bytes = archive(names);
            layer::apply(&mut &bytes[..], &mut tree, &limits, &mut |_| ControlFlow::Continue(()))?;
            tree.list(&p("/"))
        })
    };
    let refused: [&[&[&str]]; 5] = [
        &[&["README", "Readme"]],
        &[&["D/x", "d/x"]],
        &[&["D/x", "d"]],
        &[&["a"], &["A"]],
        &[&["a"], &[".wh.A"]],
    ];
    for archives in refused {
        let complaint = format!("{:?}", fill(archives).unwrap_err());
        assert!(complaint.contains("differ in case alone"), "{archives:?}: {complaint}");
    }
    // Directories merge; what a later layer has by the same name replaces.
    assert_eq!(fill(&[&["D/x", "d/y", "a"], &["D/x", "a", ".wh.b"]]).unwrap().len(), 2);
}

#[test]
fn file_systems_of_two_kinds_are_one_tree() {
    let memory = Arc::new(Memory::new(34 << 20, 512));
    let mounted = vec![
        Mounted { at: GuestPath::root(), volume: ext4() },
        Mounted { at: p("/boot/efi"), volume: fat(&memory, FatType::Fat32) },
    ];
    let mut tree = BuilderTree::new(mounted, AT).unwrap();
    let kernel: Vec<u8> = (0..3_000_000).map(|i: u32| (i * 7 + i / 255) as u8).collect();
    write_bytes(&mut tree, &p("/boot/vmlinuz"), AT, &kernel).unwrap();
    create_dir_all(&mut tree, &p("/boot/efi/EFI/BOOT"), AT).unwrap();
    tree.copy(&p("/boot/vmlinuz"), &p("/boot/efi/EFI/BOOT/BOOTX64.EFI"), AT).unwrap();
    tree.copy(&p("/boot/efi/EFI/BOOT/BOOTX64.EFI"), &p("/boot/efi/linux"), AT).unwrap();
    assert_eq!(tree.read(&p("/boot/efi/linux"), 1 << 22).unwrap(), kernel);
    let listed: Vec<_> = tree.list(&p("/boot")).unwrap().into_iter().map(|entry| entry.0).collect();
    assert_eq!(listed, [&b"efi"[..], b"vmlinuz"]);
    let refused = [
        tree.rename(&p("/boot/vmlinuz"), &p("/boot/efi/vmlinuz")).unwrap_err().kind(),
        tree.rename(&p("/boot"), &p("/b")).unwrap_err().kind(),
        tree.hard_link(&p("/boot/efi/vmlinuz"), &p("/boot/vmlinuz")).unwrap_err().kind(),
        tree.remove(&p("/boot/efi")).unwrap_err().kind(),
        tree.create_dir(&p("/boot/efi"), AT).unwrap_err().kind(),
        tree.copy(&p("/boot/vmlinuz"), &p("/boot/again"), AT).unwrap_err().kind(),
        tree.copy(&p("/boot/none"), &p("/boot/efi/none"), AT).unwrap_err().kind(),
    ];
    use ErrorKind::{Fixed, Invalid, NotFound, Unsupported};
    assert_eq!(refused, [Unsupported, Unsupported, Unsupported, Fixed, Invalid, Unsupported, NotFound]);
    tree.into_volumes().for_each(|volume| volume.finish().unwrap());
    let reader = FatReader::open(&*memory).unwrap();
    assert_eq!(reader.read_file("EFI/BOOT/BOOTX64.EFI", 1 << 22).unwrap(), kernel);
    assert_eq!(reader.read_file("linux", 1 << 22).unwrap(), kernel);
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
