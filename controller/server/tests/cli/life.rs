//! What goes well, and what is refused.

use serde_json::Value;
use uvm_controller::hypervisor::{Error, ErrorKind};

use crate::support::{Site, run, until};

#[test]
fn an_instance_lives_and_dies_by_its_name() {
    let site = Site::new();
    let made = site.instance("web");
    assert!(made.out.lines().any(|line| line.contains("] ") && line.contains(" done ")), "{}", made.out);
    assert!(
        made.out.trim_end().lines().last().unwrap().starts_with("create-instance succeeded in "),
        "{}",
        made.out
    );
    let list = site.run("instance list --project shop").good();
    assert_eq!(list.row("web")[..8], ["web", "shop", "n1", "running", "running", "1", "512MiB", "1"]);
    assert_eq!(list.out.lines().count(), 2);
    assert_eq!(site.run("instance list --project other").good().out.lines().count(), 1);

    let shown = site.run("instance show web --json").good().json();
    let disk = shown["disks"][0].as_str().unwrap().to_owned();
    let plan = site.run("plan change web --memory 1GiB").good();
    assert!(plan.out.contains("accepted"), "{}", plan.out);
    let change = format!("instance change web --memory 1GiB --vcpus 2 --disk {disk}:128MiB,500iops --watch");
    site.run(&change).good();
    let changed = site.run("instance show web --json").good().json();
    assert_eq!((&changed["memory_mib"], &changed["vcpus"]), (&Value::from(1_024), &Value::from(2)));
    assert!(changed["generation"].as_u64() > shown["generation"].as_u64());
    let stale = site.run(&format!("instance change web --vcpus 3 --if-match {}", shown["generation"]));
    assert_eq!(stale.status, 1);
    assert!(stale.err.contains("precondition failed") && stale.err.contains("do: "), "{}", stale.err);
    let grown = site.run(&format!("disk show {disk} --json")).good().json();
    assert_eq!(
        (&grown["size_mib"], &grown["io_limits"]["operations_per_second"]),
        (&Value::from(128), &Value::from(500))
    );

    site.run("disk create data --instance web --size 64MiB --watch").good();
    assert_eq!(site.run("disk list --instance web").good().row("data")[3..5], ["data", "ready"]);
    site.run("instance snapshot web before --watch").good();
    assert_eq!(site.run("snapshot list").good().row("before")[2..4], ["web", "n1"]);
    for verb in ["shutdown", "start", "suspend", "resume", "reboot", "destroy"] {
        site.run(&format!("instance {verb} web --watch")).good();
    }
    site.run("instance restore web before --watch").good();
    site.run("instance copy web web2 --watch").good();
    site.run("instance save-image web golden --watch").good();
    assert_eq!(site.run("image list").good().row("golden")[2], "disk");
    site.run("snapshot delete before --watch").good();
    site.run("disk delete data --watch").good();
    site.run("instance delete web --watch").good();
    site.run("instance delete web2 --watch --json").good();
    site.run("image delete golden --watch").good();
    assert_eq!(site.run("instance list").good().out.lines().count(), 1);
    assert_eq!(site.run("disk list").good().out.lines().count(), 1);
    assert_eq!(site.run("capacity").good().row("n1")[3], "0");
    assert!(site.fake().violations().is_empty(), "{:?}", site.fake().violations());
}

#[test]
fn what_was_sanitized_can_be_shown_and_verified() {
    let site = Site::new();
    site.instance("web");
    site.run("instance delete web --watch").good();
    let list = site.run("sanitization list --json").good();
    let file = site.folder.path().join("records.json");
    std::fs::write(&file, &list.out).unwrap();
    let path = file.to_str().unwrap();
    let verified = site.run(&format!("sanitization verify {path}")).good();
    assert!(verified.out.contains("complete: the signature holds"), "{}", verified.out);
    let id = list.json()["items"][0]["id"].as_str().unwrap().to_owned();
    assert!(site.run(&format!("sanitization show {id}")).good().out.contains("method:       clear"));

    // Without a controller, with the key; and a forged one.
    std::fs::write(&file, list.out.replace("\"n1\"", "\"n2\"")).unwrap();
    let forged = site.run(&format!("sanitization verify {path}"));
    assert_eq!(forged.status, 1, "{forged:?}");
    assert!(forged.out.contains("DOES NOT HOLD"), "{}", forged.out);
    let nowhere = tempfile::tempdir().unwrap();
    assert_eq!(run(nowhere.path(), &format!("sanitization verify {path} --public-key AAAA")).status, 1);
}

