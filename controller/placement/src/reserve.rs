//! Taking and giving back.

use crate::near::Near;
use crate::numa::Shape;
use crate::place;
use crate::snapshot::{Record, TenantUse};
use crate::{
    Allocation, Amounts, Demand, Error, ErrorKind, Filter, Level, MAX_MEMORY_MIB, MAX_NUMA, MAX_STORAGE_MIB,
    MAX_VCPUS, Placement, Result, Rule, Share, Snapshot, Symbol,
};

impl Snapshot {
    /// Takes what a placement says. All filters are asked once more: a placement decided on an older
    /// state of the grid is refused rather than allocated twice.
    ///
    /// # Errors
    /// `Full` where it does not fit (any more), `NotFound` where the node is gone, `Invalid` where the
    /// placement is not one of this demand.
    pub fn reserve(&mut self, demand: &Demand, placement: &Placement) -> Result<Allocation> {
        let slot = self.slot(placement.node)?;
        let allocation = Allocation {
            node: placement.node,
            shares: placement.shares.clone(),
            storage_mib: demand.storage_mib,
            tenant: demand.tenant,
            exclusive: demand.exclusive,
            group: demand.group,
            license: demand.license,
        };
        check(&allocation)?;
        let amounts = allocation.amounts();
        if (amounts.vcpus, amounts.memory_mib) != (u64::from(demand.vcpus), demand.memory_mib)
            || allocation.shares.len() as u32 != demand.parts()
        {
            return Err(Error::new(ErrorKind::Invalid, "the placement is of another demand"));
        }
        let fallen = place::fallen(self, demand, &Near::new(self, demand), slot);
        let record = self.record(slot);
        if let Some(filter) = Filter::ALL.into_iter().find(|filter| fallen & place::bit(*filter) != 0) {
            let context = format!("node {} falls at {filter}", record.spec.name);
            return Err(Error::new(ErrorKind::Full, context));
        }
        for share in &allocation.shares {
            grows(record, Share { vcpus: 0, memory_mib: 0, ..*share }, *share)?;
        }
        self.take(slot, &allocation)?;
        Ok(allocation)
    }

    /// Puts back what was allocated before a restart, without asking whether it fits: it is there. A node
    /// that has become too small shows more used than it has.
    ///
    /// # Errors
    /// `NotFound`; `Invalid` and `TooLarge` for amounts that no allocation can have.
    pub fn restore(&mut self, allocation: &Allocation) -> Result<()> {
        let slot = self.slot(allocation.node)?;
        check(allocation)?;
        self.take(slot, allocation)
    }

    /// Gives back what was taken.
    ///
    /// # Errors
    /// `NotFound`; `Inconsistent`, and nothing is changed, where the node does not hold as much: it was
    /// given back before, or never taken.
    pub fn release(&mut self, allocation: &Allocation) -> Result<()> {
        let slot = self.slot(allocation.node)?;
        check(allocation)?;
        self.check_held(slot, allocation)?;
        self.give_back(slot, allocation);
        Ok(())
    }

    /// What an allocation would be with other amounts on the same NUMA nodes of the same node.
    ///
    /// # Errors
    /// `Full` where the node has no room to grow that much, `Inconsistent` where it is not held.
    pub fn resized(&self, allocation: &Allocation, to: Amounts) -> Result<Allocation> {
        let slot = self.slot(allocation.node)?;
        check(allocation)?;
        self.check_held(slot, allocation)?;
        let record = self.record(slot);
        let parts = allocation.shares.len().max(1) as u64;
        let mut resized = allocation.clone();
        for (part, share) in (0..).zip(&mut resized.shares) {
            let vcpus = to.vcpus / parts + u64::from(part < to.vcpus % parts);
            share.vcpus = u32::try_from(vcpus).unwrap_or(u32::MAX);
            share.memory_mib = to.memory_mib / parts + u64::from(part < to.memory_mib % parts);
        }
        resized.storage_mib = to.storage_mib;
        if resized.amounts() != to && !allocation.is_machine() {
            return Err(Error::new(ErrorKind::Invalid, "storage alone has no vCPUs and no memory"));
        }
        for (from, to) in allocation.shares.iter().zip(&resized.shares) {
            grows(record, *from, *to)?;
        }
        let more = to.storage_mib.saturating_sub(allocation.storage_mib);
        if more > record.free_storage_mib() {
            return Err(full(record, "pool", record.free_storage_mib(), "MiB", more));
        }
        check(&resized)?;
        Ok(resized)
    }

