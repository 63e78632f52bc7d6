//! What the EFI system partition must hold so that UEFI starts the guest's own kernel.
//!
//! UEFI 2.10 section 3.5.1.1 (the removable media path), systemd-boot and the Boot Loader Specification (UAPI.1,
//! type 1 entries). The plan is a value: the caller copies the files. Kernels that the guest installs later get
//! there by its own `kernel-install`, for which [`configure_kernel_install`] leaves the same layout and arguments.

use std::cmp::Ordering;

use crate::error::{Error, ErrorKind, Result};
use crate::path::{GuestPath, printable};
use crate::tree::{
    Attributes, GuestTree, Kind, Timestamp, create_dir_all, resolve, resolve_parent, resolved_metadata,
    write_bytes,
};

const LOADER: &str = "/usr/lib/systemd/boot/efi/systemd-bootx64.efi";
/// Entries in the guest's `/boot` that are looked at.
const MAX_BOOT_ENTRIES: usize = 10_000;
/// `COMMAND_LINE_SIZE` of x86.
const MAX_COMMAND_LINE: usize = 2047;

/// A kernel of the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kernel {
    /// As `uname -r` says it.
    pub version: String,
    /// The image; no link.
    pub vmlinuz: GuestPath,
    /// Its initial RAM disk, if it has one; no link.
    pub initrd: Option<GuestPath>,
}

/// How the guest is to start.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BootOptions {
    /// UUID of the root file system.
    pub root_uuid: String,
    /// Arguments after `root=` and `ro`.
    pub kernel_arguments: Vec<String>,
    /// `console=` arguments in order; the kernel's `/dev/console` is the last.
    pub consoles: Vec<String>,
    /// The machine's id; names the entries.
    pub machine_id: [u8; 16],
    /// What the menu says; the guest's own name if not given.
    pub title: Option<String>,
}

/// Where the bytes of a boot file come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A file of the guest.
    Guest(GuestPath),
    /// These bytes.
    Bytes(Vec<u8>),
}

/// One file of the EFI system partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootFile {
    /// Path on the partition, `/` between components, none in front.
    pub esp_path: String,
    /// Contents.
    pub source: Source,
    /// Bytes.
    pub size: u64,
}

/// Everything the EFI system partition must hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootFiles {
    /// The files; no directory is named on its own.
    pub files: Vec<BootFile>,
    /// Version of the kernel that starts by default.
    pub default_version: String,
    /// The kernel's command line.
    pub options: String,
}

impl BootFiles {
    /// Bytes of all files together.
    pub fn total_bytes(&self) -> u64 {
        self.files.iter().map(|f| f.size).fold(0, u64::saturating_add)
    }
}

/// The kernels in the guest's `/boot`, newest first. One whose modules are gone is left out, unless none has any.
pub fn find_kernels(tree: &dyn GuestTree) -> Result<Vec<Kernel>> {
    let boot = resolve(tree, &absolute("/boot")?)?;
    if !matches!(tree.metadata(&boot)?.map(|m| m.kind), Some(Kind::Directory)) {
        return Ok(Vec::new());
    }
    let entries = tree.list(&boot)?;
    if entries.len() > MAX_BOOT_ENTRIES {
        return Err(Error::new(ErrorKind::TooLarge, "the guest's /boot has too many entries"));
    }
    let mut kernels = Vec::new();
    for (name, _) in entries {
        let Some(version) = name.strip_prefix(b"vmlinuz-").and_then(version) else { continue };
        let Some(vmlinuz) = file(tree, &boot.join(&name)?)? else { continue };
        let mut initrd = None;
        for candidate in
            [format!("initrd.img-{version}"), format!("initramfs-{version}.img"), format!("initrd-{version}")]
        {
            if initrd.is_none() {
                initrd = file(tree, &boot.join(candidate)?)?;
            }
        }
        let modules = resolved_metadata(tree, &absolute(&format!("/lib/modules/{version}"))?)?.is_some();
        kernels.push((modules, Kernel { version, vmlinuz, initrd }));
    }
    let any_modules = kernels.iter().any(|(modules, _)| *modules);
    let mut kernels: Vec<Kernel> = kernels
        .into_iter()
        .filter(|(modules, _)| *modules || !any_modules)
        .map(|(_, kernel)| kernel)
        .collect();
    kernels.sort_by(|a, b| compare_versions(&b.version, &a.version));
    Ok(kernels)
}

/// A version that is safe as a name on FAT and in a loader entry.
fn version(bytes: &[u8]) -> Option<String> {
    let plain = |b: &u8| b.is_ascii_alphanumeric() || b"._+-~".contains(b);
    let safe = !bytes.is_empty() && bytes.len() <= 128 && bytes[0] != b'.' && bytes.iter().all(plain);
    safe.then(|| String::from_utf8_lossy(bytes).into_owned())
}