#[test]
fn nodes_are_registered_labelled_cordoned_and_removed() {
    let site = Site::new();
    let add =
        "node add n2 --hypervisor fake --address /n2 --numa 4:8GiB --numa 4:8GiB --storage 10GiB --watch";
    site.run(add).good();
    let row = |name: &str| site.run("node list").good().row(name).join(" ");
    until("n2 is ready", || row("n2").contains(" ready ").then_some(()));
    assert!(row("n2").contains(" 8 16GiB 10GiB "), "{}", row("n2"));
    site.run("node label n2 rack=r2 tier=gold").good();
    site.run("node label n2 tier- rack=r3").good();
    let shown = site.run("node show n2").good();
    assert!(
        shown.out.lines().any(|line| line.split_whitespace().eq(["labels:", "rack=r3"])),
        "{}",
        shown.out
    );
    site.run("node cordon n2").good();
    assert_eq!(site.run("capacity").good().row("n2")[2], "yes");
    let refused = site.run("plan create web --project shop --vcpus 1 --memory 64 --disk 64 --node n2");
    assert_eq!(refused.status, 1);
    assert!(
        refused.out.contains("refused") && refused.out.contains("the node uncordoned"),
        "{}",
        refused.out
    );
    site.run("node uncordon n2").good();
    site.run("plan create web --project shop --vcpus 1 --memory 64 --disk 64 --node n2").good();
    site.run("node remove n2").good();
    assert_eq!(site.run("node show n2").status, 1);
    assert!(site.run("node statistics n1 --since 5m").good().out.starts_with("SUBJECT"));

    let token = site.run("node enrol-token --ttl 5m --json").good().json();
    assert_eq!(token["token"]["role"], "enrolment");
    assert!(token["secret"].as_str().unwrap().starts_with("uvm_"));
}

#[test]
fn a_tenant_sees_its_own_with_its_own_token() {
    let site = Site::new();
    site.instance("web");
    let issued = site.run("token create portal --role tenant --project shop --json").good().json();
    let file = site.folder.path().join("tenant.token");
    std::fs::write(&file, issued["secret"].as_str().unwrap()).unwrap();
    let as_tenant = |line: &str| site.run(&format!("{line} --token-file {}", file.display()));
    let node = site.run("node show n1 --json").good().json()["id"].as_str().unwrap().to_owned();
    assert_eq!(as_tenant("instance list").good().row("web")[2], node, "nodes have no names for tenants");
    as_tenant("instance reboot web --watch").good();
    let refused = as_tenant("node list");
    assert_eq!(refused.status, 1);
    assert!(refused.err.starts_with("uvm-controller: forbidden: "), "{}", refused.err);
    let document = as_tenant("node list --json");
    assert_eq!(document.status, 1);
    site.run("token delete portal").good();
    let revoked = as_tenant("instance list");
    assert_eq!(revoked.status, 1);
    assert!(revoked.err.contains("unauthorized") && revoked.err.contains("--token-file"), "{}", revoked.err);
}

#[test]
fn names_that_are_not_clear_are_not_guessed() {
    let site = Site::new();
    site.instance("web");
    site.run("instance create web --project blog --vcpus 1 --memory 64 --disk 64 --watch").good();
    let unclear = site.run("instance show web");
    assert_eq!(unclear.status, 1);
    assert!(unclear.err.contains("2 instances") && unclear.err.contains("project blog"), "{}", unclear.err);
    let clear = site.run("instance show web --project blog --json").good().json();
    assert_eq!(clear["project"], "blog");
    let missing = site.run("instance show web --project shop2");
    assert_eq!(missing.status, 1);
    assert!(missing.err.contains("no instance \"web\" in project \"shop2\""), "{}", missing.err);
}

#[test]
fn a_job_that_fails_is_shown_with_its_step_and_its_cause() {
    let site = Site::new();
    let fired = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let fault = std::sync::Arc::clone(&fired);
    site.fake().set_faults(Some(Box::new(move |_, name| {
        (name == "create_volume").then(|| {
            fault.store(true, std::sync::atomic::Ordering::Relaxed);
            Error::new(ErrorKind::NoResources, "the pool is \x1b[31mfull")
        })
    })));
    let failed = site.run("instance create web --project shop --vcpus 1 --memory 64 --disk 64 --watch");
    assert!(fired.load(std::sync::atomic::Ordering::Relaxed));
    assert_eq!(failed.status, 1, "{failed:?}");
    assert!(failed.out.contains(" failed "), "{}", failed.out);
    for part in ["full", "\n  step: ", "\n  job: "] {
        assert!(failed.err.contains(part), "{part:?} in {}", failed.err);
    }
    assert!(!failed.out.contains('\x1b') && !failed.err.contains('\x1b'), "nobody commands the terminal");
    let jobs = site.run("job list --in failed --kind create-instance --json").good().json();
    let job = jobs["items"][0]["id"].as_str().unwrap().to_owned();
    assert!(site.run(&format!("job show {job}")).good().out.contains("\n  step: "));
    assert_eq!(site.run(&format!("job watch {job}")).status, 1);
    let document = site.run(&format!("job watch {job} --json"));
    assert_eq!((document.status, document.json()["state"].as_str()), (1, Some("failed")));
}

#[test]
fn without_watch_one_is_told_how_to_follow() {
    let site = Site::new();
    let said = site.run("instance create web --project shop --vcpus 1 --memory 64 --disk 64").good();
    let follow = said.out.lines().find_map(|line| line.strip_prefix("follow it: uvm-controller ")).unwrap();
    site.run(follow).good();
    let document = site.run("instance reboot web --json").good().json();
    let job = document["job"].as_str().unwrap();
    let job = site.run(&format!("job watch {job} --json")).good().json();
    assert_eq!(job["state"], "succeeded");
    let at_once = site.run("node cordon n1").good();
    assert!(at_once.out.trim_end().ends_with(" done"), "{}", at_once.out);
}