    /// Gives an allocation other amounts in place. The caller stores what is returned instead of the old.
    ///
    /// # Errors
    /// As [`Self::resized`]; nothing is changed then.
    pub fn resize(&mut self, allocation: &Allocation, to: Amounts) -> Result<Allocation> {
        let resized = self.resized(allocation, to)?;
        let slot = self.slot(allocation.node)?;
        self.give_back(slot, allocation);
        self.take(slot, &resized).map_err(|error| error.within("resizing in place"))?;
        Ok(resized)
    }

    fn take(&mut self, slot: u32, allocation: &Allocation) -> Result<()> {
        let record = self.record(slot);
        let past = allocation.shares.iter().any(|share| {
            let used = record.used[usize::from(share.numa)];
            // Restored allocations may be more than there is, but not more than can be counted.
            used.vcpus.checked_add(share.vcpus).is_none() || used.memory_mib > u64::from(u32::MAX) << 8
        });
        if past || record.used_storage_mib > MAX_STORAGE_MIB << 8 || record.instances == u32::MAX {
            let context = format!("node {} holds more than can be counted", record.spec.name);
            return Err(Error::new(ErrorKind::TooLarge, context));
        }
        self.alter(slot, |record| {
            for share in &allocation.shares {
                let used = &mut record.used[usize::from(share.numa)];
                used.vcpus += share.vcpus;
                used.memory_mib += share.memory_mib;
            }
            record.used_storage_mib += allocation.storage_mib;
            if allocation.is_machine() {
                record.instances += 1;
                enter_tenant(record, allocation);
            }
            if let Some(license) = allocation.license {
                enter_license(record, license);
            }
        });
        if let Some(group) = allocation.group {
            self.groups.enter(group, slot, shape(allocation));
            if group.rule == Rule::Affinity(Level::FaultDomain) {
                self.claim(group.name, self.keys[slot as usize].domain);
            }
        }
        Ok(())
    }

    fn check_held(&self, slot: u32, allocation: &Allocation) -> Result<()> {
        let record = self.record(slot);
        let shares = allocation.shares.iter().all(|share| {
            let used = record.used[usize::from(share.numa)];
            used.vcpus >= share.vcpus && used.memory_mib >= share.memory_mib
        });
        let is_tenant = |of: &TenantUse| {
            of.tenant == allocation.tenant && of.instances > 0 && (!allocation.exclusive || of.exclusive > 0)
        };
        let tenant = !allocation.is_machine() || record.tenants.iter().any(is_tenant);
        let license = allocation
            .license
            .is_none_or(|license| record.licenses.iter().any(|(name, used)| *name == license && *used > 0));
        let group = allocation.group.is_none_or(|group| self.groups.has(group, slot, shape(allocation)));
        let storage = record.used_storage_mib >= allocation.storage_mib;
        if shares && tenant && license && group && storage {
            return Ok(());
        }
        let context = format!("node {} does not hold what is given back", record.spec.name);
        Err(Error::new(ErrorKind::Inconsistent, context))
    }

    /// For an allocation that is held.
    fn give_back(&mut self, slot: u32, allocation: &Allocation) {
        self.alter(slot, |record| {
            for share in &allocation.shares {
                let used = &mut record.used[usize::from(share.numa)];
                used.vcpus -= share.vcpus;
                used.memory_mib -= share.memory_mib;
            }
            record.used_storage_mib -= allocation.storage_mib;
            if allocation.is_machine() {
                record.instances -= 1;
                leave_tenant(record, allocation);
            }
            if let Some(license) = allocation.license {
                leave_license(record, license);
            }
        });
        if let Some(group) = allocation.group {
            self.groups.leave(group, slot, shape(allocation));
            if group.rule == Rule::Affinity(Level::FaultDomain) {
                self.claim(group.name, self.keys[slot as usize].domain);
            }
        }
    }
}