/// The file a path leads to, if it leads to one.
fn file(tree: &dyn GuestTree, path: &GuestPath) -> Result<Option<GuestPath>> {
    let path = resolve(tree, path)?;
    let is_file = matches!(tree.metadata(&path)?.map(|m| m.kind), Some(Kind::File { .. }));
    Ok(is_file.then_some(path))
}

/// Runs of digits by their value, everything else by its bytes; `~` comes before the end of the string.
fn compare_versions(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (a.as_bytes(), b.as_bytes());
    loop {
        let digits = |s: &[u8]| s.iter().take_while(|b| b.is_ascii_digit()).count();
        let (in_a, in_b) = (digits(a), digits(b));
        if in_a > 0 && in_b > 0 {
            let trim = |s: &[u8]| s.iter().copied().skip_while(|b| *b == b'0').collect::<Vec<u8>>();
            let (x, y) = (trim(&a[..in_a]), trim(&b[..in_b]));
            let order = x.len().cmp(&y.len()).then(x.cmp(&y));
            if order != Ordering::Equal {
                return order;
            }
            (a, b) = (&a[in_a..], &b[in_b..]);
            continue;
        }
        let weight = |s: &[u8]| match s.first() {
            Some(b'~') => (0, 0),
            None => (1, 0),
            Some(byte) => (2, *byte),
        };
        match (weight(a).cmp(&weight(b)), a.is_empty() && b.is_empty()) {
            (Ordering::Equal, true) => return Ordering::Equal,
            (Ordering::Equal, false) => (a, b) = (&a[1..], &b[1..]),
            (order, _) => return order,
        }
    }
}

/// Plans the EFI system partition of a guest that has systemd-boot and a kernel.
///
/// # Errors
/// [`ErrorKind::MissingPackage`] names what the image lacks.
pub fn plan_boot(tree: &dyn GuestTree, options: &BootOptions) -> Result<BootFiles> {
    let command_line = command_line(options)?;
    let loader = file(tree, &absolute(LOADER)?)?.ok_or_else(|| {
        Error::new(ErrorKind::MissingPackage, format!("the guest has no {LOADER} (package systemd-boot-efi)"))
    })?;
    let kernels = find_kernels(tree)?;
    let Some(newest) = kernels.first() else {
        let context = "the guest has no /boot/vmlinuz-VERSION (package linux-image-amd64)";
        return Err(Error::new(ErrorKind::MissingPackage, context));
    };
    let token = token(options);
    let release = os_release(tree)?;
    let title = match &options.title {
        Some(title) => one_line("title", title)?,
        None => release.title.as_str(),
    };
    // A pattern, so that a newer kernel of the guest's own becomes the default.
    let configuration = format!("timeout 0\ndefault {token}-*\nconsole-mode keep\neditor no\n");
    let mut files = vec![
        guest_file(tree, "EFI/BOOT/BOOTX64.EFI", &loader)?,
        guest_file(tree, "EFI/systemd/systemd-bootx64.efi", &loader)?,
        bytes_file("loader/loader.conf", configuration),
        bytes_file("loader/entries.srel", "type1\n".to_owned()),
    ];
    for Kernel { version, vmlinuz, initrd } in &kernels {
        let folder = format!("{token}/{version}");
        files.push(guest_file(tree, &format!("{folder}/linux"), vmlinuz)?);
        let mut entry = format!(
            "title {title}\nversion {version}\nmachine-id {token}\nsort-key {}\noptions {command_line}\n\
             linux /{folder}/linux\n",
            release.id
        );
        if let Some(initrd) = initrd {
            files.push(guest_file(tree, &format!("{folder}/initrd.img-{version}"), initrd)?);
            entry.push_str(&format!("initrd /{folder}/initrd.img-{version}\n"));
        }
        files.push(bytes_file(&format!("loader/entries/{token}-{version}.conf"), entry));
    }
    Ok(BootFiles { files, default_version: newest.version.clone(), options: command_line })
}

/// Tells the guest's own `kernel-install` (kernel-install(8)) the layout and the command line of [`plan_boot`].
pub fn configure_kernel_install(
    tree: &mut dyn GuestTree,
    options: &BootOptions,
    timestamp: Timestamp,
) -> Result<()> {
    let files = [
        ("/etc/kernel/cmdline", format!("{}\n", command_line(options)?)),
        ("/etc/kernel/install.conf", "layout=bls\n".to_owned()),
        ("/etc/kernel/entry-token", format!("{}\n", token(options))),
    ];
    for (path, text) in files {
        let path = resolve_parent(tree, &absolute(path)?)?;
        if let Some(parent) = path.parent() {
            create_dir_all(tree, &parent, Attributes::root(0o755, timestamp))?;
        }
        write_bytes(tree, &path, Attributes::root(0o644, timestamp), text.as_bytes())?;
    }
    Ok(())
}

