//! A controller over fake nodes, and the command line that calls it.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;
use uvm_controller::config::{FileFlag, ServeConfig, ServeFlags};
use uvm_controller::hypervisor::fake::{FakeCapabilities, FakeHypervisor, FakeUtilityVm};
use uvm_controller::model::{NodeCapacity, NumaCapacity};
use uvm_controller::runtime::nodes::{Factory, NodeAddress, Opened};
use uvm_controller::serve::Controller;

/// How often something is looked at until it is as it should be.
const LOOKS: u32 = 3_000;
const PAUSE: Duration = Duration::from_millis(20);

/// Fake nodes, by their address.
type Nodes = Arc<Mutex<BTreeMap<String, Arc<FakeHypervisor>>>>;

/// What a command said.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) status: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Said {
    /// What it said, where it went well.
    pub(crate) fn good(self) -> Self {
        assert_eq!(self.status, 0, "{}\n{}", self.out, self.err);
        self
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {} {}", self.out, self.err))
    }

    /// The words of the table's row that begins with `first`.
    pub(crate) fn row(&self, first: &str) -> Vec<&str> {
        let mut rows = self.out.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        let found = rows.find(|row| row.first() == Some(&first));
        found.unwrap_or_else(|| panic!("no row {first} in\n{}", self.out))
    }
}

/// The command line, with nothing of this machine's configuration.
pub(crate) fn command(state: &Path, line: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_uvm-controller"));
    command.args(line).env_clear().stdin(Stdio::null());
    command.env("UVM_CONTROLLER_CONFIG", "/dev/null").env("UVM_CONTROLLER_STATE", state);
    command
}

/// Carries a command out. Words are apart by spaces.
pub(crate) fn run(state: &Path, line: &str) -> Said {
    let words: Vec<&str> = line.split_whitespace().collect();
    let output = command(state, &words).output().unwrap();
    Said {
        status: output.status.code().expect("it ended of itself"),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

/// Looks until it is so.
pub(crate) fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    for _ in 0..LOOKS {
        if let Some(found) = look() {
            return found;
        }
        std::thread::sleep(PAUSE);
    }
    panic!("it never came to pass that {what}");
}

/// See the module.
pub(crate) struct Site {
    pub(crate) folder: TempDir,
    nodes: Nodes,
    address: SocketAddr,
    controller: Option<Controller>,
}

impl Site {
    /// A grid of one node, `n1`.
    pub(crate) fn new() -> Self {
        // A port that is free; the controller is started again on the same one.
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let mut site =
            Self { folder: tempfile::tempdir().unwrap(), nodes: Nodes::default(), address, controller: None };
        site.start();
        site.run("node add n1 --hypervisor fake --address /n1 --label rack=r1 --watch").good();
        until("n1 is ready", || (site.run("node list").good().row("n1")[2] == "ready").then_some(()));
        site
    }

    pub(crate) fn start(&mut self) {
        let flags = ServeFlags {
            state: Some(self.folder.path().to_owned()),
            listen: Some(self.address),
            poll_interval: Some(Duration::from_millis(100)),
            ..ServeFlags::default()
        };
        let file = FileFlag { config: Some("/dev/null".into()) };
        let config = ServeConfig::load(&file, flags, &BTreeMap::new()).unwrap();
        let controller = Controller::start(&config, factory(Arc::clone(&self.nodes)), String::new()).unwrap();
        self.controller = Some(controller);
    }

    pub(crate) fn stop(&mut self) {
        self.controller.take().unwrap().stop();
    }

    pub(crate) fn controller(&self) -> &Controller {
        self.controller.as_ref().unwrap()
    }

    pub(crate) fn fake(&self) -> Arc<FakeHypervisor> {
        Arc::clone(&self.nodes.lock().unwrap()["/n1"])
    }

    pub(crate) fn run(&self, line: &str) -> Said {
        run(self.folder.path(), line)
    }

    /// Makes an instance, and waits for it.
    pub(crate) fn instance(&self, name: &str) -> Said {
        self.run(&format!(
            "instance create {name} --project shop --vcpus 1 --memory 512MiB --disk 64MiB --watch"
        ))
        .good()
    }
}

impl Drop for Site {
    /// The controller ends before its folder goes.
    fn drop(&mut self) {
        if let Some(controller) = self.controller.take() {
            controller.stop();
        }
    }
}

fn factory(nodes: Nodes) -> Factory {
    Box::new(move |node: &NodeAddress| {
        let mut nodes = nodes.lock().unwrap();
        let manager = nodes.entry(node.address.clone()).or_insert_with(|| {
            let numa = vec![NumaCapacity { vcpus: 64, memory_mib: 65_536 }];
            let capacity = NodeCapacity { numa, storage_mib: 1 << 20 };
            Arc::new(FakeHypervisor::new(capacity, FakeCapabilities::Qemu.capabilities()))
        });
        let utility = Arc::new(FakeUtilityVm::new(Arc::clone(manager)));
        Ok(Opened { manager: Arc::clone(manager) as _, utility: Some(utility) })
    })
}
