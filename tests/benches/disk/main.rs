//! What the disk part is measured on: formatting, filling, and telling what is in use, beside the tools it replaces.
//!
//! Every measurement ends with its bytes on stable storage, ours and the peers' alike. Sources are in the page cache
//! before the clock starts; what is written goes to a new file. Rounds take turns, so that a busy moment meets both.
#![allow(clippy::unwrap_used)]

mod data;
mod measure;

use std::path::Path;
use std::process::Command;

use data::Data;
use measure::{Peak, command, drop_caches, median, peak_memory, settled, timed, written};

const GIB: u64 = 1 << 30;
/// ext4 on the machine that measures takes no file of 16 TiB.
const LARGEST: u64 = 16 * 1024 * GIB - GIB;
const FORMAT_ROUNDS: usize = 7;
const FILL_ROUNDS: usize = 5;
const FILLED: u64 = 4 * GIB;
/// What filling may take, besides this much for each file.
const FILL_MEMORY: u64 = 64 << 20;
const FILL_BYTES_PER_FILE: u64 = 145;

/// A line of the table.
struct Row {
    name: String,
    ratio: f64,
    goal: f64,
    ours: String,
    peer: String,
    note: String,
}

fn main() {
    // `cargo bench` says so; `cargo test --benches` does not.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    let data = Data::prepare();
    let mut rows = format(&data, "64 GiB", 64 * GIB);
    rows.extend(format(&data, "16 TiB less 1 GiB", LARGEST));
    rows.extend(fill(&data));
    rows.push(usage(&data));
    println!("| work | ratio | goal | ours | peer | note |");
    println!("|---|---:|---:|---:|---:|---|");
    for Row { name, ratio, goal, ours, peer, note } in rows {
        println!("| {name} | {ratio:.2} | {goal} | {ours} | {peer} | {note} |");
    }
}

