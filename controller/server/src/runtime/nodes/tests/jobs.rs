//! Jobs of utility VMs.

use super::*;

#[test]
fn a_job_is_followed_to_its_end() {
    let running = || Ok(Some(job(JobState::Running)));
    let looks = vec![running(), running(), Ok(Some(job(JobState::Succeeded)))];
    let utility = Arc::new(Scripted::with_job(job(JobState::Running), looks));
    let (address, manager) = (address(), Manager::default());
    let site = LocalSite::new(&address, &manager, Arc::clone(&utility) as Arc<dyn UtilityVm>);
    let mut told = Vec::new();
    let answer = perform(&site, &sanitize(), &mut |progress| told.push(progress), &|| false).unwrap();
    assert!(matches!(answer, CallAnswer::UvmJob(job) if job.state == JobState::Succeeded));
    assert_eq!(told.len(), 3);
    assert_eq!((told[0].step.as_str(), told[0].bytes_done, told[0].bytes_total), ("write", 5, Some(10)));
    assert_eq!(utility.heard(), ["submit", "job j1", "job j1", "job j1"]);
    assert_eq!(site.now().as_millis(), 20 + 40 + 80, "the pauses double");
}

#[test]
fn a_job_that_had_ended_is_not_looked_at() {
    let utility = Arc::new(Scripted::with_job(job(JobState::Succeeded), Vec::new()));
    call(&Manager::default(), &utility, &sanitize()).unwrap();
    assert_eq!(utility.heard(), ["submit"]);
}

#[test]
fn a_job_that_was_forgotten_is_submitted_again_and_not_for_ever() {
    let utility = Scripted::with_job(job(JobState::Running), vec![Ok(None)]);
    utility.submissions.lock().unwrap().push_back(Ok(job(JobState::Succeeded)));
    let utility = Arc::new(utility);
    call(&Manager::default(), &utility, &sanitize()).unwrap();
    assert_eq!(utility.heard(), ["submit", "job j1", "submit"]);
    let submitted = utility.submitted.lock().unwrap().clone();
    assert_eq!(submitted[0], submitted[1]);

    let utility = Arc::new(Scripted {
        submissions: Mutex::new((0..9).map(|_| Ok(job(JobState::Running))).collect()),
        looks: Mutex::new((0..9).map(|_| Ok(None)).collect()),
        ..Scripted::default()
    });
    assert_eq!(kind(call(&Manager::default(), &utility, &sanitize())), CallErrorKind::Transient);
    assert_eq!(utility.heard().iter().filter(|heard| *heard == "submit").count(), 5);
}

#[test]
fn a_few_looks_may_be_missed_and_no_more() {
    let looks = vec![silent(), silent(), silent(), Ok(Some(job(JobState::Running))), silent()];
    let utility = Scripted {
        ever: Some(job(JobState::Succeeded)),
        ..Scripted::with_job(job(JobState::Running), looks)
    };
    let utility = Arc::new(utility);
    call(&Manager::default(), &utility, &sanitize()).unwrap();
    assert_eq!(utility.heard().len(), 7);

    let utility = Arc::new(Scripted::with_job(job(JobState::Running), Vec::new()));
    assert_eq!(kind(call(&Manager::default(), &utility, &sanitize())), CallErrorKind::UtilityVmAway);
    assert_eq!(utility.heard().len(), 5, "the submission and four looks");
    let utility = Arc::new(Scripted::default());
    assert_eq!(kind(call(&Manager::default(), &utility, &sanitize())), CallErrorKind::UtilityVmAway);
}

#[test]
fn a_job_nobody_waits_for_is_left_alone() {
    let utility = Arc::new(Scripted {
        ever: Some(job(JobState::Running)),
        ..Scripted::with_job(job(JobState::Running), Vec::new())
    });
    let (address, manager, asked) = (address(), Manager::default(), Cell::new(0));
    let site = LocalSite::new(&address, &manager, Arc::clone(&utility) as Arc<dyn UtilityVm>);
    let cancelled = || asked.replace(asked.get() + 1) == 3;
    assert_eq!(kind(perform(&site, &sanitize(), &mut |_| {}, &cancelled)), CallErrorKind::Transient);
    assert_eq!(utility.heard(), ["submit", "job j1", "job j1", "job j1"]);
}

#[test]
fn a_problem_is_permanent_only_where_the_same_again_fails_again() {
    use CallErrorKind::{Permanent, Transient};
    let cases = [
        (ErrorCode::DigestMismatch, Some(Retry::Never), Permanent),
        (ErrorCode::ImageUnreachable, Some(Retry::Same), Transient),
        (ErrorCode::DeviceBusy, Some(Retry::AfterRepair), Transient),
        (ErrorCode::Cancelled, Some(Retry::Same), Transient),
        (ErrorCode::Unknown, Some(Retry::Unknown), Transient),
        (ErrorCode::DeviceNotFound, Some(Retry::Never), Transient),
        (ErrorCode::JobConflict, Some(Retry::Same), Permanent),
        (ErrorCode::Unauthorized, None, Permanent),
        (ErrorCode::InvalidRequest, None, Permanent),
        (ErrorCode::MethodNotAllowed, None, Permanent),
        (ErrorCode::Internal, None, Transient),
        (ErrorCode::Overloaded, None, Transient),
    ];
    for (code, retry, expected) in cases {
        let ended = failed(code, retry);
        let problem = Box::new(ended.problem.clone().unwrap());
        let refused = Scripted {
            submissions: Mutex::new([Err(UvmError::Problem(problem))].into()),
            ..Scripted::default()
        };
        for utility in [refused, Scripted::with_job(ended.clone(), Vec::new())] {
            let error = call(&Manager::default(), &Arc::new(utility), &sanitize()).unwrap_err();
            assert_eq!(error.kind, expected, "{code:?} {retry:?}");
            assert!(error.message.contains("why (step write)"), "{error:?}");
            assert_eq!(error.causes, ["deep"]);
        }
    }
    let wordless = Arc::new(Scripted::with_job(job(JobState::Failed), Vec::new()));
    assert_eq!(kind(call(&Manager::default(), &wordless, &sanitize())), Transient);
}

