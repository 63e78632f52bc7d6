//! `uvm inspect`: what is on a device or file.

use std::path::Path;

use super::output::{complain, plain, print_json};
use super::{DONE, REFUSED, engine};

pub(super) fn inspect(path: &Path, json: bool, logical_block_size: u32) -> u8 {
    let engine = engine(vec![("device".to_owned(), path.to_owned())], logical_block_size, None);
    match engine.devices() {
        Ok(mut devices) => match devices.pop() {
            Some(device) if json => print_json(&device),
            Some(device) => {
                print_device(&device);
                DONE
            }
            None => REFUSED,
        },
        Err(problem) => complain(&problem, json, REFUSED),
    }
}

fn print_device(device: &uvm_api::Device) {
    say!("{}  {} MiB, blocks of {}", plain(&device.node), device.size_bytes >> 20, device.logical_block_size);
    if let Some(system) = &device.os_release {
        say!("  system      {system}");
    }
    let describe = |found: &uvm_api::FileSystem| {
        let used = found.used_bytes.map_or(String::new(), |used| format!(", {} MiB used", used >> 20));
        let label = found.label.as_deref().map_or(String::new(), |label| format!(" {label:?}"));
        format!("{}{label} {}{used}", found.format, found.uuid.as_deref().unwrap_or(""))
    };
    if let Some(found) = &device.filesystem {
        say!("  filesystem  {}", describe(found));
    }
    if let Some(table) = &device.table {
        say!("  table       {} {}", table.kind, table.disk_guid.as_deref().unwrap_or(""));
        for partition in &table.partitions {
            say!(
                "  {:>3}  {:>8} MiB  {:<16} {}",
                partition.number,
                partition.size_bytes >> 20,
                partition.label.as_deref().unwrap_or(""),
                partition.filesystem.as_ref().map_or_else(|| partition.type_guid.clone(), describe),
            );
        }
    }
    for note in &device.notes {
        say!("  note        {note}");
    }
}
