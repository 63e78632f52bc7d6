//! What a look at a node means: what machines really do, whether the node is there, what should not be there.

use std::collections::BTreeSet;

use super::plan::crash_restart;
use super::prepare::observed;
use super::state::name;
use super::work::Action;
use super::{Batch, Call, CallAnswer, CallError, CallErrorKind, Core, Effect, EffectToken, Now, Observation};
use crate::hypervisor::{DomainState, Role};
use crate::model::{Disk, DiskRole, DiskState, Id, Instance, IoLimits, Node, NodeState, PowerState};

/// Looks in a row without an answer after which a node counts as unreachable.
const MISSED: u32 = 3;
/// Looks in a row without an answer of a running utility VM after which it is started anew.
const UVM_MISSED: u32 = 6;
/// Unasked ends in a row after which an instance is not started again.
const MAX_RESTARTS: u32 = 5;
/// How long an instance has to run for its earlier crashes to be forgotten.
const STABLE_MS: u64 = 600_000;

/// What is known of looking at a node.
#[derive(Debug, Default)]
pub(super) struct Watch {
    pub(super) next: Now,
    pub(super) pending: Option<Now>,
    missed: u32,
    /// What was there at the last look and belongs to nobody.
    strange: BTreeSet<Id>,
}

impl Core {
    /// Nodes whose turn it is are looked at.
    pub(super) fn look_around(&mut self, now: Now, batch: &mut Batch) {
        let interval = self.options.poll_interval_ms;
        let nodes: Vec<Id> = self.state.nodes.keys().copied().collect();
        self.watches.retain(|id, _| self.state.nodes.contains_key(id));
        for node in nodes {
            let seed = node.0.as_u64_pair().1;
            let watch = self.watches.entry(node).or_insert_with(|| Watch {
                // Not all at the same moment.
                next: if now == 0 { 0 } else { now + seed % interval.clamp(1, 1000) },
                ..Watch::default()
            });
            if watch.pending.is_none() && watch.next <= now {
                watch.pending = Some(now);
                watch.next = now + interval;
                batch.effects.push(Effect { token: EffectToken::Poll { node }, node, call: Call::Observe });
            }
        }
    }

    /// A look at a node came to its end.
    pub(super) fn observe(
        &mut self,
        now: Now,
        node: Id,
        result: Result<CallAnswer, CallError>,
        batch: &mut Batch,
    ) {
        let Some(watch) = self.watches.get_mut(&node) else { return };
        let Some(began) = watch.pending.take() else { return };
        match result {
            Ok(CallAnswer::Observed(seen)) => {
                watch.missed = 0;
                self.node_seen(now, node, &seen, batch);
                self.instances_seen(now, node, began, &seen, batch);
                self.strangers(now, node, &seen, batch);
            }
            Ok(_) => {}
            Err(error) => {
                watch.missed += 1;
                if watch.missed >= MISSED || error.kind != CallErrorKind::Unreachable {
                    self.node_lost(now, node, &error.message, batch);
                }
            }
        }
    }