/// Amounts that an allocation can have at all.
fn check(allocation: &Allocation) -> Result<()> {
    let refuse = |kind, what: &str| Err(Error::new(kind, format!("an allocation {what}")));
    if allocation.shares.len() > MAX_NUMA {
        return refuse(ErrorKind::Invalid, "of too many NUMA nodes");
    }
    if !allocation.is_machine()
        && (allocation.exclusive || allocation.group.is_some() || allocation.license.is_some())
    {
        return refuse(ErrorKind::Invalid, "of storage alone is of no group and needs no license");
    }
    let mut seen = 0u8;
    for share in &allocation.shares {
        if usize::from(share.numa) >= MAX_NUMA || seen & (1 << share.numa) != 0 {
            return refuse(ErrorKind::Invalid, "names a NUMA node twice, or one that cannot be");
        }
        seen |= 1 << share.numa;
        if share.vcpus > MAX_VCPUS || share.memory_mib > MAX_MEMORY_MIB {
            return refuse(ErrorKind::TooLarge, "of more than any NUMA node has");
        }
    }
    if allocation.storage_mib > MAX_STORAGE_MIB {
        return refuse(ErrorKind::TooLarge, "of more than any pool has");
    }
    Ok(())
}

/// Whether a share can become another one with what its NUMA node has free.
fn grows(record: &Record, from: Share, to: Share) -> Result<()> {
    let free = record.free(usize::from(to.numa));
    let place = format!("NUMA node {}", to.numa);
    let vcpus = to.vcpus.saturating_sub(from.vcpus);
    if vcpus > free.vcpus {
        return Err(full(record, &place, u64::from(free.vcpus), "vCPUs", u64::from(vcpus)));
    }
    let memory = to.memory_mib.saturating_sub(from.memory_mib);
    if memory > free.memory_mib {
        return Err(full(record, &place, free.memory_mib, "MiB of memory", memory));
    }
    Ok(())
}

fn full(record: &Record, place: &str, free: u64, what: &str, asked: u64) -> Error {
    let name = &record.spec.name;
    Error::new(
        ErrorKind::Full,
        format!("{place} of {name} has {free} {what} free, {asked} more are asked for"),
    )
}

fn shape(allocation: &Allocation) -> Shape {
    let shares = &allocation.shares;
    Shape {
        parts: shares.len() as u32,
        vcpus: shares.iter().map(|share| share.vcpus).max().unwrap_or(0),
        memory_mib: shares.iter().map(|share| share.memory_mib).max().unwrap_or(0),
    }
}

fn enter_tenant(record: &mut Record, allocation: &Allocation) {
    let exclusive = u32::from(allocation.exclusive);
    match record.tenants.iter_mut().find(|of| of.tenant == allocation.tenant) {
        Some(of) => {
            of.instances += 1;
            of.exclusive += exclusive;
        }
        None => record.tenants.push(TenantUse { tenant: allocation.tenant, instances: 1, exclusive }),
    }
}

fn leave_tenant(record: &mut Record, allocation: &Allocation) {
    for of in record.tenants.iter_mut().filter(|of| of.tenant == allocation.tenant) {
        of.instances -= 1;
        of.exclusive -= u32::from(allocation.exclusive);
    }
    record.tenants.retain(|of| of.instances > 0);
}

fn enter_license(record: &mut Record, license: Symbol) {
    match record.licenses.iter_mut().find(|(name, _)| *name == license) {
        Some((_, used)) => *used += 1,
        None => record.licenses.push((license, 1)),
    }
}

fn leave_license(record: &mut Record, license: Symbol) {
    for (_, used) in record.licenses.iter_mut().filter(|(name, _)| *name == license) {
        *used -= 1;
    }
    record.licenses.retain(|(_, used)| *used > 0);
}
