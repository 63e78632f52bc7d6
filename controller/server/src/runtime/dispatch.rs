//! Calls to nodes, each on a thread: a slow node, or a job of hours, holds up nobody else.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::nodes::{NodeAddress, Nodes};
use super::{Shared, token_of_job};
use crate::core::{Call, CallAnswer, CallError, CallErrorKind, Effect, EffectToken, Input};
use crate::model::Id;

/// Calls of each class to one node at once; more wait in order.
const QUICK_PER_NODE: usize = 8;
const LONG_PER_NODE: usize = 32;
/// Threads of each class; a thread takes the next call that may run.
const MAX_QUICK: usize = 64;
const MAX_LONG: usize = 2_048;
/// Stack of such a thread.
const STACK: usize = 512 << 10;

/// How long a call may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Class {
    /// Seconds: a verb of a hypervisor.
    Quick,
    /// Hours: a job of a utility VM, or its start.
    Long,
}

impl Class {
    fn of(call: &Call) -> Self {
        match call {
            Call::UvmJob { .. } | Call::CancelUvmJob(_) | Call::EnsureUtilityVm | Call::RestartUtilityVm => {
                Self::Long
            }
            _ => Self::Quick,
        }
    }

    fn per_node(self) -> usize {
        if self == Self::Quick { QUICK_PER_NODE } else { LONG_PER_NODE }
    }

    fn threads(self) -> usize {
        if self == Self::Quick { MAX_QUICK } else { MAX_LONG }
    }
}

/// Calls to one node of one class.
#[derive(Default)]
struct Lane {
    running: usize,
    waiting: VecDeque<Effect>,
}

#[derive(Default)]
struct Lanes {
    lanes: HashMap<(Id, Class), Lane>,
    /// Lanes that have a call which may run, each once.
    ready: BTreeMap<Class, VecDeque<Id>>,
    threads: BTreeMap<Class, usize>,
    running: usize,
    abandoned: HashSet<EffectToken>,
    stop: bool,
}

pub(super) struct Dispatcher {
    shared: Arc<Shared>,
    nodes: Arc<dyn Nodes>,
    lanes: Arc<Mutex<Lanes>>,
}

impl Dispatcher {
    pub(super) fn new(shared: Arc<Shared>, nodes: Arc<dyn Nodes>) -> Self {
        Self { shared, nodes, lanes: Arc::default() }
    }

    fn lanes(&self) -> MutexGuard<'_, Lanes> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn running(&self) -> usize {
        self.lanes().running
    }

    /// No call is begun any more.
    pub(super) fn stop(&self) {
        let mut lanes = self.lanes();
        lanes.stop = true;
        lanes.lanes.values_mut().for_each(|lane| lane.waiting.clear());
        lanes.ready.clear();
    }

    /// Nobody waits for these any more.
    pub(super) fn abandon(&self, tokens: &[EffectToken]) {
        if !tokens.is_empty() {
            self.lanes().abandoned.extend(tokens.iter().copied());
        }
    }

    /// Makes calls; their outcomes come back as inputs.
    pub(super) fn send(self: &Arc<Self>, effects: Vec<Effect>) {
        if effects.is_empty() {
            return;
        }
        let mut lanes = self.lanes();
        if lanes.stop {
            return;
        }
        for effect in effects {
            let class = Class::of(&effect.call);
            let node = effect.node;
            let lane = lanes.lanes.entry((node, class)).or_default();
            lane.waiting.push_back(effect);
            if lane.waiting.len() == 1 && lane.running < class.per_node() {
                lanes.ready.entry(class).or_default().push_back(node);
            }
            let ready = lanes.ready.get(&class).map_or(0, VecDeque::len);
            let threads = lanes.threads.entry(class).or_default();
            if ready > 0 && *threads < class.threads() {
                *threads += 1;
                let own = Arc::clone(self);
                let name = format!("{class:?}").to_lowercase();
                let spawned =
                    std::thread::Builder::new().name(name).stack_size(STACK).spawn(move || own.work(class));
                if let Err(error) = spawned {
                    crate::log::warn(&format!("no thread for calls to nodes: {error}"));
                    *threads -= 1;
                }
            }
        }
    }

    /// A thread's life: call after call, until there is none.
    fn work(&self, class: Class) {
        while let Some(effect) = self.next(class) {
            let (node, token) = (effect.node, effect.token);
            let result = self.perform(&effect);
            self.done(node, class, token);
            self.shared.input(Input::Outcome { token, result });
        }
    }

    fn next(&self, class: Class) -> Option<Effect> {
        let mut lanes = self.lanes();
        loop {
            let Some(node) = lanes.ready.get_mut(&class).and_then(VecDeque::pop_front) else {
                if let Some(threads) = lanes.threads.get_mut(&class) {
                    *threads -= 1;
                }
                return None;
            };
            let lane = lanes.lanes.entry((node, class)).or_default();
            let Some(effect) = lane.waiting.pop_front() else { continue };
            lane.running += 1;
            let more = !lane.waiting.is_empty() && lane.running < class.per_node();
            if more {
                lanes.ready.entry(class).or_default().push_back(node);
            }
            lanes.running += 1;
            return Some(effect);
        }
    }

    fn done(&self, node: Id, class: Class, token: EffectToken) {
        let mut lanes = self.lanes();
        lanes.running -= 1;
        lanes.abandoned.remove(&token);
        let Some(lane) = lanes.lanes.get_mut(&(node, class)) else { return };
        // It was full: what waits there was not offered.
        let offered = lane.running < class.per_node();
        lane.running -= 1;
        if lane.waiting.is_empty() {
            if lane.running == 0 {
                lanes.lanes.remove(&(node, class));
            }
        } else if !offered {
            lanes.ready.entry(class).or_default().push_back(node);
        }
    }

    fn perform(&self, effect: &Effect) -> Result<CallAnswer, CallError> {
        let core = self.shared.core.read().unwrap_or_else(PoisonError::into_inner);
        let address = core.state().nodes.get(&effect.node).map(|node| NodeAddress {
            id: node.id,
            name: node.name.clone(),
            hypervisor: node.hypervisor.clone(),
            address: node.address.clone(),
        });
        drop(core);
        let Some(address) = address else {
            return Err(CallError::new(CallErrorKind::NotFound, format!("there is no node {}", effect.node)));
        };
        let mut on_progress = |progress| {
            if token_of_job(effect.token).is_some() {
                self.shared.input(Input::Progress { token: effect.token, progress });
            }
        };
        let cancelled = || {
            let lanes = self.lanes();
            lanes.stop || lanes.abandoned.contains(&effect.token)
        };
        let call = || self.nodes.perform(&address, &effect.call, &mut on_progress, &cancelled);
        // A fault in a manager is that call's failure.
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(call)).unwrap_or_else(|_| {
            Err(CallError::new(CallErrorKind::Transient, "a fault in the controller; see its log"))
        });
        if let Ok(CallAnswer::Observed(seen)) = &result {
            (self.shared.on_observation)(effect.node, self.shared.clock.now(), seen);
        }
        result
    }
}