    fn node_seen(&mut self, now: Now, id: Id, seen: &Observation, batch: &mut Batch) {
        self.state.capabilities.insert(id, seen.capabilities.clone());
        let Some(old) = self.state.nodes.get(&id) else { return };
        let mut node = Node { seen_at: now, ..old.clone() };
        if node.capacity_found && node.capacity != seen.capacity {
            let found = Node { capacity: seen.capacity.clone(), ..node.clone() };
            // What is past belief is not taken over; what was known stays.
            if self.state.grid.check_node(&found).is_ok() {
                node = found;
            }
        }
        let status = &mut node.utility_vm;
        match &seen.utility {
            Some(said) => {
                status.in_service = true;
                status.missed = 0;
                status.version.clone_from(&said.version);
                status.booted_at.clone_from(&said.boot_time);
                status.peak_rss_bytes = said.peak_rss_bytes;
            }
            None => {
                status.in_service = false;
                status.missed = status.missed.saturating_add(1);
            }
        }
        let domain =
            seen.report.domains.iter().find(|domain| domain.id == id && domain.role == Role::Utility);
        status.starts = domain.map_or(status.starts, |domain| domain.starts);
        node.state = if node.utility_vm.in_service { NodeState::Ready } else { NodeState::Degraded };
        let notable = node.state != old.state
            || node.capacity != old.capacity
            || node.utility_vm.version != old.utility_vm.version
            || node.utility_vm.booted_at != old.utility_vm.booted_at;
        let (before, words) = (old.state, format!("node {} is {:?}", node.name, node.state).to_lowercase());
        let runs = domain.is_some_and(|domain| domain.state == DomainState::Running);
        let (away, missed, held) =
            (!node.utility_vm.in_service, node.utility_vm.missed, node.active_job.is_some());
        let state = node.state;
        if notable {
            self.state.put(node, batch);
        } else {
            self.state.nodes.insert(id, node);
        }
        if state != before {
            self.state.event(now, "node.state", name("nodes", id), (None, None), words, batch);
        }
        // A utility VM that runs and does not answer gets some time: it may be booting, or busy.
        if away && !held && (!runs || missed >= UVM_MISSED) {
            self.start_utility_vm(now, id, runs, batch);
        }
    }

    fn start_utility_vm(&mut self, now: Now, node: Id, anew: bool, batch: &mut Batch) {
        let action = if anew { Action::RestartUtilityVm { node } } else { Action::EnsureUtilityVm { node } };
        let draft = self.node_job(now, node, action, crate::model::JobKind::StartUtilityVm);
        self.adopt(now, draft, batch);
    }

    fn node_lost(&mut self, now: Now, id: Id, why: &str, batch: &mut Batch) {
        let Some(old) = self.state.nodes.get(&id) else { return };
        if old.state == NodeState::Unreachable {
            return;
        }
        let mut node = Node { state: NodeState::Unreachable, ..old.clone() };
        node.utility_vm.in_service = false;
        let words = format!("node {} does not answer: {why}", node.name);
        self.state.put(node, batch);
        self.state.event(now, "node.state", name("nodes", id), (None, None), words, batch);
        let unknown: Vec<Instance> = self.state.instances_on(id).cloned().collect();
        for instance in unknown {
            self.state
                .put(Instance { observed_state: PowerState::Unknown, observed_at: now, ..instance }, batch);
        }
    }

    fn instances_seen(&mut self, now: Now, node: Id, began: Now, seen: &Observation, batch: &mut Batch) {
        let here: Vec<Instance> = self.state.instances_on(node).cloned().collect();
        let mut domains: Vec<_> = seen.report.domains.iter().map(|domain| (domain.id, domain)).collect();
        domains.sort_unstable_by_key(|(id, _)| *id);
        for instance in here {
            // A job knows better, and what was seen before its end is of before.
            let held = instance.active_job.is_some() || !instance.provisioned;
            let stale =
                instance.observed_at >= began.max(1) && instance.observed_state != PowerState::Unknown;
            if held || stale {
                continue;
            }
            let found =
                domains.binary_search_by_key(&instance.id, |(id, _)| *id).ok().map(|at| domains[at].1);
            let state = match observed(found) {
                // It was to be off, and is.
                PowerState::Crashed if instance.desired_state == PowerState::Stopped => PowerState::Stopped,
                state => state,
            };
            self.instance_seen(now, instance, state, batch);
        }
    }

