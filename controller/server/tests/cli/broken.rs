//! Connections that break, controllers that go away, command lines that make no sense.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use serde_json::Value;
use uvm_controller::hypervisor::{Error, ErrorKind};

use crate::support::{Site, command, run, until};

/// Passes bytes on, and breaks connections when it is told to.
struct Proxy {
    address: SocketAddr,
    open: Arc<Mutex<Vec<TcpStream>>>,
}

impl Proxy {
    /// A proxy that asks, before it passes on what the controller says, whether to break the connection instead.
    fn new(to: SocketAddr, breaks: impl Fn() -> bool + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (open, breaks) = (Arc::new(Mutex::new(Vec::new())), Arc::new(breaks));
        let kept = Arc::clone(&open);
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let (client, server) = (client.unwrap(), TcpStream::connect(to).unwrap());
                kept.lock().unwrap().push(client.try_clone().unwrap());
                let (from, into) = (client.try_clone().unwrap(), server.try_clone().unwrap());
                std::thread::spawn(move || pass(from, into, || false));
                let breaks = Arc::clone(&breaks);
                std::thread::spawn(move || pass(server, client, || breaks()));
            }
        });
        Self { address, open }
    }

    /// Breaks every connection that there is; how many there were.
    fn break_all(&self) -> usize {
        let open = std::mem::take(&mut *self.open.lock().unwrap());
        open.iter().filter(|stream| stream.shutdown(Shutdown::Both).is_ok()).count()
    }

    fn url(&self) -> String {
        format!("https://{}", self.address)
    }
}

fn pass(mut from: TcpStream, mut into: TcpStream, breaks: impl Fn() -> bool) {
    let mut bytes = [0; 16_384];
    while let Ok(count @ 1..) = from.read(&mut bytes) {
        if breaks() || into.write_all(&bytes[..count]).is_err() {
            break;
        }
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = into.shutdown(Shutdown::Both);
}

#[test]
fn an_answer_that_was_lost_makes_nothing_twice() {
    let site = Site::new();
    let (grid, broken) = (Arc::clone(site.controller().grid()), Arc::new(AtomicUsize::new(0)));
    let count = Arc::clone(&broken);
    let proxy = Proxy::new(site.controller().address(), move || {
        // The first two answers that say so are lost.
        grid.read(|state| !state.instances.is_empty()) && count.fetch_add(1, Ordering::Relaxed) < 2
    });
    let line = "instance create web --project shop --vcpus 1 --memory 64 --disk 64 --watch --url";
    site.run(&format!("{line} {}", proxy.url())).good();
    assert!(broken.load(Ordering::Relaxed) >= 2, "the answers were lost");
    assert_eq!(site.run("instance list --json").good().json()["items"].as_array().unwrap().len(), 1);
    let jobs = site.run("job list --kind create-instance --json").good().json();
    assert_eq!(jobs["items"].as_array().unwrap().len(), 1, "{jobs}");
}

#[test]
fn events_go_on_where_their_connection_broke_each_once() {
    let site = Site::new();
    let proxy = Proxy::new(site.controller().address(), || false);
    let url = proxy.url();
    let line = ["event", "list", "--watch", "--json", "--limit", "1000", "--url", &url];
    let mut child = command(site.folder.path(), &line).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut seen: Vec<u64> = Vec::new();
    let mut read_to = |last: u64| {
        while seen.last().is_none_or(|seen| *seen < last) {
            let event: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
            seen.push(event["sequence"].as_u64().unwrap());
        }
        seen.clone()
    };
    let last = || *site.controller().grid().events().borrow();
    read_to(last());
    let mut broken = 0;
    for name in ["a", "b", "c"] {
        site.run(&format!("node label n1 {name}=1")).good();
        read_to(last());
        broken += proxy.break_all();
        // While nobody listens.
        site.run(&format!("node label n1 {name}=2")).good();
    }
    let all = read_to(last());
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(broken >= 3, "{broken}");
    assert_eq!(all, (1..=last()).collect::<Vec<_>>());
}

#[test]
fn a_watch_outlives_the_controller() {
    let mut site = Site::new();
    let (hold, held) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicBool::new(false)));
    let (holds, noted) = (Arc::clone(&hold), Arc::clone(&held));
    site.fake().set_faults(Some(Box::new(move |_, name| {
        (name == "define" && holds.load(Ordering::Relaxed)).then(|| {
            noted.store(true, Ordering::Relaxed);
            Error::new(ErrorKind::Unreachable, "not now")
        })
    })));
    let line = "instance create web --project shop --vcpus 1 --memory 64 --disk 64 --watch";
    let words: Vec<&str> = line.split_whitespace().collect();
    let child =
        command(site.folder.path(), &words).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    until("the job waits", || held.load(Ordering::Relaxed).then_some(()));
    site.stop();
    site.start();
    hold.store(false, Ordering::Relaxed);
    let output = child.wait_with_output().unwrap();
    let out = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{out} {}", String::from_utf8_lossy(&output.stderr));
    assert!(out.contains("create-instance succeeded"), "{out}");
}

