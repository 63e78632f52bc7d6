//! The fake node's volumes.

use super::contents::{Contents, Violation};
use super::state::{FakeVolume, MIB, State, refuse};
use crate::hypervisor::{ErrorKind, Result, Volume};
use crate::model::Id;

impl State {
    pub(super) fn create_volume(&mut self, id: Id, size_mib: u64) -> Result<Volume> {
        if let Some(volume) = self.volumes.get(&id) {
            if volume.size_mib == size_mib {
                return Ok(volume.describe(id));
            }
            let message = format!("volume {id} is there with {} MiB", volume.size_mib);
            return refuse(ErrorKind::WrongState, message);
        }
        if size_mib == 0 {
            return refuse(ErrorKind::WrongState, format!("volume {id} of no size"));
        }
        self.take_from_pool(size_mib)?;
        let volume = FakeVolume { size_mib, contents: Contents::Zero, users: Vec::new() };
        let described = volume.describe(id);
        self.volumes.insert(id, volume);
        Ok(described)
    }

    fn take_from_pool(&mut self, size_mib: u64) -> Result<()> {
        let used = self.pool_used_mib.checked_add(size_mib);
        match used.filter(|used| *used <= self.capacity.storage_mib) {
            Some(used) => {
                self.pool_used_mib = used;
                Ok(())
            }
            None => refuse(
                ErrorKind::NoResources,
                format!(
                    "{size_mib} MiB more do not fit the pool: {} of {} MiB are used",
                    self.pool_used_mib, self.capacity.storage_mib
                ),
            ),
        }
    }

    pub(super) fn grow_volume(&mut self, id: Id, size_mib: u64) -> Result<Volume> {
        let volume = self.get_volume(id)?;
        if size_mib == volume.size_mib {
            return Ok(volume.describe(id));
        }
        if size_mib < volume.size_mib {
            let message = format!("volume {id} has {} MiB and does not shrink", volume.size_mib);
            return refuse(ErrorKind::WrongState, message);
        }
        let active = volume.users.iter().any(|(user, _)| self.is_active(*user));
        self.changes(self.capabilities.volume_grow, active, "volumes grow")?;
        self.take_from_pool(size_mib - self.get_volume(id)?.size_mib)?;
        let volume = self.volumes.get_mut(&id).expect("it was there");
        volume.size_mib = size_mib;
        Ok(volume.describe(id))
    }

    pub(super) fn delete_volume(&mut self, id: Id) -> Result<()> {
        let Some(volume) = self.volumes.get(&id) else { return Ok(()) };
        if let Some((user, _)) = volume.users.first() {
            return refuse(ErrorKind::WrongState, format!("volume {id} is attached to domain {user}"));
        }
        let volume = self.volumes.remove(&id).expect("it was there");
        self.pool_used_mib -= volume.size_mib;
        if !volume.contents.is_clean() {
            self.violate(Violation::DeletedUnsanitized { volume: id, contents: volume.contents });
        }
        Ok(())
    }
}

impl FakeVolume {
    pub(super) fn describe(&self, id: Id) -> Volume {
        let allocated_bytes = if self.contents == Contents::Zero { 0 } else { self.size_mib * MIB };
        Volume { id, size_mib: self.size_mib, allocated_bytes }
    }

    /// Domains that may write to it.
    pub(super) fn writers(&self) -> impl Iterator<Item = Id> {
        self.users.iter().filter(|(_, read_only)| !read_only).map(|(user, _)| *user)
    }
}