fn token(options: &BootOptions) -> String {
    options.machine_id.iter().map(|b| format!("{b:02x}")).collect()
}

fn command_line(options: &BootOptions) -> Result<String> {
    let uuid = &options.root_uuid;
    if uuid.is_empty() || !uuid.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-') {
        return Err(refused("root_uuid", uuid));
    }
    let mut line = format!("root=UUID={uuid} ro");
    for argument in &options.kernel_arguments {
        // Blanks inside quotes are the caller's business; a line is one line.
        line.push(' ');
        line.push_str(one_line("kernel argument", argument)?);
    }
    for console in &options.consoles {
        if console.is_empty() || !console.bytes().all(|b| b.is_ascii_alphanumeric() || b == b',') {
            return Err(refused("console", console));
        }
        line.push_str(&format!(" console={console}"));
    }
    if line.len() > MAX_COMMAND_LINE {
        return Err(Error::new(
            ErrorKind::TooLarge,
            format!("a kernel command line of {} bytes", line.len()),
        ));
    }
    Ok(line)
}

fn one_line<'t>(field: &str, text: &'t str) -> Result<&'t str> {
    if text.trim().is_empty() || text.len() > 256 || text.chars().any(char::is_control) {
        return Err(refused(field, text));
    }
    Ok(text)
}

fn refused(field: &str, value: &str) -> Error {
    Error::new(ErrorKind::Invalid, format!("{field}: {} is impossible", printable(value.as_bytes())))
}

struct OsRelease {
    title: String,
    id: String,
}

/// The guest's own name (os-release(5)); what is odd there is not worth an error.
fn os_release(tree: &dyn GuestTree) -> Result<OsRelease> {
    let text = match file(tree, &absolute("/etc/os-release")?)? {
        Some(path) => tree.read(&path, 64 << 10)?,
        None => Vec::new(),
    };
    let text = String::from_utf8_lossy(&text).into_owned();
    let value = |key: &str| {
        let found = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        found.map(|v| v.trim().trim_matches(['"', '\'']).to_owned())
    };
    let title = value("PRETTY_NAME").filter(|t| one_line("title", t).is_ok());
    let plain = |id: &String| {
        !id.is_empty()
            && id.len() <= 64
            && id.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
    };
    Ok(OsRelease {
        title: title.unwrap_or_else(|| "Linux".to_owned()),
        id: value("ID").filter(plain).unwrap_or_else(|| "linux".to_owned()),
    })
}

fn guest_file(tree: &dyn GuestTree, esp_path: &str, path: &GuestPath) -> Result<BootFile> {
    match tree.metadata(path)?.map(|m| m.kind) {
        Some(Kind::File { size }) if size > 0 => {
            Ok(BootFile { esp_path: esp_path.to_owned(), source: Source::Guest(path.clone()), size })
        }
        _ => Err(Error::new(ErrorKind::Corrupt, format!("{path} is empty"))),
    }
}

fn bytes_file(esp_path: &str, text: String) -> BootFile {
    let size = text.len() as u64;
    BootFile { esp_path: esp_path.to_owned(), source: Source::Bytes(text.into_bytes()), size }
}

