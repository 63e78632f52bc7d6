//! Signals and children belong to the whole process: this test has one to itself, without the test
//! harness, whose threads would take the signals.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use rustix::process::{Signal, getpid, kill_process};
use uvm_sys::{PowerRequest, block_signals_and_reap};

const PATIENCE: Duration = Duration::from_secs(20);

fn main() {
    if std::env::args().any(|arg| arg == "--child") {
        return;
    }
    let (told, requests) = mpsc::channel();
    let told = Mutex::new(told);
    block_signals_and_reap(Arc::new(move |request| {
        told.lock().expect("no holder panics").send(request).expect("main waits");
    }))
    .expect("blocking signals");

    for (signal, request) in [
        (Signal::POWER, PowerRequest::PowerFail),
        (Signal::TERM, PowerRequest::Terminate),
        (Signal::INT, PowerRequest::Interrupt),
    ] {
        kill_process(getpid(), signal).expect("signalling ourselves");
        assert_eq!(requests.recv_timeout(PATIENCE), Ok(request));
    }

    #[expect(clippy::zombie_processes, reason = "the code under test reaps it")]
    let child = Command::new("/proc/self/exe").arg("--child").stdin(Stdio::null()).spawn().expect("a child");
    let entry = PathBuf::from(format!("/proc/{}", child.id()));
    let deadline = Instant::now() + PATIENCE;
    while entry.exists() {
        assert!(Instant::now() < deadline, "the child was never reaped");
        std::thread::sleep(Duration::from_millis(10));
    }
    println!("signals: ok");
}
