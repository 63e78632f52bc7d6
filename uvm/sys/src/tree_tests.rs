use super::*;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, symlink};

const AT: FileAttributes =
    FileAttributes { mode: 0o640, uid: 12, gid: 34, mtime_seconds: -5, mtime_nanoseconds: 999_999_999 };

/// A tree whose links all lead out of it, beside a folder that nobody may touch.
struct Hostile {
    folder: tempfile::TempDir,
    tree: Tree,
}

impl Hostile {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (root, outside) = (folder.path().join("root"), folder.path().join("outside"));
        std::fs::create_dir_all(root.join("etc")).unwrap();
        std::fs::create_dir(&outside).unwrap();
        std::fs::write(outside.join("secret"), "secret").unwrap();
        symlink(&outside, root.join("absolute")).unwrap();
        symlink("../outside", root.join("relative")).unwrap();
        symlink("../../outside/secret", root.join("etc/file")).unwrap();
        symlink("etc", root.join("inside")).unwrap();
        symlink("/proc/self/root", root.join("magic")).unwrap();
        let tree = Tree::open(&root).unwrap();
        Self { folder, tree }
    }

    fn write(&mut self, path: &[u8], contents: &[u8]) -> Result<()> {
        let mut file = self.tree.create_file(path)?;
        file.write_all(contents).unwrap();
        file.commit(AT)
    }

    /// Names and contents outside of the tree.
    fn outside(&self) -> Vec<(String, String)> {
        let folder = std::fs::read_dir(self.folder.path().join("outside")).unwrap();
        folder
            .map(|entry| {
                let path = entry.unwrap().path();
                (path.display().to_string(), std::fs::read_to_string(&path).unwrap())
            })
            .collect()
    }
}

#[test]
fn no_link_leads_out() {
    let mut hostile = Hostile::new();
    let before = hostile.outside();
    for folder in ["absolute", "relative", "inside", "magic"] {
        let path = format!("{folder}/secret").into_bytes();
        let tree = &mut hostile.tree;
        let kinds = [
            tree.metadata(&path).unwrap_err().kind(),
            tree.list(&path).unwrap_err().kind(),
            tree.open_file(&path).unwrap_err().kind(),
            tree.read_link(&path).unwrap_err().kind(),
            tree.create_file(&path).unwrap_err().kind(),
            tree.create_dir(&path, AT).unwrap_err().kind(),
            tree.symlink(&path, b"x", AT).unwrap_err().kind(),
            tree.create_special(&path, FileType::Fifo, AT).unwrap_err().kind(),
            tree.hard_link(b"new", &path).unwrap_err().kind(),
            tree.hard_link(&path, b"etc/file").unwrap_err().kind(),
            tree.remove(&path).unwrap_err().kind(),
            tree.rename(&path, b"new").unwrap_err().kind(),
            tree.rename(b"etc/file", &path).unwrap_err().kind(),
            tree.set_attributes(&path, AT).unwrap_err().kind(),
            tree.set_xattr(&path, b"user.x", b"1").unwrap_err().kind(),
            tree.xattrs(&path).unwrap_err().kind(),
        ];
        assert_eq!(kinds, [ErrorKind::SymlinkInPath; 16], "{folder}");
    }
    // A link in the last place is the entry itself.
    assert_eq!(hostile.tree.open_file(b"etc/file").unwrap_err().kind(), ErrorKind::WrongType);
    assert_eq!(hostile.tree.list(b"relative").unwrap_err().kind(), ErrorKind::WrongType);
    hostile.tree.set_attributes(b"etc/file", AT).unwrap();
    hostile.write(b"etc/file", b"new").unwrap();
    hostile.tree.remove(b"absolute").unwrap();
    assert_eq!(hostile.outside(), before);
    let secret = std::fs::metadata(hostile.folder.path().join("outside/secret")).unwrap();
    assert_eq!((secret.uid(), secret.mtime() > 0), (0, true));
    let mut text = String::new();
    hostile.tree.open_file(b"etc/file").unwrap().read_to_string(&mut text).unwrap();
    assert_eq!(text, "new");
}