fn absolute(path: &str) -> Result<GuestPath> {
    GuestPath::absolute(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::MemoryTree;

    fn put(tree: &mut MemoryTree, path: &str, contents: &str) {
        let (path, attributes) = (absolute(path).unwrap(), Attributes::root(0o755, Timestamp::default()));
        create_dir_all(tree, &path.parent().unwrap(), attributes).unwrap();
        write_bytes(tree, &path, attributes, contents.as_bytes()).unwrap();
    }

    fn options() -> BootOptions {
        BootOptions {
            root_uuid: "0b1c-2d".into(),
            kernel_arguments: vec!["quiet".into()],
            consoles: vec!["tty0".into(), "ttyS0,115200".into()],
            machine_id: [0xab; 16],
            title: None,
        }
    }

    fn guest() -> MemoryTree {
        let mut tree = MemoryTree::new();
        for version in ["6.1.0-9-amd64", "6.1.0-10-amd64"] {
            put(&mut tree, &format!("/boot/vmlinuz-{version}"), "kernel");
            put(&mut tree, &format!("/boot/initrd.img-{version}"), "initrd!");
            put(&mut tree, &format!("/usr/lib/modules/{version}/modules.dep"), "");
        }
        put(&mut tree, "/boot/vmlinuz-7.0-gone", "a kernel without modules");
        put(&mut tree, "/boot/vmlinuz-a b\nlinux /evil", "an odd name");
        put(&mut tree, "/usr/lib/os-release", "ID=debian\nPRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\n");
        put(&mut tree, "/etc/x", "");
        let link = Attributes::root(0o777, Timestamp::default());
        tree.symlink(&absolute("/lib").unwrap(), b"usr/lib", link).unwrap();
        tree.symlink(&absolute("/etc/os-release").unwrap(), b"../usr/lib/os-release", link).unwrap();
        tree
    }

    #[test]
    fn kernels_newest_first() {
        let versions: Vec<String> = find_kernels(&guest()).unwrap().into_iter().map(|k| k.version).collect();
        assert_eq!(versions, ["6.1.0-10-amd64", "6.1.0-9-amd64"]);
        for (older, newer) in [
            ("6.1.0-9", "6.1.0-10"),
            ("6.9", "6.10"),
            ("6.1", "6.1.1"),
            ("6.1~rc1", "6.1"),
            ("6.01", "6.2"),
            ("5", "6~a"),
        ] {
            assert_eq!(compare_versions(older, newer), Ordering::Less, "{older} {newer}");
            assert_eq!(compare_versions(newer, older), Ordering::Greater);
        }
        assert_eq!(compare_versions("6.1-a", "6.1-a"), Ordering::Equal);
    }

    #[test]
    fn a_missing_package_is_named() {
        let mut tree = guest();
        let error = plan_boot(&tree, &options()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::MissingPackage);
        assert!(error.to_string().contains("systemd-boot-efi"));
        put(&mut tree, LOADER, "MZ");
        crate::tree::remove_all(&mut tree, &absolute("/boot").unwrap()).unwrap();
        assert!(plan_boot(&tree, &options()).unwrap_err().to_string().contains("linux-image"));
    }

    #[test]
    fn the_partition_holds_loader_entries_and_kernels() {
        let mut tree = guest();
        put(&mut tree, LOADER, "MZ");
        let plan = plan_boot(&tree, &options()).unwrap();
        let token = "ab".repeat(16);
        let find =
            |path: &str| plan.files.iter().find(|f| f.esp_path == path).unwrap_or_else(|| panic!("{path}"));
        for path in ["EFI/BOOT/BOOTX64.EFI", "EFI/systemd/systemd-bootx64.efi"] {
            assert_eq!(find(path).source, Source::Guest(absolute(LOADER).unwrap()));
        }
        let kernel = find(&format!("{token}/6.1.0-10-amd64/linux"));
        assert_eq!(kernel.source, Source::Guest(absolute("/boot/vmlinuz-6.1.0-10-amd64").unwrap()));
        assert_eq!(kernel.size, 6);
        let Source::Bytes(entry) = &find(&format!("loader/entries/{token}-6.1.0-10-amd64.conf")).source
        else {
            panic!("an entry is written, not copied");
        };
        assert_eq!(
            String::from_utf8_lossy(entry),
            format!(
                "title Debian GNU/Linux 12 (bookworm)\nversion 6.1.0-10-amd64\nmachine-id {token}\nsort-key debian\n\
                 options root=UUID=0b1c-2d ro quiet console=tty0 console=ttyS0,115200\n\
                 linux /{token}/6.1.0-10-amd64/linux\n\
                 initrd /{token}/6.1.0-10-amd64/initrd.img-6.1.0-10-amd64\n"
            )
        );
        assert_eq!(plan.default_version, "6.1.0-10-amd64");
        assert_eq!(plan.files.len(), 10);
        assert_eq!(plan.total_bytes(), plan.files.iter().map(|f| f.size).sum::<u64>());

        configure_kernel_install(&mut tree, &options(), Timestamp::default()).unwrap();
        let cmdline = tree.read(&absolute("/etc/kernel/cmdline").unwrap(), 4096).unwrap();
        assert_eq!(String::from_utf8_lossy(&cmdline), format!("{}\n", plan.options));
    }

    #[test]
    fn an_argument_cannot_become_a_line() {
        let mut tree = guest();
        put(&mut tree, LOADER, "MZ");
        for bad in [
            BootOptions { root_uuid: "x y".into(), ..options() },
            BootOptions { kernel_arguments: vec!["a\nlinux /evil".into()], ..options() },
            BootOptions { consoles: vec!["ttyS0 init=/bin/sh".into()], ..options() },
            BootOptions { title: Some("a\nb".into()), ..options() },
        ] {
            assert_eq!(plan_boot(&tree, &bad).unwrap_err().kind(), ErrorKind::Invalid, "{bad:?}");
        }
        let long = BootOptions { kernel_arguments: vec!["x".repeat(200); 12], ..options() };
        assert_eq!(plan_boot(&tree, &long).unwrap_err().kind(), ErrorKind::TooLarge);
    }
}
