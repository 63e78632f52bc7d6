//! What the kernel makes of it.

use std::fs;
use std::os::unix::fs::MetadataExt;

use uvm_disk::ext4::{Ext4Builder, Ext4Options, Inodes};

use crate::device::{Image, attributes, options, run};
use crate::{GIB, MIB};

#[test]
fn the_kernel_goes_on_writing_where_we_stopped() {
    for (size, block_size, inode_ratio) in
        [(8 * MIB, 4096, 8192), (300 * MIB, 4096, 16_384), (3 * GIB, 1024, 16_384)]
    {
        let image = Image::new(size, 512);
        let options = Ext4Options { block_size, inodes: Inodes::Ratio(inode_ratio), ..options() };
        let mut builder = Ext4Builder::new(image.device.clone(), options).expect("new");
        let mut dir = builder.root();
        for level in 0..40 {
            dir =
                builder.create_dir(dir, format!("level{level}").as_bytes(), attributes(0o755)).expect("room");
            builder
                .create_file(dir, b"file", attributes(0o644), 5000, &mut std::io::repeat(1))
                .expect("room");
        }
        builder.finish().expect("finished");
        image.assert_clean();
        let mounted = image.mount();
        let count = (size / MIB).min(100) * 20;
        for index in 0..count {
            let dir = mounted.path().join(format!("level0/new{}", index % 10));
            fs::create_dir_all(&dir).expect("a directory");
            fs::write(dir.join(format!("file{index}")), vec![2; index as usize * 7]).expect("a file");
        }
        for index in (0..count).step_by(2) {
            let path = mounted.path().join(format!("level0/new{}/file{index}", index % 10));
            fs::remove_file(path).expect("removed");
        }
        fs::remove_dir_all(mounted.path().join("level0/level1")).expect("removed");
        drop(mounted);
        image.assert_clean();
    }
}

#[test]
fn holes_and_many_extents_come_through() {
    let image = Image::new(3 * GIB, 512);
    let mut builder = Ext4Builder::new(image.device.clone(), options()).expect("new");
    let root = builder.root();
    // A block of data, 16 of zeros, again and again: 1700 extents in five leaves below one node.
    let piece: Vec<u8> = (0..17 * 4096).map(|n| u8::from(n < 4096) * 3).collect();
    let contents = piece.repeat(1700);
    let size = contents.len() as u64;
    builder.create_file(root, b"combed", attributes(0o644), size, &mut &contents[..]).expect("room");
    builder
        .create_file(root, b"hole", attributes(0o644), 9 * MIB + 5, &mut std::io::repeat(0))
        .expect("room");
    builder.create_file(root, b"large", attributes(0o644), GIB, &mut std::io::repeat(4)).expect("room");
    builder.finish().expect("finished");
    image.assert_clean();
    let mounted = image.mount();
    let combed = mounted.path().join("combed");
    assert!(fs::read(&combed).expect("reads") == contents);
    assert_eq!(fs::metadata(&combed).expect("is there").blocks(), 8 * (1700 + 6));
    let hole = fs::metadata(mounted.path().join("hole")).expect("is there");
    assert_eq!((hole.len(), hole.blocks()), (9 * MIB + 5, 0));
    let large = fs::read(mounted.path().join("large")).expect("reads");
    assert!(large.len() as u64 == GIB && large.iter().all(|byte| *byte == 4));
    let stat = image.debugfs("stat /large");
    assert!(stat.contains("Size: 1073741824"), "{stat}");
}