#[test]
fn a_path_that_climbs_is_refused() {
    let mut hostile = Hostile::new();
    for path in [&b"../outside/new"[..], b"etc/../../outside/new", b"/etc/passwd", b"etc/..", b"..", b"etc/"]
    {
        let kinds = [
            hostile.tree.metadata(path).unwrap_err().kind(),
            hostile.tree.create_file(path).unwrap_err().kind(),
            hostile.tree.remove(path).unwrap_err().kind(),
        ];
        assert_eq!(kinds, [ErrorKind::Invalid; 3], "{path:?}");
    }
    assert_eq!(hostile.outside().len(), 1);
}

#[test]
fn what_is_no_file_is_never_opened() {
    let mut hostile = Hostile::new();
    // Opening it would wait for ever.
    hostile.tree.create_special(b"fifo", FileType::Fifo, AT).unwrap();
    // /dev/console and the like: reading has effects.
    hostile.tree.create_special(b"tty", FileType::CharDevice { major: 5, minor: 1 }, AT).unwrap();
    for path in [&b"fifo"[..], b"tty", b"etc", b"inside"] {
        assert_eq!(hostile.tree.open_file(path).unwrap_err().kind(), ErrorKind::WrongType);
        hostile.tree.xattrs(path).unwrap();
    }
    let metadata = hostile.tree.metadata(b"tty").unwrap().unwrap();
    assert_eq!(metadata.file_type, FileType::CharDevice { major: 5, minor: 1 });
    assert_eq!(metadata.attributes, AT);
}

#[test]
fn a_file_has_its_name_when_it_is_whole() {
    let mut hostile = Hostile::new();
    hostile.write(b"etc/a", b"old").unwrap();
    hostile.tree.hard_link(b"etc/b", b"etc/a").unwrap();
    let names = |tree: &Tree| {
        let mut names: Vec<_> = tree.list(b"etc").unwrap().into_iter().map(|(name, _)| name).collect();
        names.sort();
        names
    };
    let mut half = hostile.tree.create_file(b"etc/a").unwrap();
    half.write_all(b"ne").unwrap();
    drop(half);
    assert_eq!(names(&hostile.tree), [&b"a"[..], b"b", b"file"], "nothing of the half file stays");
    // What a cut of the power leaves behind is in nobody's way.
    let root = hostile.folder.path().join("root/etc");
    std::fs::write(root.join(".uvm-unfinished"), "half").unwrap();
    hostile.write(b"etc/a", b"new").unwrap();
    assert_eq!(names(&hostile.tree), [&b"a"[..], b"b", b"file"]);
    let read = |name: &str| std::fs::read_to_string(root.join(name)).unwrap();
    assert_eq!((read("a").as_str(), read("b").as_str()), ("new", "old"));
    assert_eq!(hostile.tree.metadata(b"etc/a").unwrap().unwrap().attributes, AT);
    assert_eq!(hostile.write(b"etc", b"").unwrap_err().kind(), ErrorKind::WrongType);
}

#[test]
fn a_new_owner_keeps_capabilities_and_set_uid() {
    let mut hostile = Hostile::new();
    hostile.write(b"ping", b"x").unwrap();
    let capability = b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0".to_vec();
    hostile.tree.set_xattr(b"ping", b"security.capability", &capability).unwrap();
    let attributes = FileAttributes { mode: 0o4755, uid: 70_000, gid: 80_000, ..AT };
    hostile.tree.set_attributes(b"ping", attributes).unwrap();
    assert_eq!(hostile.tree.xattrs(b"ping").unwrap(), [(b"security.capability".to_vec(), capability)]);
    assert_eq!(hostile.tree.metadata(b"ping").unwrap().unwrap().attributes, attributes);
    // No number that means "as it is" gets through.
    let nobody = FileAttributes { uid: u32::MAX, ..AT };
    assert_eq!(hostile.tree.set_attributes(b"ping", nobody).unwrap_err().kind(), ErrorKind::Invalid);
    let omit = FileAttributes { mtime_nanoseconds: (1 << 30) - 2, ..AT };
    assert_eq!(hostile.tree.set_attributes(b"ping", omit).unwrap_err().kind(), ErrorKind::Invalid);
    assert_eq!(hostile.tree.metadata(b"ping").unwrap().unwrap().attributes, attributes);
}
