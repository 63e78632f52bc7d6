//! What a tenant is not shown: where nodes are reached, and the hypervisors' own words.

use super::access::Session;
use crate::core::State;
use crate::model::{Event, Instance, Job, Plan, Problem};

/// What stands in the place of a node's address.
const CONCEALED: &str = "(node)";

/// Looks at records through a caller's eyes.
#[derive(Debug)]
pub(crate) struct Lens {
    /// What to conceal; `None` for operators, who see everything.
    addresses: Option<Vec<String>>,
}

impl Lens {
    pub(crate) fn new(session: &Session, state: &State) -> Self {
        let addresses = || state.nodes.values().map(|node| &node.address).filter(|a| !a.is_empty());
        Self { addresses: session.project().map(|_| addresses().cloned().collect()) }
    }

    fn text(&self, text: &mut String) {
        let Some(addresses) = &self.addresses else { return };
        let mut found: Vec<&String> = addresses.iter().filter(|address| text.contains(*address)).collect();
        // The longest first: one address may begin another.
        found.sort_by_key(|address| std::cmp::Reverse(address.len()));
        for address in found {
            *text = text.replace(address, CONCEALED);
        }
    }

    pub(crate) fn problem(&self, mut problem: Problem) -> Problem {
        if self.addresses.is_some() {
            problem.causes.clear();
            self.text(&mut problem.detail);
        }
        problem
    }

    pub(crate) fn instance(&self, mut instance: Instance) -> Instance {
        instance.last_problem = instance.last_problem.map(|problem| Box::new(self.problem(*problem)));
        instance
    }

    pub(crate) fn job(&self, mut job: Job) -> Job {
        job.problem = job.problem.map(|problem| Box::new(self.problem(*problem)));
        for step in &mut job.steps {
            self.text(&mut step.description);
            self.text(&mut step.message);
        }
        job
    }

    pub(crate) fn event(&self, mut event: Event) -> Event {
        self.text(&mut event.message);
        event
    }

    pub(crate) fn plan(&self, mut plan: Plan) -> Plan {
        plan.notes.iter_mut().chain(&mut plan.reason).for_each(|text| self.text(text));
        plan
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ErrorCode;

    #[test]
    fn a_tenant_sees_no_address_even_where_one_begins_another() {
        let lens = Lens { addresses: Some(vec!["/srv/n1".to_owned(), "/srv/n10".to_owned()]) };
        let mut problem =
            Problem::new(ErrorCode::HypervisorFailed, "no space in /srv/n10/pool and /srv/n1/pool");
        problem.causes.push("connect 10.0.0.7".to_owned());
        let shown = lens.problem(problem.clone());
        assert_eq!(shown.detail, "no space in (node)/pool and (node)/pool");
        assert!(shown.causes.is_empty());
        assert_eq!(Lens { addresses: None }.problem(problem.clone()), problem);
    }
}