#[test]
fn a_job_that_is_cancelled_is_taken_back() {
    let site = Site::new();
    let held = Arc::new(AtomicBool::new(false));
    let noted = Arc::clone(&held);
    site.fake().set_faults(Some(Box::new(move |_, name| {
        (name == "define").then(|| {
            noted.store(true, Ordering::Relaxed);
            Error::new(ErrorKind::Unreachable, "not now")
        })
    })));
    let line = "instance create web --project shop --vcpus 1 --memory 64 --disk 64 --json";
    let job = site.run(line).good().json()["job"].as_str().unwrap().to_owned();
    until("the job waits", || held.load(Ordering::Relaxed).then_some(()));
    let cancelled = site.run(&format!("job cancel {job} --watch")).good();
    let shown = site.run(&format!("job show {job} --json")).good().json();
    assert_eq!(
        (&shown["state"], &shown["steps"][0]["state"]),
        (&"cancelled".into(), &"undone".into()),
        "{shown}"
    );
    assert!(cancelled.out.contains("create-instance cancelled in "), "{}", cancelled.out);
    assert_eq!(site.run(&format!("job watch {job}")).status, 1, "it did not succeed");
    assert_eq!(site.run(&format!("job cancel {job} --watch")).status, 1, "it has ended");
    assert_eq!(site.run("instance list").good().out.lines().count(), 1);
}

#[test]
fn nobody_there_is_status_3_and_nonsense_is_status_2() {
    let site = Site::new();
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let gone = site.run(&format!("instance list --url https://{free}"));
    assert_eq!(gone.status, 3, "{gone:?}");
    assert!(gone.err.contains("is the controller running there"), "{}", gone.err);
    // Somebody else's authority: nothing is told to whom we do not know.
    let other = Site::new();
    let authority = other.folder.path().join("ca.pem");
    let stranger = site.run(&format!("instance list --ca {}", authority.display()));
    assert_eq!(stranger.status, 3, "{stranger:?}");
    assert!(stranger.err.contains("--ca"), "{}", stranger.err);

    let nowhere = tempfile::tempdir().unwrap();
    let unconfigured = run(nowhere.path(), "instance list");
    assert_eq!(unconfigured.status, 2, "{unconfigured:?}");
    assert!(
        unconfigured.err.contains("no url") && unconfigured.err.contains("cause: "),
        "{}",
        unconfigured.err
    );
    for line in [
        "instance create web --vcpus 1 --memory 4GB --disk 64",
        "instance create --file /nowhere/request.json",
        "instance change web",
        "job show web",
        "node label n1 nonsense",
    ] {
        assert_eq!(site.run(line).status, 2, "{line}");
    }
}

#[test]
fn a_reader_that_goes_away_ends_the_command() {
    let site = Site::new();
    let mut child = command(site.folder.path(), &["event", "list", "--watch"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap());
    let mut first = String::new();
    lines.read_line(&mut first).unwrap();
    assert!(first.contains("token.created"), "{first}");
    drop(lines);
    let status = until("it ends", || {
        site.run("node label n1 again=1").good();
        child.try_wait().unwrap()
    });
    let mut complaint = String::new();
    child.stderr.take().unwrap().read_to_string(&mut complaint).unwrap();
    assert_eq!((status.code(), complaint.as_str()), (Some(1), ""), "it does not panic");
}
