//! Says whether decisions keep the rules. It knows nothing of how they were made, and shares no code with
//! placement: capacities and groups are added up from the trace and the decisions alone.
//!
//! What the strategies mean: the trace's own description calls them collocation, anti-collocation and
//! fault domain. A collocated group asks for up to 544 vCPUs where the largest host has 170, so its place
//! is the rack. Anti-collocated machines are on different hosts; the spread by racks is reported beside.
//! `domain` numbers parts of a fault-domain group (0 to 2, up to 72 machines each): different parts share
//! no rack.

use std::collections::{BTreeMap, BTreeSet};

use super::trace::{Amount, Decision, Host, Request, Strategy};

/// What was found.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    pub(crate) hosts_used: usize,
    pub(crate) rejected: usize,
    /// One for each NUMA node that has too much, each machine cut wrongly, and each group and place that
    /// break the group's rule.
    pub(crate) violations: usize,
    /// Racks with two members of one anti-collocated group: allowed, and better avoided.
    pub(crate) shared_racks: usize,
}

pub(crate) fn check(hosts: &[Host], requests: &[Request], decisions: &[Option<Decision>]) -> Findings {
    assert_eq!(requests.len(), decisions.len(), "a decision for each request");
    let placed: Vec<(&Request, &Decision)> = requests
        .iter()
        .zip(decisions)
        .filter_map(|(request, of)| of.as_ref().map(|of| (request, of)))
        .collect();
    let used: BTreeSet<usize> = placed.iter().map(|(_, of)| of.host).collect();
    let shared_racks = racks_of_groups(hosts, &placed, Strategy::AntiAffinity);
    Findings {
        hosts_used: used.len(),
        rejected: requests.len() - placed.len(),
        violations: wrong_cuts(&placed) + overfull(hosts, &placed) + broken_rules(hosts, &placed),
        shared_racks: shared_racks.values().filter(|machines| machines.len() > 1).count(),
    }
}

/// Machines that got something else than they asked for.
fn wrong_cuts(placed: &[(&Request, &Decision)]) -> usize {
    let is_right = |(request, of): &&(&Request, &Decision)| {
        let numa: BTreeSet<usize> = of.shares.iter().map(|(numa, _)| *numa).collect();
        let part =
            Amount { vcpus: request.amount.vcpus / request.numa, gib: request.amount.gib / request.numa };
        let even = request.amount.vcpus % request.numa == 0 && request.amount.gib % request.numa == 0;
        even && numa.len() == of.shares.len()
            && numa.len() as u64 == request.numa
            && of.shares.iter().all(|(_, share)| *share == part)
    };
    placed.iter().filter(|machine| !is_right(machine)).count()
}

fn overfull(hosts: &[Host], placed: &[(&Request, &Decision)]) -> usize {
    let mut taken: BTreeMap<(usize, usize), (u64, u64)> = BTreeMap::new();
    for (_, of) in placed {
        for (numa, share) in &of.shares {
            let sum = taken.entry((of.host, *numa)).or_default();
            *sum = (sum.0 + share.vcpus, sum.1 + share.gib);
        }
    }
    let too_much = |(host, numa): &(usize, usize), (vcpus, gib): &(u64, u64)| {
        let has = hosts.get(*host).and_then(|host| host.numa.get(*numa)).copied().unwrap_or_default();
        *vcpus > has.vcpus || *gib > has.gib
    };
    taken.iter().filter(|(at, sum)| too_much(at, sum)).count()
}

type Members = BTreeMap<(u64, usize), Vec<Option<u64>>>;

/// By group and rack: the parts its machines there belong to, one entry for each machine.
fn racks_of_groups(hosts: &[Host], placed: &[(&Request, &Decision)], strategy: Strategy) -> Members {
    let mut racks: Members = BTreeMap::new();
    for (request, of) in placed {
        if let Some((_, group)) = request.group.filter(|(kind, _)| *kind == strategy) {
            racks.entry((group, hosts[of.host].rack)).or_default().push(request.domain);
        }
    }
    racks
}

fn broken_rules(hosts: &[Host], placed: &[(&Request, &Decision)]) -> usize {
    let collocated = racks_of_groups(hosts, placed, Strategy::Affinity);
    let groups: BTreeSet<u64> = collocated.keys().map(|(group, _)| *group).collect();
    let scattered = collocated.len() - groups.len();

    let mut apart: BTreeMap<(u64, usize), usize> = BTreeMap::new();
    for (request, of) in placed {
        if let Some((Strategy::AntiAffinity, group)) = request.group {
            *apart.entry((group, of.host)).or_default() += 1;
        }
    }
    let together = apart.values().filter(|machines| **machines > 1).count();

    let parts = racks_of_groups(hosts, placed, Strategy::FaultDomain);
    let mixed = parts.values().filter(|parts| parts.iter().collect::<BTreeSet<_>>().len() > 1).count();
    scattered + together + mixed
}