    fn instance_seen(&mut self, now: Now, instance: Instance, state: PowerState, batch: &mut Batch) {
        let id = instance.id;
        if state == PowerState::Running {
            let since = *self.running_since.entry(id).or_insert(now);
            if instance.restarts > 0 && now.saturating_sub(since) > STABLE_MS {
                self.state.put(Instance { restarts: 0, ..instance.clone() }, batch);
                return;
            }
        } else {
            self.running_since.remove(&id);
        }
        let ended = matches!(state, PowerState::Crashed | PowerState::Absent);
        let wanted = matches!(instance.desired_state, PowerState::Running | PowerState::Paused);
        if ended && wanted && instance.restarts < MAX_RESTARTS {
            let instance = Instance { observed_state: state, observed_at: now, ..instance };
            let job = self.ids.id(now);
            let draft = crash_restart(&instance, job, now);
            return self.adopt(now, draft, batch);
        }
        if state == instance.observed_state {
            if let Some(known) = self.state.instances.get_mut(&id) {
                known.observed_at = now;
            }
            return;
        }
        let mut new = Instance { observed_state: state, observed_at: now, ..instance.clone() };
        // Whoever powered it off or on beside the API meant it: a guest from within, an operator at the hypervisor.
        if matches!(state, PowerState::Running | PowerState::Stopped | PowerState::Paused) {
            new.desired_state = state;
        }
        let words = format!("instance {} is {state:?}", new.name).to_lowercase();
        let (subject, whose) = (name("instances", id), (Some(new.project.clone()), None));
        self.state.put(new, batch);
        self.state.event(now, "instance.state", subject, whose, words, batch);
    }

    /// Domains and volumes that no record knows. What was deleted and turned up late is removed; a volume that was never
    /// ours to delete may be somebody's data: it is put in quarantine, and an operator decides.
    fn strangers(&mut self, now: Now, node: Id, seen: &Observation, batch: &mut Batch) {
        let known = |id: Id| id == node || self.state.instances.contains_key(&id);
        let domains = seen.report.domains.iter().map(|domain| domain.id).filter(|id| !known(*id));
        let domains: Vec<Id> = domains.collect();
        let volumes: Vec<_> =
            seen.report.volumes.iter().filter(|volume| !self.state.disks.contains_key(&volume.id)).collect();
        let strange: BTreeSet<Id> =
            domains.iter().copied().chain(volumes.iter().map(|volume| volume.id)).collect();
        let Some(watch) = self.watches.get_mut(&node) else { return };
        let before = std::mem::replace(&mut watch.strange, strange);
        let held = self.state.nodes.get(&node).is_none_or(|node| node.active_job.is_some());
        let again = |id: &Id| before.contains(id);
        if let Some(domain) = domains.iter().find(|id| again(id))
            && !held
        {
            if self.buried.contains(domain) {
                let action = Action::RemoveDomain { node, domain: *domain };
                let draft = self.node_job(now, node, action, crate::model::JobKind::Reclaim);
                return self.adopt(now, draft, batch);
            }
            let words = format!("domain {domain} belongs to no instance; it is left alone");
            if !self.reported.contains(domain) {
                self.reported.insert(*domain);
                self.state.event(now, "node.unknown-domain", name("nodes", node), (None, None), words, batch);
            }
        }
        let found: Vec<(Id, u64)> = volumes
            .iter()
            .filter(|volume| again(&volume.id))
            .map(|volume| (volume.id, volume.size_mib))
            .collect();
        for (id, size_mib) in found {
            self.volume_found(now, node, id, size_mib, batch);
        }
    }

    fn volume_found(&mut self, now: Now, node: Id, id: Id, size_mib: u64, batch: &mut Batch) {
        let ours = self.buried.contains(&id);
        let disk = Disk {
            id,
            project: "unknown".to_owned(),
            name: format!("found-{id}"),
            node,
            size_mib,
            reserved_mib: size_mib,
            serial: id.serial(),
            role: DiskRole::Data,
            state: if ours { DiskState::Ready } else { DiskState::Quarantined },
            instance: None,
            io_limits: IoLimits::default(),
            active_job: None,
            generation: 1,
            created_at: now,
        };
        let words = format!("volume {id} of {size_mib} MiB belongs to no disk");
        self.state.put(disk, batch);
        self.state.event(now, "node.unknown-volume", name("disks", id), (None, None), words, batch);
        if ours && let Ok(draft) = self.draft_for_operator(now, super::Command::DeleteDisk(id)) {
            self.adopt(now, draft, batch);
        }
    }
}
