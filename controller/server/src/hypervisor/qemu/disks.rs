//! Disks of a running QEMU. A disk is a chain: the file, a filter that limits its I/O, the device. The names of all
//! parts come from the volume's id, so that what a killed controller left half done is found again.

use std::path::Path;

use serde_json::{Value, json};

use super::qmp::{Qmp, QmpError, QmpResult};
use super::record::Plugged;
use crate::hypervisor::{Attachment, Error, ErrorKind, Result};
use crate::model::{Id, IoLimits};

/// PCIe ports of a guest: its disks at most.
pub(super) const PORTS: u8 = 16;
fn device_id(volume: Id) -> String {
    format!("volume-{volume}")
}

/// Names of nodes have 31 characters at most.
fn file_node(volume: Id) -> String {
    format!("file-{}", volume.serial())
}

fn disk_node(volume: Id) -> String {
    format!("disk-{}", volume.serial())
}

fn limits_id(volume: Id) -> String {
    format!("limits-{}", volume.serial())
}

fn limits(limits: IoLimits) -> Value {
    json!({ "bps-total": limits.bytes_per_second, "iops-total": limits.operations_per_second })
}

/// The limits of a disk's I/O: a group of its own, so that they can be changed.
pub(super) fn limits_object(attachment: &Attachment) -> Value {
    json!({
        "qom-type": "throttle-group", "id": limits_id(attachment.volume),
        "limits": limits(attachment.io_limits),
    })
}

/// The nodes below the device, in the order in which they are made.
pub(super) fn nodes(attachment: &Attachment, file: &Path) -> Result<[Value; 2]> {
    let (volume, read_only) = (attachment.volume, attachment.read_only);
    let Some(file) = file.to_str() else {
        return Err(Error::new(ErrorKind::WrongState, format!("{} is no UTF-8", file.display())));
    };
    let mut bottom = json!({
        "driver": "file", "node-name": file_node(volume), "filename": file,
        "read-only": read_only, "discard": "unmap",
    });
    if read_only {
        // A domain that writes has the file locked; one that reads only takes it as it is.
        bottom["force-share"] = json!(true);
    }
    let top = json!({
        "driver": "throttle", "node-name": disk_node(volume), "throttle-group": limits_id(volume),
        "file": file_node(volume), "read-only": read_only, "discard": "unmap",
    });
    Ok([bottom, top])
}

pub(super) fn device(disk: &Plugged) -> Value {
    let volume = disk.attachment.volume;
    let (driver, bus) = match disk.port {
        Some(port) => ("virtio-blk-pci", format!("port{port}")),
        None => ("scsi-hd", "scsi.0".to_owned()),
    };
    json!({
        "driver": driver, "id": device_id(volume), "drive": disk_node(volume), "bus": bus,
        "serial": disk.attachment.serial, "logical_block_size": 512, "physical_block_size": 4096,
        "share-rw": disk.attachment.read_only,
    })
}

/// The volume in a name of QEMU's that has a device's id in it.
fn volume_in(name: &str) -> Option<Id> {
    let (_, rest) = name.split_once("volume-")?;
    rest.get(..36)?.parse().ok()
}

/// Volumes that have a device, and whether read-only.
pub(super) fn plugged(qmp: &mut Qmp) -> QmpResult<Vec<(Id, bool)>> {
    let devices = qmp.execute("query-block", json!({}))?;
    let of_device = |device: &Value| {
        let volume = volume_in(device["qdev"].as_str()?)?;
        Some((volume, device["inserted"]["ro"].as_bool()?))
    };
    Ok(devices.as_array().into_iter().flatten().filter_map(of_device).collect())
}

/// Counters of a device: bytes and operations read and written.
pub(super) fn counters(qmp: &mut Qmp) -> QmpResult<Vec<(Id, [u64; 4])>> {
    let devices = qmp.execute("query-blockstats", json!({}))?;
    let of_device = |device: &Value| {
        let volume = volume_in(device["qdev"].as_str()?)?;
        let count = |name: &str| device["stats"][name].as_u64().unwrap_or_default();
        Some((volume, ["rd_bytes", "wr_bytes", "rd_operations", "wr_operations"].map(count)))
    };
    Ok(devices.as_array().into_iter().flatten().filter_map(of_device).collect())
}

/// Plugs a disk; what was left of an earlier try is cleared first.
pub(super) fn plug(qmp: &mut Qmp, disk: &Plugged, parts: [Value; 2]) -> QmpResult<()> {
    let volume = disk.attachment.volume;
    if plugged(qmp)?.iter().any(|(found, _)| *found == volume) {
        return Ok(());
    }
    clear(qmp, volume)?;
    let make = |qmp: &mut Qmp| {
        qmp.execute("object-add", limits_object(&disk.attachment))?;
        for part in parts {
            qmp.execute("blockdev-add", part)?;
        }
        qmp.execute("device_add", device(disk)).map(drop)
    };
    let made = make(qmp);
    if let Err(QmpError::Refused(_)) = made {
        clear(qmp, volume)?;
    }
    made
}

/// Asks the guest to let go of a disk.
pub(super) fn ask_to_go(qmp: &mut Qmp, volume: Id) -> QmpResult<()> {
    match qmp.execute("device_del", json!({ "id": device_id(volume) })) {
        // It went meanwhile, or it is on its way.
        Ok(_) | Err(QmpError::Refused(_)) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Whether there is no device any more.
pub(super) fn is_gone(qmp: &mut Qmp, volume: Id) -> QmpResult<bool> {
    let there = qmp.execute("qom-list", json!({ "path": "/machine/peripheral" }))?;
    let id = device_id(volume);
    Ok(!there.as_array().into_iter().flatten().any(|device| device["name"] == id.as_str()))
}

/// Takes away what is below a device that is gone; whether QEMU let it.
pub(super) fn close(qmp: &mut Qmp, volume: Id) -> QmpResult<bool> {
    match clear(qmp, volume) {
        Ok(()) => Ok(true),
        Err(QmpError::Refused(_)) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Takes away what is below a device that is not there (any more).
fn clear(qmp: &mut Qmp, volume: Id) -> QmpResult<()> {
    let nodes = qmp.execute("query-named-block-nodes", json!({ "flat": true }))?;
    let there = |name: &str| nodes.as_array().into_iter().flatten().any(|node| node["node-name"] == name);
    for name in [disk_node(volume), file_node(volume)] {
        if there(&name) {
            qmp.execute("blockdev-del", json!({ "node-name": name }))?;
        }
    }
    let objects = qmp.execute("qom-list", json!({ "path": "/objects" }))?;
    let id = limits_id(volume);
    if objects.as_array().into_iter().flatten().any(|object| object["name"] == id.as_str()) {
        qmp.execute("object-del", json!({ "id": id }))?;
    }
    Ok(())
}

/// Changes the limits of a plugged disk.
pub(super) fn set_limits(qmp: &mut Qmp, volume: Id, wanted: IoLimits) -> QmpResult<()> {
    let path = format!("/objects/{}", limits_id(volume));
    let change = json!({ "path": path, "property": "limits", "value": limits(wanted) });
    qmp.execute("qom-set", change).map(drop)
}

/// Tells the guest of a disk's new size.
pub(super) fn resize(qmp: &mut Qmp, volume: Id, bytes: u64) -> QmpResult<()> {
    qmp.execute("block_resize", json!({ "node-name": disk_node(volume), "size": bytes })).map(drop)
}
