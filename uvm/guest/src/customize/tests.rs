//! Customization of a small Debian-like tree, judged by the programs that read the files.

use std::process::Command;

use super::*;
use crate::memory::MemoryTree;
use crate::tree::Kind;

const NOW: Timestamp = Timestamp { seconds: 1_700_000_000, nanoseconds: 0 };
const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGPKSUXSfPQ1mqUVaTEPZE4aVTLvW5lpHTzKtxGeyGLF me@there";
const NETWORKD: &str = "[Unit]\nDescription=x\n[Install]\nWantedBy=multi-user.target\nAlias=dbus-org.freedesktop.network1.service\n\
                        Also=systemd-networkd.socket\nAlso=systemd-networkd-wait-online.service\nAlso=not-installed.service\n";

fn p(path: &str) -> GuestPath {
    GuestPath::absolute(path).unwrap()
}

fn put(tree: &mut MemoryTree, path: &str, mode: u32, contents: &str) {
    let (path, attributes) = (p(path), Attributes::root(mode, Timestamp::default()));
    create_dir_all(tree, &path.parent().unwrap(), Attributes { mode: 0o755, ..attributes }).unwrap();
    write_bytes(tree, &path, attributes, contents.as_bytes()).unwrap();
}

fn text(tree: &MemoryTree, path: &str) -> String {
    String::from_utf8(tree.read(&p(path), 1 << 20).unwrap()).unwrap()
}

fn mode_and_owner(tree: &MemoryTree, path: &str) -> (u32, u32, u32) {
    let attributes = tree.metadata(&p(path)).unwrap().unwrap().attributes;
    (attributes.mode, attributes.uid, attributes.gid)
}

/// A merged-usr guest with networkd and sudo, and with the identity of the machine it was made on.
fn guest() -> MemoryTree {
    let mut tree = MemoryTree::new();
    let link = Attributes::root(0o777, Timestamp::default());
    for directory in ["usr/lib", "usr/bin", "usr/sbin"] {
        create_dir_all(&mut tree, &p(directory), Attributes::root(0o755, Timestamp::default())).unwrap();
        let name = directory.trim_start_matches("usr/");
        tree.symlink(&p(name), directory.as_bytes(), link).unwrap();
    }
    put(
        &mut tree,
        "/etc/passwd",
        0o644,
        "root:x:0:0:root:/root:/bin/bash\nsync:x:4:65534:sync:/bin:/bin/sync",
    );
    put(&mut tree, "/etc/shadow", 0o640, "root:*:19000:0:99999:7:::\nsync:*:19000:0:99999:7:::\n");
    put(&mut tree, "/etc/group", 0o644, "root:x:0:\nsudo:x:27:\nadm:x:4:old,older\nnogroup:x:65534:\n");
    put(&mut tree, "/etc/gshadow", 0o640, "root:*::\nsudo:*::\nadm:*::old,older\nnogroup:*::\n");
    put(&mut tree, "/etc/subuid", 0o644, "other:100000:65536\n");
    put(&mut tree, "/etc/hosts", 0o644, "127.0.0.1\tlocalhost\n");
    put(&mut tree, "/etc/skel/.bashrc", 0o644, "# rc\n");
    put(&mut tree, "/usr/bin/bash", 0o755, "x");
    put(&mut tree, "/usr/bin/sudo", 0o4755, "x");
    put(&mut tree, "/usr/lib/systemd/system/systemd-networkd.service", 0o644, NETWORKD);
    let socket = "[Install]\nWantedBy=sockets.target\n";
    put(&mut tree, "/usr/lib/systemd/system/systemd-networkd.socket", 0o644, socket);
    let wait = "[Install]\nWantedBy=network-online.target\n";
    put(&mut tree, "/usr/lib/systemd/system/systemd-networkd-wait-online.service", 0o644, wait);
    put(&mut tree, "/etc/machine-id", 0o444, "00000000000000000000000000000001\n");
    put(&mut tree, "/var/lib/dbus/machine-id", 0o444, "00000000000000000000000000000001\n");
    put(&mut tree, "/etc/ssh/ssh_host_rsa_key", 0o600, "old");
    put(&mut tree, "/etc/ssh/ssh_host_rsa_key.pub", 0o644, "old");
    put(&mut tree, "/etc/ssh/sshd_config", 0o644, "UsePAM yes\n");
    put(&mut tree, "/var/lib/systemd/random-seed", 0o600, "seed");
    put(&mut tree, "/var/lib/dhcp/dhclient.eth0.leases", 0o644, "lease");
    put(&mut tree, "/var/lib/cloud/instances/i-1/user-data.txt", 0o600, "secret");
    tree
}

