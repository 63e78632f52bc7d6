//! The suite that every manager passes: the same verbs mean the same everywhere, or are refused as unsupported, and
//! then the capability map has said so. It panics at the first thing that is otherwise.
//!
//! Every verb is called twice: the second time it finds done what it was to do.

use std::cell::RefCell;
use std::fmt::Debug;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{
    Attachment, Boot, Capabilities, Change, Domain, DomainEvent, DomainSpec, DomainState, ErrorKind,
    HypervisorManager, MAX_SERIAL, NodeReport, Result, Role,
};
use crate::model::{Id, IoLimits};

/// Between two looks at something that takes its time.
const PAUSE: Duration = Duration::from_millis(50);
/// Size of the suite's volumes.
const SIZE_MIB: u64 = 16;
/// A disk comes and goes so often.
const ROUNDS: usize = 3;

/// What the suite needs to know of a manager.
pub struct Probe<'p> {
    /// Opens the manager on a node of its own; called again when the last one was dropped.
    pub open: &'p dyn Fn() -> Arc<dyn HypervisorManager>,
    /// What domains boot: something that powers itself off when it is asked to, where the manager can ask.
    pub boot: Boot,
    /// What domains are for.
    pub role: Role,
    /// Memory of a domain in MiB.
    pub memory_mib: u64,
    /// Returns when the domain has booted so far that it notices disks and its power button.
    pub booted: &'p dyn Fn(&dyn HypervisorManager, Id),
    /// Ends a running domain behind the manager's back.
    pub crash: &'p dyn Fn(Id),
    /// Whether the whole volume reads as zeroes.
    pub reads_as_zeroes: &'p dyn Fn(Id) -> bool,
    /// How long a domain may take to do as it is told.
    pub patience: Duration,
}

struct Suite<'p> {
    probe: &'p Probe<'p>,
    manager: RefCell<Option<Arc<dyn HypervisorManager>>>,
    capabilities: Capabilities,
    ids: RefCell<u8>,
    /// Everything the reports told; each event is told once.
    events: RefCell<Vec<DomainEvent>>,
}

/// Runs the suite on a node that has no domains and no volumes, and leaves it so.
pub fn conformance(probe: &Probe<'_>) {
    let manager = (probe.open)();
    let capabilities = manager.capabilities();
    let suite = Suite {
        probe,
        manager: RefCell::new(Some(manager)),
        capabilities,
        ids: RefCell::new(0),
        events: RefCell::default(),
    };
    suite.an_empty_node();
    suite.volumes();
    suite.what_is_missing();
    suite.definitions();
    suite.disks_of_a_domain_that_is_off();
    suite.power();
    suite.disks_of_a_running_domain();
    suite.sharing();
    suite.scaling();
    suite.crashes();
    suite.an_empty_node();
}

#[track_caller]
fn refused<T: Debug>(result: Result<T>, kind: ErrorKind) {
    match result {
        Err(error) if error.kind == kind => {
            assert!(!error.message.is_empty(), "an error says what happened");
        }
        other => panic!("{kind:?} was expected, it is {other:?}"),
    }
}

/// Done twice where the capability says that it can be done, else refused.
#[track_caller]
fn twice_where<T: Debug>(capable: bool, verb: impl Fn() -> Result<T>) {
    if capable {
        twice(verb);
    } else {
        refused(verb(), ErrorKind::Unsupported);
    }
}

#[track_caller]
fn twice<T: Debug>(verb: impl Fn() -> Result<T>) -> T {
    if let Err(error) = verb() {
        panic!("refused: {:?} {error}", error.kind);
    }
    match verb() {
        Ok(answer) => answer,
        Err(error) => panic!("refused the second time: {:?} {error}", error.kind),
    }
}

