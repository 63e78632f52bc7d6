#![allow(clippy::unwrap_used)]

use super::*;
use crate::store::contract_tests::{contract, event, id, instance, lock, put};

contract!((MemoryStore::new(), ()));

#[test]
fn a_commit_fails_before_it_took_effect() {
    let mut store = MemoryStore::new();
    store.fail_commit(2, Fault::Before);
    store.commit(&[put(instance(1, "acme", "a"))]).unwrap();
    let error = store.commit(&[put(instance(2, "acme", "b"))]).unwrap_err();
    assert!(!error.out_of_space);
    assert_eq!((store.fired(), store.commits()), (1, 2));
    assert_eq!(store.load().unwrap().instances.len(), 1);
    store.commit(&[put(instance(2, "acme", "b"))]).unwrap();
    assert_eq!(store.fired(), 1);
}

#[test]
fn a_commit_fails_after_it_took_effect_and_the_next_controller_finds_it() {
    let mut store = MemoryStore::new();
    store.fail_commit(1, Fault::After);
    store.commit(&[put(instance(1, "acme", "a")), lock("instances/1", 9, 5)]).unwrap_err();
    assert_eq!(store.fired(), 1);
    let mut next = store.clone();
    drop(store);
    let loaded = next.load().unwrap();
    assert_eq!(loaded.instances[0].id, id(1));
    assert_eq!(loaded.locks.len(), 1);
}

#[test]
fn space_runs_out_and_comes_back() {
    let mut store = MemoryStore::new();
    store.fail_commit(2, Fault::OutOfSpace);
    store.commit(&[event(1, None, "nodes/1", None)]).unwrap();
    for _ in 0..3 {
        assert!(store.commit(&[event(2, None, "nodes/1", None)]).unwrap_err().out_of_space);
    }
    assert_eq!(store.fired(), 3);
    store.heal();
    store.commit(&[event(2, None, "nodes/1", None)]).unwrap();
    assert_eq!(store.load().unwrap().last_event, 2);
}