fn ann() -> User {
    User {
        name: "ann".into(),
        gecos: "Ann".into(),
        groups: vec!["sudo".into(), "adm".into(), "fresh".into()],
        sudo: Some("ALL=(ALL) NOPASSWD:ALL".into()),
        ssh_authorized_keys: vec![KEY.into()],
        ..User::default()
    }
}

fn wanted() -> Customization {
    let dhcp = Ethernet { id: "all".into(), name: Some("en*".into()), dhcp4: true, ..Ethernet::default() };
    Customization {
        timestamp: NOW,
        hostname: Some("web-1.example.org".into()),
        users: vec![
            ann(),
            User { name: "root".into(), ssh_authorized_keys: vec![KEY.into()], ..User::default() },
        ],
        identity: Some(Identity { machine_id: [0xab; 16], ssh_host_key_seed: [7; 32] }),
        fstab: Some(vec![FstabEntry {
            spec: "UUID=0b1c".into(),
            file: "/".into(),
            vfstype: "ext4".into(),
            mntops: "errors=remount-ro".into(),
            freq: 0,
            passno: 1,
        }]),
        network: Some(Network { ethernets: vec![dhcp] }),
    }
}

/// Runs a foreign judge on files with these contents; its standard output.
fn judge(program: &str, arguments: &[&str], files: &[(&str, u32, String)]) -> String {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::tempdir().unwrap();
    for (name, mode, contents) in files {
        let path = directory.path().join(name);
        std::fs::write(&path, contents).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(*mode)).unwrap();
    }
    let output = Command::new(program).args(arguments).current_dir(directory.path()).output();
    let output = output.unwrap_or_else(|e| panic!("{program} is installed: {e}"));
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{program}: {stdout}{stderr}");
    stdout.into_owned()
}