impl Suite<'_> {
    fn manager(&self) -> Arc<dyn HypervisorManager> {
        Arc::clone(self.manager.borrow().as_ref().expect("there is one but for a moment"))
    }

    /// The manager goes away and comes back: what it looks after does not notice.
    fn reopen(&self) {
        *self.manager.borrow_mut() = None;
        *self.manager.borrow_mut() = Some((self.probe.open)());
        assert_eq!(self.manager().capabilities(), self.capabilities, "what it can do does not change");
    }

    fn id(&self) -> Id {
        let mut ids = self.ids.borrow_mut();
        *ids += 1;
        Id::new(1_700_000_000_000 + u64::from(*ids), [*ids; 10])
    }

    fn volume(&self) -> Id {
        let id = self.id();
        twice(|| self.manager().create_volume(id, SIZE_MIB));
        id
    }

    fn attachment(&self, volume: Id) -> Attachment {
        Attachment { volume, serial: volume.serial(), read_only: false, io_limits: IoLimits::default() }
    }

    fn spec(&self, volumes: &[Id]) -> DomainSpec {
        let id = self.id();
        DomainSpec {
            id,
            name: format!("conformance-{}", self.ids.borrow()),
            role: self.probe.role,
            vcpus: 1,
            memory_mib: self.probe.memory_mib,
            numa: Vec::new(),
            disks: volumes.iter().map(|volume| self.attachment(*volume)).collect(),
            mac: format!("52:54:00:00:00:{:02x}", *self.ids.borrow()),
            boot: self.probe.boot.clone(),
        }
    }

    /// A domain that runs and listens.
    fn running(&self, volumes: &[Id]) -> DomainSpec {
        let spec = self.spec(volumes);
        twice(|| self.manager().define(&spec));
        twice(|| self.manager().start(spec.id));
        (self.probe.booted)(&*self.manager(), spec.id);
        spec
    }

    fn report(&self) -> NodeReport {
        let report = self.manager().report().expect("the manager reports");
        self.events.borrow_mut().extend(report.events.iter().cloned());
        report
    }

    /// Whether that was told of a domain.
    fn told(&self, id: Id, what: &str) -> bool {
        self.report();
        self.events.borrow().iter().any(|event| event.domain == id && event.what == what)
    }

    #[track_caller]
    fn domain(&self, id: Id) -> Domain {
        let domain = self.manager().domain(id).expect("the manager answers").expect("the domain is there");
        let report = self.report();
        let reported = report.domains.iter().find(|domain| domain.id == id).expect("it is in the report");
        assert_eq!(reported.disks, domain.disks, "the report says the same");
        domain
    }

    #[track_caller]
    fn state(&self, id: Id) -> DomainState {
        self.domain(id).state
    }

    /// Looks until the domain is in a state; returns what was found last.
    fn wait_state(&self, id: Id, wanted: DomainState) -> DomainState {
        let deadline = Instant::now() + self.probe.patience;
        loop {
            let state = self.state(id);
            if state == wanted || Instant::now() >= deadline {
                return state;
            }
            std::thread::sleep(PAUSE);
        }
    }

    fn remove(&self, domain: Id, volumes: &[Id]) {
        twice(|| self.manager().destroy(domain));
        twice(|| self.manager().undefine(domain));
        assert_eq!(self.manager().domain(domain).expect("the manager answers"), None);
        for volume in volumes {
            twice(|| self.manager().delete_volume(*volume));
            assert_eq!(self.manager().volume(*volume).expect("the manager answers"), None);
        }
    }

    fn an_empty_node(&self) {
        let manager = self.manager();
        let capacity = manager.capacity().expect("the node says what it has");
        assert!(!capacity.numa.is_empty() && capacity.storage_mib > 0, "{capacity:?}");
        assert!(capacity.numa.iter().all(|numa| numa.memory_mib > 0), "{capacity:?}");
        assert!(capacity.numa.iter().any(|numa| numa.vcpus > 0), "{capacity:?}");
        let report = manager.report().expect("the node reports");
        assert!(report.domains.is_empty() && report.volumes.is_empty(), "{report:?}");
        assert!(report.pool_free_bytes > 0 && report.host_memory_bytes.1 >= report.host_memory_bytes.0);
        assert!(!report.host_cpu_ns.is_empty() && report.host_cpu_ns.iter().all(|(busy, all)| busy <= all));
    }

    fn volumes(&self) {
        let manager = self.manager();
        let id = self.id();
        let volume = twice(|| manager.create_volume(id, SIZE_MIB));
        assert_eq!((volume.id, volume.size_mib), (id, SIZE_MIB));
        assert!((self.probe.reads_as_zeroes)(id), "a new volume reads as zeroes");
        assert_eq!(manager.volume(id).expect("it answers").expect("it is there").size_mib, SIZE_MIB);
        refused(manager.create_volume(id, SIZE_MIB + 1), ErrorKind::WrongState);
        refused(manager.create_volume(self.id(), 0), ErrorKind::WrongState);
        let too_large = manager.capacity().expect("it answers").storage_mib.saturating_mul(4);
        let unmade = self.id();
        refused(manager.create_volume(unmade, too_large), ErrorKind::NoResources);
        assert_eq!(manager.volume(unmade).expect("it answers"), None, "what does not fit leaves nothing");

        let grows = self.capabilities.volume_grow != Change::Unsupported;
        twice_where(grows, || manager.grow_volume(id, SIZE_MIB + 1));
        if grows {
            assert_eq!(manager.volume(id).expect("it answers").map(|v| v.size_mib), Some(SIZE_MIB + 1));
            assert!((self.probe.reads_as_zeroes)(id), "a larger volume reads as zeroes");
            refused(manager.grow_volume(id, SIZE_MIB), ErrorKind::WrongState);
            refused(manager.grow_volume(id, too_large), ErrorKind::NoResources);
        }
        refused(manager.grow_volume(unmade, SIZE_MIB), ErrorKind::NotFound);
        drop(manager);
        self.reopen();
        let volumes = self.manager().report().expect("it reports").volumes;
        assert_eq!(volumes.iter().map(|volume| volume.id).collect::<Vec<_>>(), [id]);
        twice(|| self.manager().delete_volume(id));
        assert_eq!(self.manager().volume(id).expect("it answers"), None);
    }

    /// What is wanted gone is gone; nothing else can be done with what is not there.
    fn what_is_missing(&self) {
        let (manager, id, volume) = (self.manager(), self.id(), self.volume());
        let missing = |capable| if capable { ErrorKind::NotFound } else { ErrorKind::Unsupported };
        assert_eq!(manager.domain(id).expect("it answers"), None);
        refused(manager.start(id), ErrorKind::NotFound);
        refused(manager.shutdown(id), missing(self.capabilities.shutdown));
        refused(manager.suspend(id), missing(self.capabilities.suspend));
        refused(manager.resume(id), missing(self.capabilities.suspend));
        refused(manager.reboot(id), ErrorKind::NotFound);
        refused(manager.attach(id, &self.attachment(volume)), ErrorKind::NotFound);
        refused(manager.set_vcpus(id, 1), ErrorKind::NotFound);
        refused(manager.set_memory(id, 1), ErrorKind::NotFound);
        refused(manager.set_io_limits(id, volume, IoLimits::default()), ErrorKind::NotFound);
        refused(manager.service_address(id), ErrorKind::NotFound);
        twice(|| manager.destroy(id));
        twice(|| manager.detach(id, volume));
        twice(|| manager.undefine(id));
        twice(|| manager.delete_volume(volume));
        refused(manager.define(&self.spec(&[volume])), ErrorKind::NotFound);
        assert!(manager.report().expect("it reports").domains.is_empty(), "what was refused is not defined");
    }

    fn definitions(&self) {
        let volume = self.volume();
        let mut spec = self.spec(&[volume]);
        twice(|| self.manager().define(&spec));
        self.reopen();
        let found = self.domain(spec.id);
        assert_eq!((found.id, found.role, found.state), (spec.id, spec.role, DomainState::ShutOff));
        assert_eq!((found.vcpus, found.memory_mib), (spec.vcpus, spec.memory_mib));
        assert_eq!(found.disks, [(volume, false)]);
        spec.vcpus = 2;
        twice(|| self.manager().define(&spec));
        assert_eq!(self.domain(spec.id).vcpus, 2);
        spec.disks.push(spec.disks[0].clone());
        refused(self.manager().define(&spec), ErrorKind::WrongState);
        let manager = self.manager();
        let off = |capable| if capable { ErrorKind::WrongState } else { ErrorKind::Unsupported };
        refused(manager.suspend(spec.id), off(self.capabilities.suspend));
        refused(manager.resume(spec.id), off(self.capabilities.suspend));
        refused(manager.reboot(spec.id), ErrorKind::WrongState);
        refused(manager.set_vcpus(spec.id, 1), ErrorKind::WrongState);
        refused(manager.set_memory(spec.id, 64), ErrorKind::WrongState);
        refused(manager.service_address(spec.id), ErrorKind::WrongState);
        twice_where(self.capabilities.shutdown, || manager.shutdown(spec.id));
        refused(manager.delete_volume(volume), ErrorKind::WrongState);
        self.remove(spec.id, &[volume]);
    }

    fn disks_of_a_domain_that_is_off(&self) {
        let (first, second) = (self.volume(), self.volume());
        let (spec, other) = (self.spec(&[]), self.spec(&[]));
        let manager = self.manager();
        twice(|| manager.define(&spec));
        twice(|| manager.define(&other));
        let attachment = self.attachment(first);
        twice(|| manager.attach(spec.id, &attachment));
        assert_eq!(self.domain(spec.id).disks, [(first, false)]);
        let read_only = Attachment { read_only: true, ..attachment.clone() };
        refused(manager.attach(spec.id, &read_only), ErrorKind::WrongState);
        refused(manager.attach(other.id, &attachment), ErrorKind::WrongState);
        refused(manager.delete_volume(first), ErrorKind::WrongState);
        let same_serial = Attachment { serial: attachment.serial.clone(), ..self.attachment(second) };
        refused(manager.attach(spec.id, &same_serial), ErrorKind::WrongState);
        let long = Attachment { serial: "x".repeat(MAX_SERIAL + 1), ..self.attachment(second) };
        refused(manager.attach(spec.id, &long), ErrorKind::WrongState);
        refused(manager.attach(spec.id, &self.attachment(self.id())), ErrorKind::NotFound);
        twice(|| manager.attach(other.id, &read_only));
        refused(manager.delete_volume(first), ErrorKind::WrongState);
        let limits = IoLimits { bytes_per_second: 1 << 20, operations_per_second: 100 };
        let limited = self.capabilities.io_limits != Change::Unsupported;
        twice_where(limited, || manager.set_io_limits(spec.id, first, limits));
        refused(manager.set_io_limits(spec.id, second, limits), ErrorKind::NotFound);
        twice(|| manager.detach(other.id, first));
        twice(|| manager.detach(spec.id, first));
        assert_eq!(self.domain(spec.id).disks, []);
        twice(|| manager.attach(other.id, &attachment));
        self.remove(other.id, &[first]);
        self.remove(spec.id, &[second]);
    }

    fn power(&self) {
        let volume = self.volume();
        let mut spec = self.running(&[volume]);
        let id = spec.id;
        let first = self.domain(id);
        assert_eq!(first.state, DomainState::Running);
        refused(self.manager().undefine(id), ErrorKind::WrongState);
        refused(self.manager().delete_volume(volume), ErrorKind::WrongState);
        spec.vcpus = 2;
        twice(|| self.manager().define(&spec));
        assert_eq!(self.domain(id).vcpus, 1, "what runs goes on with what it has");
        if matches!(self.probe.boot, Boot::Kernel { .. }) {
            assert_ne!(self.manager().service_address(id).expect("it has a service").port(), 0);
        }
        self.suspended(id);
        self.reopen();
        let found = self.domain(id);
        assert_eq!((found.state, found.starts), (DomainState::Running, first.starts), "it did not notice");
        self.manager().reboot(id).expect("a running domain can be reset");
        assert_eq!((self.state(id), self.domain(id).starts), (DomainState::Running, first.starts));
        (self.probe.booted)(&*self.manager(), id);
        let report = self.report();
        let (_, counters) = report.statistics.iter().find(|(of, _)| *of == id).expect("it is counted");
        assert!(!counters.cpu_ns.is_empty() && counters.memory_bytes > 0, "{counters:?}");
        assert_eq!(counters.block.iter().map(|block| block.volume).collect::<Vec<_>>(), [volume]);

        twice_where(self.capabilities.shutdown, || self.manager().shutdown(id));
        if self.capabilities.shutdown {
            assert_eq!(self.wait_state(id, DomainState::ShutOff), DomainState::ShutOff);
            assert!(self.told(id, "shutdown"));
        }
        twice(|| self.manager().destroy(id));
        assert_eq!(self.state(id), DomainState::ShutOff);
        twice(|| self.manager().start(id));
        let again = self.domain(id);
        assert_ne!(again.starts, first.starts, "another start");
        assert_eq!((again.state, again.vcpus), (DomainState::Running, 2), "as it is defined now");
        twice(|| self.manager().destroy(id));
        assert_eq!(self.state(id), DomainState::ShutOff);
        assert!(self.told(id, "started") && self.told(id, "stopped") && self.told(id, "reboot"));
        self.remove(id, &[volume]);
    }

    fn suspended(&self, id: Id) {
        twice_where(self.capabilities.suspend, || self.manager().suspend(id));
        if self.capabilities.suspend {
            assert_eq!(self.state(id), DomainState::Paused);
            twice(|| self.manager().start(id));
            refused(self.manager().reboot(id), ErrorKind::WrongState);
            refused(self.manager().undefine(id), ErrorKind::WrongState);
            self.reopen();
            assert_eq!(self.state(id), DomainState::Paused, "a held domain stays held");
        }
        twice_where(self.capabilities.suspend, || self.manager().resume(id));
        assert_eq!(self.state(id), DomainState::Running);
    }

    fn disks_of_a_running_domain(&self) {
        let (boot, volume) = (self.volume(), self.volume());
        let spec = self.running(&[boot]);
        let id = spec.id;
        let attachment = self.attachment(volume);
        if !self.capabilities.hot_plug {
            refused(self.manager().attach(id, &attachment), ErrorKind::Unsupported);
            refused(self.manager().detach(id, boot), ErrorKind::Unsupported);
            assert_eq!(self.domain(id).disks, [(boot, false)]);
            return self.remove(id, &[boot, volume]);
        }
        for round in 0..ROUNDS {
            let size_mib = SIZE_MIB + round as u64;
            twice(|| self.manager().attach(id, &attachment));
            assert_eq!(self.domain(id).disks, [(boot, false), (volume, false)]);
            refused(self.manager().delete_volume(volume), ErrorKind::WrongState);
            let read_only = Attachment { read_only: true, ..attachment.clone() };
            refused(self.manager().attach(id, &read_only), ErrorKind::WrongState);
            if round > 0 {
                let live = self.capabilities.volume_grow == Change::Live;
                twice_where(live, || self.manager().grow_volume(volume, size_mib));
            }
            self.reopen();
            assert_eq!(self.domain(id).disks, [(boot, false), (volume, false)]);
            twice(|| self.manager().detach(id, volume));
            assert_eq!(self.domain(id).disks, [(boot, false)]);
        }
        // It stays until it is detached, over a restart of the domain too.
        twice(|| self.manager().attach(id, &attachment));
        let limits = IoLimits { bytes_per_second: 8 << 20, operations_per_second: 1000 };
        let live = self.capabilities.io_limits == Change::Live;
        twice_where(live, || self.manager().set_io_limits(id, volume, limits));
        twice_where(live, || self.manager().set_io_limits(id, boot, limits));
        if live {
            twice(|| self.manager().set_io_limits(id, volume, IoLimits::default()));
        }
        twice(|| self.manager().destroy(id));
        assert_eq!(self.domain(id).disks, [(boot, false), (volume, false)]);
        twice(|| self.manager().start(id));
        assert_eq!(self.domain(id).disks, [(boot, false), (volume, false)]);
        self.remove(id, &[boot, volume]);
    }

    /// Two domains at one volume.
    fn sharing(&self) {
        let volume = self.volume();
        let writer = self.running(&[volume]);
        if self.capabilities.suspend {
            twice(|| self.manager().suspend(writer.id));
            if self.probe.role == Role::Guest && self.capabilities.hot_plug {
                // A guest that is held cannot let go of a disk.
                refused(self.manager().detach(writer.id, volume), ErrorKind::WrongState);
                assert_eq!(self.domain(writer.id).disks, [(volume, false)]);
            }
        }
        let reader = self.running(&[]);
        let for_writing = self.attachment(volume);
        refused(self.manager().attach(reader.id, &for_writing), ErrorKind::WrongState);
        let reading = Attachment { read_only: true, ..for_writing.clone() };
        let shared = self.capabilities.shared_read && self.capabilities.hot_plug;
        twice_where(shared, || self.manager().attach(reader.id, &reading));
        if shared {
            assert_eq!(self.domain(reader.id).disks, [(volume, true)]);
            assert_eq!(self.domain(writer.id).disks, [(volume, false)]);
            if self.capabilities.suspend {
                twice(|| self.manager().resume(writer.id));
            }
            // The one that writes can go and come back while the other one reads.
            twice(|| self.manager().destroy(writer.id));
            twice(|| self.manager().start(writer.id));
            twice(|| self.manager().detach(reader.id, volume));
            assert_eq!(self.domain(writer.id).disks, [(volume, false)]);
        }
        self.remove(reader.id, &[]);
        self.remove(writer.id, &[volume]);
    }

    fn scaling(&self) {
        let spec = self.running(&[]);
        let (manager, id) = (self.manager(), spec.id);
        let (vcpus, memory_mib) = (spec.vcpus + 1, spec.memory_mib + 64);
        twice(|| manager.set_vcpus(id, spec.vcpus));
        twice(|| manager.set_memory(id, spec.memory_mib));
        let up = (self.capabilities.vcpus_up == Change::Live, self.capabilities.memory_up == Change::Live);
        twice_where(up.0, || manager.set_vcpus(id, vcpus));
        twice_where(up.1, || manager.set_memory(id, memory_mib));
        let found = self.domain(id);
        assert_eq!(found.vcpus, if up.0 { vcpus } else { spec.vcpus });
        assert_eq!(found.memory_mib, if up.1 { memory_mib } else { spec.memory_mib });
        if up.0 {
            twice_where(self.capabilities.vcpus_down == Change::Live, || manager.set_vcpus(id, spec.vcpus));
        }
        if up.1 {
            let live = self.capabilities.memory_down == Change::Live;
            twice_where(live, || manager.set_memory(id, spec.memory_mib));
        }
        self.remove(id, &[]);
    }

    /// What ended without having been asked to is told apart from what is off.
    fn crashes(&self) {
        let volume = self.volume();
        let spec = self.running(&[volume]);
        let (id, before) = (spec.id, self.domain(spec.id).starts);
        (self.probe.crash)(id);
        assert_eq!(self.wait_state(id, DomainState::Crashed), DomainState::Crashed);
        assert_eq!(self.domain(id).disks, [(volume, false)]);
        assert!(self.told(id, "crashed"));
        assert_eq!(self.domain(id).starts, before);
        self.reopen();
        assert_eq!(self.state(id), DomainState::Crashed, "it is remembered");
        twice(|| self.manager().start(id));
        assert_eq!(self.state(id), DomainState::Running);
        assert_ne!(self.domain(id).starts, before);
        (self.probe.crash)(id);
        assert_eq!(self.wait_state(id, DomainState::Crashed), DomainState::Crashed);
        twice(|| self.manager().destroy(id));
        assert_eq!(self.state(id), DomainState::ShutOff, "somebody has taken note");
        let last = self.domain(id).starts;
        twice(|| self.manager().undefine(id));
        twice(|| self.manager().define(&spec));
        twice(|| self.manager().start(id));
        assert!(![before, last].contains(&self.domain(id).starts), "another start of another definition");
        self.remove(id, &[volume]);
    }
}
