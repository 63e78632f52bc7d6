//! The partition tables of a job's disk. What is to be written is not in the table while it is written:
//!
//! ```text
//! whole disk:  what was there ── clear ──▶ no table ── contents, verified ── commit ──▶ the new table
//! in place:    what was there ── clear ──▶ only what stays ── contents, verified ── commit ──▶ the new table
//! ```
//!
//! In place each arrow is one update, of which the old table or the new one is valid at every instant.

use std::sync::Arc;

use uvm_api::ErrorCode;
use uvm_disk::{Device, gpt, mbr};

use super::JobError;
use super::draft::Draft;
use super::layout::{Layout, Table};

/// Makes all the edits in memory, over what is on the device: what would be refused half-way, when contents are written
/// already, is refused at once.
pub(super) fn rehearse(target: &Device, layout: &Layout) -> Result<(), JobError> {
    if layout.edit.is_none() {
        return Ok(());
    }
    let draft: Device = Arc::new(Draft::new(Arc::clone(target)));
    let rehearsed = take_out(&draft, layout).and_then(|()| put_in(&draft, layout));
    rehearsed.map_err(|error| match error.code {
        ErrorCode::InvalidRequest => {
            let detail = format!("{}; say wipe_table: true to replace the whole disk", error.detail);
            JobError { code: ErrorCode::DeviceChanged, detail, ..error }
        }
        _ => error,
    })
}

/// Takes away what is rewritten.
pub(super) fn clear(target: &Device, layout: &Layout) -> Result<(), JobError> {
    if layout.edit.is_none() {
        return Ok(gpt::wipe_tables(&**target)?);
    }
    rehearse(target, layout)?;
    take_out(target, layout)
}

fn take_out(target: &Device, layout: &Layout) -> Result<(), JobError> {
    let Some(edit) = &layout.edit else { return Ok(()) };
    let changed = || {
        let detail = "the partition table is not the one that was planned for any more";
        JobError::new(ErrorCode::DeviceChanged, detail)
    };
    match (&edit.before, &edit.between) {
        (Table::Gpt(before), Table::Gpt(between)) => {
            let found = gpt::read(&**target)?;
            let mut fitted = found.table.clone();
            fitted.fit(&target.geometry())?;
            if fitted != *before {
                return Err(changed());
            }
            if fitted != found.table {
                gpt::grow(&**target)?;
            }
            if before != between {
                gpt::update(&**target, between)?;
            }
        }
        (Table::Mbr(before), Table::Mbr(between)) => {
            if mbr::read(&**target)?.as_ref() != Some(before) {
                return Err(changed());
            }
            if before != between {
                mbr::update(&**target, between)?;
            }
        }
        _ => return Err(JobError::new(ErrorCode::Internal, "an edit from one kind of table to another")),
    }
    Ok(())
}

/// Writes the table; where that fails, what is written is not reachable.
pub(super) fn commit(target: &Device, layout: &Layout) -> Result<(), JobError> {
    let Some(edit) = &layout.edit else {
        let written = match &layout.table {
            Table::Gpt(table) => gpt::write(&**target, table),
            Table::Mbr(table) => mbr::write(&**target, table),
        };
        return written.map_err(|error| {
            let mut error = JobError::from_source(&error);
            // Half a table may be enough for a firmware: take it away again.
            if let Err(also) = gpt::wipe_tables(&**target) {
                error.causes.push(format!("and the table could not be removed again: {also}"));
            }
            error
        });
    };
    put_in(target, layout).map_err(|mut error| {
        if let Err(also) = update(target, &edit.between) {
            error.causes.push(format!("and the table could not be taken back: {also}"));
        }
        error
    })
}

fn put_in(target: &Device, layout: &Layout) -> Result<(), JobError> {
    match &layout.edit {
        Some(edit) if edit.between != layout.table => Ok(update(target, &layout.table)?),
        _ => Ok(()),
    }
}

fn update(target: &Device, table: &Table) -> uvm_disk::Result<()> {
    match table {
        Table::Gpt(table) => gpt::update(&**target, table),
        Table::Mbr(table) => mbr::update(&**target, table),
    }
}

#[cfg(test)]
#[path = "table_tests.rs"]
mod tests;