fn uvm(arguments: &[&str]) -> Command {
    let binary = std::env::var_os("UVM_BINARY").expect("UVM_BINARY names the program");
    let mut command = Command::new(binary);
    command.args(arguments).stdin(std::process::Stdio::null()).stdout(std::process::Stdio::null());
    command
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A new sparse file.
fn blank(path: &Path, size: u64) {
    let _ = std::fs::remove_file(path);
    std::fs::File::create(path).unwrap().set_len(size).unwrap();
}

fn milliseconds(seconds: f64) -> String {
    format!("{:.1} ms", seconds * 1e3)
}

fn seconds(seconds: f64) -> String {
    format!("{seconds:.2} s")
}

fn mib(bytes: u64) -> String {
    format!("{:.2} MiB", bytes as f64 / f64::from(1 << 20))
}

fn format(data: &Data, name: &str, size: u64) -> Vec<Row> {
    let image = data.folder.join("format.img");
    let ours = || uvm(&["mkfs", "ext4", text(&image)]);
    let peer = || command("mkfs.ext4", &["-q", "-F", text(&image)]);
    let (mut our_times, mut peer_times) = (Vec::new(), Vec::new());
    for _ in 0..FORMAT_ROUNDS {
        blank(&image, size);
        our_times.push(settled(|| timed(&mut ours())));
        blank(&image, size);
        peer_times.push(settled(|| timed(&mut peer())));
    }
    let (our_time, peer_time) = (median(our_times), median(peer_times));
    blank(&image, size);
    let our_bytes = written(&ours());
    blank(&image, size);
    let peer_bytes = written(&peer());
    std::fs::remove_file(&image).unwrap();
    vec![
        Row {
            name: format!("format {name} sparse ext4, time"),
            ratio: our_time / peer_time,
            goal: 0.5,
            ours: milliseconds(our_time),
            peer: milliseconds(peer_time),
            note: format!("mkfs.ext4 with its defaults; median of {FORMAT_ROUNDS}"),
        },
        Row {
            name: format!("format {name} sparse ext4, bytes written"),
            ratio: our_bytes as f64 / peer_bytes as f64,
            goal: 0.5,
            ours: mib(our_bytes),
            peer: mib(peer_bytes),
            note: "the sum of what its writes took, by strace".to_owned(),
        },
    ]
}

fn fill(data: &Data) -> Vec<Row> {
    let image = data.folder.join("fill.img");
    let point = data.folder.join("mounted");
    std::fs::create_dir_all(&point).unwrap();
    let size = format!("{}G", FILLED / GIB);
    let tar = text(&data.archive);
    let arguments = ["mkfs", "ext4", text(&image), "--from-tar", tar];
    let finish = |image: &Path| timed(&mut command("sync", &[text(image)]));
    let ours = || {
        blank(&image, FILLED);
        settled(|| timed(&mut uvm(&arguments)) + finish(&image))
    };
    let from_tree = || {
        let arguments = ["-q", "-t", "ext4", "-d", text(&data.tree), text(&image), &size];
        settled(|| timed(&mut command("mke2fs", &arguments)) + finish(&image))
    };
    let by_kernel = || {
        blank(&image, FILLED);
        let extract = ["--xattrs", "--xattrs-include=*", "--numeric-owner", "-xpf", tar, "-C", text(&point)];
        settled(|| {
            timed(&mut command("mkfs.ext4", &["-q", "-F", text(&image)]))
                + timed(&mut command("mount", &["-o", "loop", text(&image), text(&point)]))
                + timed(&mut command("tar", &extract))
                + timed(&mut command("umount", &[text(&point)]))
                + finish(&image)
        })
    };
    let copied_with = |flags: &[&str]| {
        // Into a file that has its size, as the others do.
        blank(&image, FILLED);
        let (source, target) = (format!("if={tar}"), format!("of={}", text(&image)));
        let arguments =
            [&[source.as_str(), &target, "bs=4M", "conv=fsync,notrunc", "status=none"], flags].concat();
        settled(|| timed(&mut command("dd", &arguments)))
    };
    let copied = || copied_with(&[]);
    let copied_directly = || copied_with(&["oflag=direct"]);
    let contenders: [&dyn Fn() -> f64; 5] = [&ours, &from_tree, &by_kernel, &copied, &copied_directly];
    let mut times = [const { Vec::new() }; 5];
    for round in 0..FILL_ROUNDS {
        // Who comes first changes: a disk may have a burst to give that the last one finds used up.
        for place in 0..contenders.len() {
            let which = (round + place) % contenders.len();
            let _ = std::fs::remove_file(&image);
            times[which].push(contenders[which]());
        }
    }
    blank(&image, FILLED);
    let peak = peak_memory(&mut uvm(&arguments));
    std::fs::remove_file(&image).unwrap();
    let [ours, from_tree, by_kernel, copied, copied_directly] = times.map(median);
    let faster = from_tree.min(by_kernel);
    let row = |name: &str, peer: f64, goal: f64, note: String| Row {
        name: name.to_owned(),
        ratio: ours / peer,
        goal,
        ours: seconds(ours),
        peer: seconds(peer),
        note,
    };
    let (archive, files) = (mib(data.archive.metadata().unwrap().len()), data.files);
    let of = format!("{archive} of tar, {files} files; median of {FILL_ROUNDS}");
    vec![
        row("fill ext4 from a Debian tar, the faster peer", faster, 0.5, of),
        row(
            "… mke2fs -d",
            from_tree,
            0.5,
            format!("{}; from the unpacked tree, for it reads no tar", data.mke2fs),
        ),
        row("… mkfs.ext4, loop mount, tar -x, umount, sync", by_kernel, 0.5, String::new()),
        row("… the floor: dd of the same bytes with fsync", copied, 1.25, String::new()),
        row("… the floor: the same past the page cache", copied_directly, 1.25, "oflag=direct".to_owned()),
        memory(peak, data.files),
    ]
}

fn memory(Peak { resident }: Peak, files: u64) -> Row {
    let allowed = FILL_MEMORY + FILL_BYTES_PER_FILE * files;
    Row {
        name: "peak memory while filling".to_owned(),
        ratio: resident as f64 / allowed as f64,
        goal: 1.0,
        ours: mib(resident),
        peer: mib(allowed),
        note: format!(
            "resident, program included; allowed are 64 MiB and {FILL_BYTES_PER_FILE} bytes for each of {files} files"
        ),
    }
}

fn usage(data: &Data) -> Row {
    let image = text(&data.full);
    let (mut ours, mut peer) = (Vec::new(), Vec::new());
    for _ in 0..FORMAT_ROUNDS {
        drop_caches();
        ours.push(timed(&mut uvm(&["usage", image, "--json", "--extents"])));
        drop_caches();
        peer.push(timed(&mut command("e2image", &["-r", "-a", "-n", image, "/dev/null"])));
    }
    let (ours, peer) = (median(ours), median(peer));
    Row {
        name: "used-block map of a 64 GiB ext4 with 200,000 files".to_owned(),
        ratio: ours / peer,
        goal: 0.5,
        ours: milliseconds(ours),
        peer: milliseconds(peer),
        note: format!(
            "every extent printed as JSON; e2image -ran, which scans and copies nothing; cold caches, median of {FORMAT_ROUNDS}"
        ),
    }
}