#[test]
fn accounts_are_what_useradd_would_make() {
    let mut tree = guest();
    let report = customize(&mut tree, &wanted()).unwrap();
    assert_eq!((report.users[0].uid, report.users[0].gid, report.users[0].created), (1000, 1000, true));
    assert_eq!((report.users[1].uid, report.users[1].created), (0, false));
    assert_eq!(
        text(&tree, "/etc/passwd"),
        "root:x:0:0:root:/root:/bin/bash\nsync:x:4:65534:sync:/bin:/bin/sync\n\
         ann:x:1000:1000:Ann:/home/ann:/bin/bash\n"
    );
    assert!(text(&tree, "/etc/shadow").ends_with("\nann:*:19675:0:99999:7:::\n"));
    assert_eq!(mode_and_owner(&tree, "/etc/shadow").0, 0o640);
    let group = text(&tree, "/etc/group");
    assert!(group.contains("sudo:x:27:ann\n") && group.contains("adm:x:4:old,older,ann\n"), "{group}");
    assert!(group.contains("ann:x:1000:\n") && group.contains("fresh:x:1001:ann\n"), "{group}");
    assert_eq!(text(&tree, "/etc/subuid"), "other:100000:65536\nann:165536:65536\n");
    assert_eq!(mode_and_owner(&tree, "/home/ann"), (0o700, 1000, 1000));
    assert_eq!(mode_and_owner(&tree, "/home/ann/.bashrc"), (0o644, 1000, 1000));
    assert_eq!(mode_and_owner(&tree, "/home/ann/.ssh"), (0o700, 1000, 1000));
    assert_eq!(mode_and_owner(&tree, "/home/ann/.ssh/authorized_keys"), (0o600, 1000, 1000));
    assert_eq!(mode_and_owner(&tree, "/root/.ssh/authorized_keys"), (0o600, 0, 0));
    assert_eq!(text(&tree, "/etc/sudoers.d/90-uvm-users"), "ann ALL=(ALL) NOPASSWD:ALL\n");
    assert_eq!(mode_and_owner(&tree, "/etc/sudoers.d/90-uvm-users"), (0o440, 0, 0));

    let files = |names: [&'static str; 2]| names.map(|n| (n, 0o600, text(&tree, &format!("/etc/{n}"))));
    judge("pwck", &["-q", "-r", "passwd", "shadow"], &files(["passwd", "shadow"]));
    // grpck looks members up on the machine it runs on, so they are taken out.
    let plain = files(["group", "gshadow"]).map(|(name, mode, text)| {
        let lines = text.lines().map(|l| format!("{}:\n", l.rsplit_once(':').unwrap().0));
        (name, mode, lines.collect())
    });
    judge("grpck", &["-r", "group", "gshadow"], &plain);
    let keys = [("keys", 0o600, text(&tree, "/home/ann/.ssh/authorized_keys"))];
    assert!(judge("ssh-keygen", &["-l", "-f", "keys"], &keys).contains("(ED25519)"));
}

#[test]
fn the_same_customization_twice_is_the_same_tree() {
    let mut tree = guest();
    let first = customize(&mut tree, &wanted()).unwrap();
    let files = ["/etc/passwd", "/etc/shadow", "/etc/group", "/etc/gshadow", "/etc/hosts", "/etc/subuid"];
    let before = files.map(|f| text(&tree, f));
    let second = customize(&mut tree, &wanted()).unwrap();
    assert_eq!(files.map(|f| text(&tree, f)), before);
    assert_eq!(text(&tree, "/home/ann/.ssh/authorized_keys"), format!("{KEY}\n"));
    assert_eq!(first.ssh_host_key, second.ssh_host_key);
    assert!(!second.users[0].created);
}

#[test]
fn an_identity_of_its_own() {
    let mut tree = guest();
    let report = customize(&mut tree, &wanted()).unwrap();
    assert_eq!(text(&tree, "/etc/machine-id"), format!("{}\n", "ab".repeat(16)));
    for gone in [
        "/var/lib/dbus/machine-id",
        "/etc/ssh/ssh_host_rsa_key",
        "/etc/ssh/ssh_host_rsa_key.pub",
        "/var/lib/systemd/random-seed",
        "/var/lib/dhcp/dhclient.eth0.leases",
        "/var/lib/cloud/instances",
    ] {
        assert!(tree.metadata(&p(gone)).unwrap().is_none(), "{gone}");
        assert!(report.removed.contains(&p(gone)), "{gone}");
    }
    assert_eq!(report.removed.len(), 6);
    assert_eq!(text(&tree, "/etc/ssh/sshd_config"), "UsePAM yes\n");
    assert_eq!(mode_and_owner(&tree, "/etc/ssh/ssh_host_ed25519_key"), (0o600, 0, 0));

    let public = text(&tree, "/etc/ssh/ssh_host_ed25519_key.pub");
    assert_eq!(public.trim_end(), report.ssh_host_key.unwrap());
    let files =
        [("key", 0o600, text(&tree, "/etc/ssh/ssh_host_ed25519_key")), ("other.pub", 0o644, public.clone())];
    assert_eq!(judge("ssh-keygen", &["-y", "-f", "key"], &files), public);
    let fingerprints = ["key", "other.pub"].map(|file| judge("ssh-keygen", &["-l", "-f", file], &files));
    assert_eq!(fingerprints[0], fingerprints[1]);
    assert!(fingerprints[0].contains("root@web-1.example.org (ED25519)"), "{}", fingerprints[0]);
}

#[test]
fn names_mounts_and_network() {
    let mut tree = guest();
    let report = customize(&mut tree, &wanted()).unwrap();
    assert_eq!(text(&tree, "/etc/hostname"), "web-1.example.org\n");
    assert_eq!(text(&tree, "/etc/hosts"), "127.0.0.1\tlocalhost\n127.0.1.1\tweb-1.example.org web-1\n");
    assert!(text(&tree, "/etc/fstab").ends_with("\nUUID=0b1c / ext4 errors=remount-ro 0 1\n"));
    assert_eq!(report.renderer, Some(Renderer::Networkd));
    assert_eq!(
        text(&tree, "/etc/systemd/network/10-all.network"),
        "[Match]\nName=en*\n\n[Network]\nDHCP=ipv4\n"
    );
    for (link, unit) in [
        ("multi-user.target.wants/systemd-networkd.service", "systemd-networkd.service"),
        ("dbus-org.freedesktop.network1.service", "systemd-networkd.service"),
        ("sockets.target.wants/systemd-networkd.socket", "systemd-networkd.socket"),
        (
            "network-online.target.wants/systemd-networkd-wait-online.service",
            "systemd-networkd-wait-online.service",
        ),
    ] {
        let target = tree.read_link(&p(&format!("/etc/systemd/system/{link}"))).unwrap();
        assert_eq!(target, format!("/usr/lib/systemd/system/{unit}").into_bytes());
    }
    // No resolved and no name server: said, not guessed.
    assert_eq!(report.notes.len(), 1);

    put(
        &mut tree,
        "/usr/lib/systemd/system/systemd-resolved.service",
        0o644,
        "[Install]\nWantedBy=sysinit.target\n",
    );
    put(&mut tree, "/etc/resolv.conf", 0o644, "nameserver 10.9.8.7\n");
    let report = customize(&mut tree, &wanted()).unwrap();
    assert!(report.notes.is_empty());
    assert_eq!(tree.read_link(&p("/etc/resolv.conf")).unwrap(), b"../run/systemd/resolve/stub-resolv.conf");
}

#[test]
fn a_guest_with_ifupdown_or_nothing() {
    let mut tree = guest();
    tree.remove(&p("/usr/lib/systemd/system/systemd-networkd.service")).unwrap();
    let static_v4 = Ethernet {
        id: "eth0".into(),
        addresses: vec!["192.0.2.7/24".parse().unwrap()],
        nameservers: vec!["192.0.2.53".parse().unwrap()],
        ..Ethernet::default()
    };
    let wanted = Customization { network: Some(Network { ethernets: vec![static_v4] }), ..wanted() };
    let before = text(&tree, "/etc/passwd");
    assert_eq!(customize(&mut tree, &wanted).unwrap_err().kind(), ErrorKind::MissingPackage);
    assert_eq!(text(&tree, "/etc/passwd"), before, "refused before anything was written");
    put(&mut tree, "/usr/sbin/ifup", 0o755, "x");
    assert_eq!(customize(&mut tree, &wanted).unwrap().renderer, Some(Renderer::Ifupdown));
    assert!(
        text(&tree, "/etc/network/interfaces").contains("iface eth0 inet static\n\taddress 192.0.2.7/24\n")
    );
    assert_eq!(text(&tree, "/etc/resolv.conf"), "nameserver 192.0.2.53\n");
}

#[test]
fn what_the_guest_cannot_have_is_refused_first() {
    let user = |user: User| Customization { users: vec![user], ..wanted() };
    for (what, wanted, kind) in [
        ("shell", user(User { shell: Some("/bin/zsh".into()), ..ann() }), ErrorKind::MissingPackage),
        ("uid taken", user(User { uid: Some(4), ..ann() }), ErrorKind::Exists),
        ("another uid", user(User { name: "root".into(), uid: Some(5), ..ann() }), ErrorKind::Exists),
        ("group's name", user(User { name: "adm".into(), ..ann() }), ErrorKind::Exists),
        ("hostname", Customization { hostname: Some("a b".into()), ..wanted() }, ErrorKind::Invalid),
    ] {
        let mut tree = guest();
        assert_eq!(customize(&mut tree, &wanted).unwrap_err().kind(), kind, "{what}");
        assert!(tree.metadata(&p("/etc/hostname")).unwrap().is_none(), "{what}");
    }
    let mut tree = guest();
    tree.remove(&p("/usr/bin/sudo")).unwrap();
    let error = customize(&mut tree, &wanted()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::MissingPackage);
    assert!(error.to_string().contains("package sudo"));
}

/// Links that the image brings lead nowhere but into the image.
#[test]
fn hostile_links_stay_inside() {
    let mut tree = guest();
    let link = Attributes::root(0o777, Timestamp::default());
    tree.symlink(&p("/home"), b"../../../../srv/homes", link).unwrap();
    tree.symlink(&p("/etc/hostname"), b"/etc/shadow", link).unwrap();
    tree.remove(&p("/etc/subuid")).unwrap();
    tree.symlink(&p("/etc/subuid"), b"subuid", link).unwrap();
    let shadow = text(&tree, "/etc/shadow");
    assert_eq!(customize(&mut tree, &wanted()).unwrap_err().kind(), ErrorKind::SymlinkLoop);
    tree.remove(&p("/etc/subuid")).unwrap();
    customize(&mut tree, &wanted()).unwrap();
    assert!(text(&tree, "/etc/shadow").starts_with(&shadow), "a link is replaced, not written through");
    assert_eq!(tree.metadata(&p("/etc/hostname")).unwrap().unwrap().kind, Kind::File { size: 18 });
    assert_eq!(mode_and_owner(&tree, "/srv/homes/ann").1, 1000);
}
