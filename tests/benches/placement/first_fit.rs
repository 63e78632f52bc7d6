//! The peer: the first host in the list that fits, with the groups' rules kept or ignored.

use std::collections::{BTreeMap, BTreeSet};

use super::trace::{Amount, Decision, Host, Request, Strategy};

#[derive(Default)]
struct Groups {
    rack_of: BTreeMap<u64, usize>,
    hosts_of: BTreeMap<u64, BTreeSet<usize>>,
    part_in: BTreeMap<(u64, usize), Option<u64>>,
}

impl Groups {
    fn allow(&self, request: &Request, at: usize, rack: usize) -> bool {
        match request.group {
            None => true,
            Some((Strategy::Affinity, group)) => self.rack_of.get(&group).is_none_or(|of| *of == rack),
            Some((Strategy::AntiAffinity, group)) => {
                !self.hosts_of.get(&group).is_some_and(|hosts| hosts.contains(&at))
            }
            Some((Strategy::FaultDomain, group)) => {
                self.part_in.get(&(group, rack)).is_none_or(|part| *part == request.domain)
            }
        }
    }

    fn enter(&mut self, request: &Request, at: usize, rack: usize) {
        match request.group {
            None => {}
            Some((Strategy::Affinity, group)) => {
                self.rack_of.insert(group, rack);
            }
            Some((Strategy::AntiAffinity, group)) => {
                self.hosts_of.entry(group).or_default().insert(at);
            }
            Some((Strategy::FaultDomain, group)) => {
                self.part_in.insert((group, rack), request.domain);
            }
        }
    }
}

pub(crate) fn first_fit(hosts: &[Host], requests: &[Request], keep_rules: bool) -> Vec<Option<Decision>> {
    let mut free: Vec<[Amount; 2]> = hosts.iter().map(|host| host.numa).collect();
    let mut groups = Groups::default();
    let mut place = |request: &Request| {
        let part =
            Amount { vcpus: request.amount.vcpus / request.numa, gib: request.amount.gib / request.numa };
        let fits = |free: &Amount| free.vcpus >= part.vcpus && free.gib >= part.gib;
        let found = hosts.iter().enumerate().find_map(|(at, host)| {
            if keep_rules && !groups.allow(request, at, host.rack) {
                return None;
            }
            let fitting: Vec<usize> =
                (0..2).filter(|numa| fits(&free[at][*numa])).take(request.numa as usize).collect();
            (fitting.len() as u64 == request.numa).then_some((at, fitting))
        });
        let (at, numa) = found?;
        for numa in &numa {
            free[at][*numa].vcpus -= part.vcpus;
            free[at][*numa].gib -= part.gib;
        }
        groups.enter(request, at, hosts[at].rack);
        Some(Decision { host: at, shares: numa.into_iter().map(|numa| (numa, part)).collect() })
    };
    requests.iter().map(&mut place).collect()
}
