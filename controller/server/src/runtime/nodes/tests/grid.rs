//! The grid, which opens its nodes.

use super::*;

/// A grid over one manager, counting how often it is opened.
fn grid(
    folder: &tempfile::TempDir,
    manager: &Arc<Manager>,
    utility: Option<&Arc<Scripted>>,
) -> (GridNodes, Arc<AtomicUsize>) {
    let options = GridOptions {
        kernel: "/boot/vmlinux".into(),
        initramfs: "/boot/initramfs".into(),
        command_line: command_line(true),
        controller_url: "https://ctl.example:8440/".to_owned(),
        hosts: [("ctl.example".to_owned(), "10.0.2.2".parse().unwrap())].into(),
    };
    let now = 1_900_000_000_000;
    let authority = Arc::new(Authority::open_or_create(folder.path(), now).unwrap());
    let blobs = Arc::new(Blobs::open(&folder.path().join("images"), b"secret").unwrap());
    let opens = Arc::new(AtomicUsize::new(0));
    let (count, manager, utility) = (Arc::clone(&opens), Arc::clone(manager), utility.cloned());
    let factory: Factory = Box::new(move |_| {
        count.fetch_add(1, Ordering::SeqCst);
        let utility = utility.clone().map(|utility| utility as Arc<dyn UtilityVm>);
        Ok(Opened { manager: Arc::clone(&manager) as Arc<dyn HypervisorManager>, utility })
    });
    (GridNodes::new(options, authority, blobs, factory), opens)
}

#[test]
fn the_grid_hands_a_utility_vm_its_identity_and_opens_each_node_once() {
    let folder = tempfile::tempdir().unwrap();
    let (manager, utility) = (Arc::new(Manager::default()), Arc::new(Scripted::default()));
    utility.probes.lock().unwrap().extend([true, true]);
    let (grid, opens) = grid(&folder, &manager, Some(&utility));
    let address = address();
    grid.perform(&address, &Call::EnsureUtilityVm, &mut |_| {}, &|| false).unwrap();
    let Boot::Kernel { kernel, initramfs, command_line, config, service_port } =
        manager.defined.lock().unwrap().clone().unwrap().boot
    else {
        panic!("a utility VM boots a kernel");
    };
    assert_eq!(
        (kernel.as_str(), initramfs.as_str(), service_port),
        ("/boot/vmlinux", "/boot/initramfs", 8443)
    );
    assert_eq!(command_line, "console=ttyS0 quiet nolapic_timer");
    let config: Value = serde_json::from_str(&config).unwrap();
    let authority = std::fs::read_to_string(folder.path().join(crate::ca::CERTIFICATE_FILE)).unwrap();
    assert_eq!(config["node"], "n1");
    assert_eq!(config["hosts"], json!({ "ctl.example": "10.0.2.2" }));
    assert_eq!(config["api"]["client_ca"], authority);
    assert_eq!(config["image_store_ca"], authority);
    assert!(config["api"]["private_key"].as_str().unwrap().contains("PRIVATE KEY"));
    assert!(config["api"]["certificate"].as_str().unwrap().contains("BEGIN CERTIFICATE"));
    // In service already: nothing is defined, no certificate is made.
    *manager.defined.lock().unwrap() = None;
    grid.perform(&address, &Call::EnsureUtilityVm, &mut |_| {}, &|| false).unwrap();
    assert!(manager.defined.lock().unwrap().is_none());
    for _ in 0..2 {
        grid.perform(&address, &Call::Observe, &mut |_| {}, &|| false).unwrap();
    }
    assert_eq!(opens.load(Ordering::SeqCst), 1);
    assert_eq!(manager.heard().iter().filter(|verb| *verb == "capacity").count(), 1);
    let other = NodeAddress { address: "elsewhere".to_owned(), ..address };
    grid.perform(&other, &Call::Observe, &mut |_| {}, &|| false).unwrap();
    assert_eq!(opens.load(Ordering::SeqCst), 2, "a node that is elsewhere now is opened there");
}