#[test]
fn a_job_is_cancelled_and_waited_for() {
    let cancel = Call::CancelUvmJob("j1".to_owned());
    let manager = Manager::with_domain(DomainState::Running);
    for last in [Ok(Some(job(JobState::Cancelled))), Ok(Some(job(JobState::Succeeded))), Ok(None)] {
        let looks = vec![Ok(Some(job(JobState::Running))), last];
        let utility = Arc::new(Scripted { looks: Mutex::new(looks.into()), ..Scripted::default() });
        call(&manager, &utility, &cancel).unwrap();
        assert_eq!(utility.heard(), ["cancel j1", "job j1", "job j1"]);
    }
    // It will not end.
    let utility = Arc::new(Scripted { ever: Some(job(JobState::Running)), ..Scripted::default() });
    assert_eq!(kind(call(&manager, &utility, &cancel)), CallErrorKind::Transient);
    // A utility VM that does not run has forgotten it; one that is silent may be at work.
    for state in [DomainState::ShutOff, DomainState::Crashed] {
        let utility = Arc::new(Scripted::default());
        call(&Manager::with_domain(state), &utility, &cancel).unwrap();
        assert!(utility.heard().is_empty());
    }
    call(&Manager::default(), &Arc::new(Scripted::default()), &cancel).unwrap();
    assert_eq!(kind(call(&manager, &Arc::new(Scripted::default()), &cancel)), CallErrorKind::UtilityVmAway);
}

/// What is submitted for a work, as it goes over the wire.
fn submitted(work: UvmWork) -> Result<Value, CallError> {
    let utility = Arc::new(Scripted::with_job(job(JobState::Succeeded), Vec::new()));
    let one = Call::UvmJob { id: "j1".to_owned(), work: Box::new(work) };
    call(&Manager::default(), &utility, &one)?;
    Ok(serde_json::to_value(&utility.submitted.lock().unwrap()[0]).unwrap())
}

#[test]
fn work_becomes_jobs() {
    let text = str::to_owned;
    let oci = ImageContents::Oci {
        source: ImageSource::OciLayout { url: "https://images/".to_owned() },
        reference: Some("12".to_owned()),
        digest: "sha256:ab".to_owned(),
    };
    let disk = ImageContents::Disk { digest: "sha256:cd".to_owned(), size_bytes: 5, device_bytes: 6 };
    let customize = serde_json::from_value(json!({ "hostname": "web-1" })).unwrap();
    let config = Box::new(InstanceConfig {
        id: id(1),
        partitions: Vec::new(),
        customize,
        boot: uvm_api::BootSpec::default(),
    });
    let provision =
        |contents| UvmWork::Provision { serial: text("d"), size_mib: 2, contents, config: config.clone() };
    let restore = |contents| UvmWork::Restore { serial: text("d"), image: id(7), contents };
    assert_eq!(kind_of(provision(disk.clone())), CallErrorKind::Permanent);
    assert_eq!(kind_of(restore(oci.clone())), CallErrorKind::Permanent);
    let url = format!("https://controller/v1/blobs/{}", id(7));
    for (work, expected) in [
        (
            provision(oci),
            json!({
                "kind": "provision", "device": { "serial": "d", "size_bytes": 2 << 20 },
                "image": {
                    "source": { "oci-layout": { "url": "https://images/" } }, "reference": "12", "digest": "sha256:ab",
                },
                "customize": { "hostname": "web-1" }, "boot": { "consoles": ["tty0", "ttyS0"] },
            }),
        ),
        (
            UvmWork::Clone { source: text("s"), target: text("t") },
            json!({ "kind": "clone", "device": { "serial": "t" }, "source": { "serial": "s" } }),
        ),
        (
            UvmWork::Capture { serial: text("d"), image: id(7) },
            json!({
                "kind": "capture", "device": { "serial": "d" },
                "destination": { "url": url, "authorization": "" },
            }),
        ),
        (
            restore(disk),
            json!({
                "kind": "restore", "device": { "serial": "d" },
                "source": {
                    "url": url, "authorization": "", "digest": "sha256:cd", "size_bytes": 5, "device_bytes": 6,
                },
            }),
        ),
        (
            UvmWork::Sanitize { serial: text("d"), size_mib: 3 },
            json!({
                "kind": "sanitize", "device": { "serial": "d", "size_bytes": 3 << 20 },
                "technique": "overwrite", "pattern": "random",
            }),
        ),
        (
            UvmWork::SetHostname { serial: text("d"), hostname: text("db-1") },
            json!({ "kind": "customize", "device": { "serial": "d" }, "customize": { "hostname": "db-1" } }),
        ),
    ] {
        let mut expected = expected;
        expected["id"] = json!("j1");
        assert_eq!(submitted(work).unwrap(), expected);
    }
}

fn kind_of(work: UvmWork) -> CallErrorKind {
    submitted(work).expect_err("it cannot be done").kind
}