#[test]
fn directories_of_any_size_and_more_subdirectories_than_links() {
    let image = Image::new(3 * GIB, 512);
    let options = Ext4Options { inodes: Inodes::Ratio(8192), ..options() };
    let mut builder = Ext4Builder::new(image.device.clone(), options).expect("new");
    let root = builder.root();
    let many = builder.create_dir(root, b"many", attributes(0o755)).expect("room");
    for index in 0..65_100 {
        builder.create_dir(many, format!("directory {index}").as_bytes(), attributes(0o755)).expect("room");
    }
    assert_eq!(builder.links(many).expect("in use"), 1);
    let files = builder.create_dir(root, b"files", attributes(0o755)).expect("room");
    for index in 0..30_000 {
        let name = format!("{index:0>100}");
        builder
            .create_file(files, name.as_bytes(), attributes(0o644), 0, &mut std::io::empty())
            .expect("room");
    }
    builder.finish().expect("finished");
    image.assert_clean();
    let mounted = image.mount();
    assert_eq!(fs::read_dir(mounted.path().join("many")).expect("reads").count(), 65_100);
    let names = fs::read_dir(mounted.path().join("files")).expect("reads");
    let mut names: Vec<_> = names.map(|entry| entry.expect("reads").file_name()).collect();
    names.sort();
    assert!(names.iter().enumerate().all(|(index, name)| *name == *format!("{index:0>100}")));
    assert_eq!(names.len(), 30_000);
    fs::create_dir(mounted.path().join("many/one more directory")).expect("created");
    fs::write(mounted.path().join("many/one more"), "file").expect("created");
    fs::remove_dir(mounted.path().join("many/directory 7")).expect("removed");
    fs::create_dir(mounted.path().join("files/directory")).expect("created");
    drop(mounted);
    image.assert_clean();
}

#[test]
fn acls_and_capabilities_are_the_kernels() {
    let image = Image::new(64 * MIB, 512);
    let mut builder = Ext4Builder::new(image.device.clone(), options()).expect("new");
    let root = builder.root();
    let acl = |entries: &[(u16, u16, u32)]| {
        let entries = entries.iter().flat_map(|(tag, permissions, id)| {
            [&tag.to_le_bytes()[..], &permissions.to_le_bytes(), &id.to_le_bytes()].concat()
        });
        2u32.to_le_bytes().into_iter().chain(entries).collect::<Vec<u8>>()
    };
    let none = u32::MAX;
    let value = acl(&[(1, 6, none), (2, 4, 1000), (4, 4, none), (8, 6, 1001), (16, 6, none), (32, 0, none)]);
    let file = builder.create_file(root, b"file", attributes(0o660), 3, &mut &b"abc"[..]).expect("room");
    let dir = builder.create_dir(root, b"dir", attributes(0o755)).expect("room");
    builder.set_xattr(file, b"system.posix_acl_access", &value).expect("an ACL");
    builder.set_xattr(dir, b"system.posix_acl_default", &value).expect("an ACL");
    let capability = b"\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00";
    builder.set_xattr(file, b"security.capability", capability).expect("room");
    builder.set_xattr(file, b"user.\xC3\xA4\xFF", &[5; 1000]).expect("room");
    builder.set_xattr(file, b"user.empty", b"").expect("room");
    builder.set_xattr(file, b"user.empty", b"not any more").expect("room");
    assert!(builder.xattrs(file).expect("in use").contains(&(b"system.posix_acl_access".to_vec(), value)));
    builder.finish().expect("finished");
    image.assert_clean();
    assert!(image.debugfs("ea_list /file").contains("security.capability (20)"));

    let mounted = image.mount();
    let path = |name: &str| mounted.path().join(name).to_string_lossy().into_owned();
    let shown = run("getfacl", &["-cpn", &path("file")]);
    assert_eq!(shown.trim(), "user::rw-\nuser:1000:r--\ngroup::r--\ngroup:1001:rw-\nmask::rw-\nother::---");
    let shown = run("getfacl", &["-cpnd", &path("dir")]);
    assert!(shown.contains("user:1000:r--"), "{shown}");
    assert!(
        run("getfattr", &["-n", "user.empty", "--absolute-names", &path("file")])
            .contains("\"not any more\"")
    );
    let shown = run("getfattr", &["-d", "-m", "-", "-e", "hex", "--absolute-names", &path("file")]);
    assert!(shown.contains("security.capability=0x0100000200200000"), "{shown}");
    assert!(shown.contains(&"05".repeat(1000)));
    // The kernel rewrites what it shares a block with.
    run("setfattr", &["-n", "user.kernel", "-v", "wrote", &path("file")]);
    run("setfattr", &["-x", "user.empty", &path("file")]);
    drop(mounted);
    image.assert_clean();
}