#[test]
fn images_of_the_grid_open_with_what_a_job_carries() {
    let folder = tempfile::tempdir().unwrap();
    let (manager, utility) = (Arc::new(Manager::default()), Arc::new(Scripted::default()));
    utility.submissions.lock().unwrap().push_back(Ok(job(JobState::Succeeded)));
    let (grid, _) = grid(&folder, &manager, Some(&utility));
    let work = Box::new(UvmWork::Capture { serial: "d".to_owned(), image: id(7) });
    let capture = Call::UvmJob { id: "j1".to_owned(), work };
    grid.perform(&address(), &capture, &mut |_| {}, &|| false).unwrap();
    let Some(JobSpec::Capture(spec)) = utility.submitted.lock().unwrap().pop() else { panic!("a capture") };
    assert_eq!(spec.destination.url, format!("https://ctl.example:8440/v1/blobs/{}", id(7)));
    let blobs = Blobs::open(&folder.path().join("images"), b"secret").unwrap();
    let value = spec.destination.authorization.unwrap();
    assert!(blobs.check(value.reveal(), Verb::Put, id(7)));
    assert!(!blobs.check(value.reveal(), Verb::Get, id(7)));
}

#[test]
fn a_utility_vm_without_an_address_is_away() {
    let folder = tempfile::tempdir().unwrap();
    let manager = Arc::new(Manager::with_domain(DomainState::Running));
    let (grid, _) = grid(&folder, &manager, None);
    let result = grid.perform(&address(), &sanitize(), &mut |_| {}, &|| false);
    assert_eq!(kind(result), CallErrorKind::UtilityVmAway);
    // A port nobody listens on.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let manager = Manager { service: Some(port), ..Manager::with_domain(DomainState::Running) };
    let (grid, _) = self::grid(&folder, &Arc::new(manager), None);
    let result = grid.perform(&address(), &sanitize(), &mut |_| {}, &|| false);
    assert_eq!(kind(result), CallErrorKind::UtilityVmAway);
    // The address is asked for even while the utility VM boots, and what it waits for can be called off.
    let told = RefCell::new(0);
    let cancelled = || told.replace_with(|count| *count + 1) > 0;
    let result = grid.perform(&address(), &Call::EnsureUtilityVm, &mut |_| {}, &cancelled);
    assert_eq!(kind(result), CallErrorKind::Transient);
}

#[test]
fn a_kind_of_hypervisor_without_a_manager_is_said() {
    let factory = qemu(crate::hypervisor::qemu::QemuOptions::default());
    let error = factory(&address()).err().expect("it is refused");
    assert_eq!(error.kind, ErrorKind::Unsupported);
    assert!(error.message.contains("fake"), "{error}");
}

#[test]
fn the_fake_goes_through_the_same_words() {
    let capacity = NodeCapacity {
        numa: vec![crate::model::NumaCapacity { vcpus: 4, memory_mib: 4096 }],
        storage_mib: 4096,
    };
    let node = Arc::new(FakeHypervisor::new(capacity, FakeCapabilities::Qemu.capabilities()));
    node.set(|settings| (settings.boot_polls, settings.job_polls) = (3, 2));
    let (address, utility) = (address(), Arc::new(FakeUtilityVm::new(Arc::clone(&node))));
    let site = LocalSite::new(&address, &*node, utility as Arc<dyn UtilityVm>);
    let go = |call: Call| perform(&site, &call, &mut |_| {}, &|| false).unwrap();
    let disk = id(1);
    let attachment =
        Attachment { volume: disk, serial: disk.serial(), read_only: false, io_limits: IoLimits::default() };
    // Everything twice, as a controller does that was killed between.
    for _ in 0..2 {
        go(Call::EnsureUtilityVm);
        go(Call::CreateVolume { volume: disk, size_mib: 8 });
        go(Call::Attach { domain: address.id, attachment: attachment.clone() });
    }
    node.crash(address.id).unwrap();
    go(Call::EnsureUtilityVm);
    let seen = go(Call::UvmDevices(vec![disk.serial()]));
    assert!(matches!(seen, CallAnswer::Devices(seen) if seen == [disk.serial()]), "the disk stayed attached");
    let work = UvmWork::Sanitize { serial: disk.serial(), size_mib: 8 };
    for _ in 0..2 {
        let answer = go(Call::UvmJob { id: "j1".to_owned(), work: Box::new(work.clone()) });
        assert!(matches!(answer, CallAnswer::UvmJob(job) if job.state == JobState::Succeeded));
    }
    for _ in 0..2 {
        go(Call::CancelUvmJob("j1".to_owned()));
        go(Call::Detach { domain: address.id, volume: disk });
        go(Call::DeleteVolume(disk));
    }
    go(Call::RestartUtilityVm);
    let CallAnswer::Observed(seen) = go(Call::Observe) else { panic!("an observation was expected") };
    assert!(seen.utility.is_some() && seen.uvm_jobs_running == 0 && seen.report.volumes.is_empty());
    assert!(node.violations().is_empty(), "{:?}", node.violations());
}
