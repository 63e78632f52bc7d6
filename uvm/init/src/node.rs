//! Facts about this node.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use base64::Engine as _;
use uvm_api::Node;
use x25519_dalek::{PublicKey, StaticSecret};

/// What does not change while the node is up, and the key of this boot.
pub(crate) struct NodeFacts {
    name: String,
    boot_ms: AtomicU64,
    public_key: PublicKey,
}

impl NodeFacts {
    /// Makes the key of this boot.
    pub(crate) fn new(name: String) -> Self {
        let secret = StaticSecret::from(rand::random::<[u8; 32]>());
        Self { name, boot_ms: AtomicU64::new(0), public_key: PublicKey::from(&secret) }
    }

    /// The API listens now.
    pub(crate) fn listening(&self) {
        let uptime = uvm_sys::uptime();
        self.boot_ms.store(u64::try_from(uptime.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Milliseconds from the kernel's start to the API listening; 0 where it does not listen.
    pub(crate) fn boot_ms(&self) -> u64 {
        self.boot_ms.load(Ordering::Relaxed)
    }

    pub(crate) fn describe(&self) -> Node {
        let uptime = uvm_sys::uptime();
        let booted = SystemTime::now().checked_sub(uptime).unwrap_or(SystemTime::UNIX_EPOCH);
        Node {
            name: self.name.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            kernel: uvm_sys::kernel_release(),
            cpus: uvm_sys::cpu_count(),
            memory_bytes: uvm_sys::memory_total_bytes().unwrap_or_default(),
            rss_bytes: uvm_sys::rss_bytes().unwrap_or_default(),
            peak_rss_bytes: uvm_sys::peak_rss_bytes().unwrap_or_default(),
            boot_time: humantime::format_rfc3339_millis(booted).to_string(),
            boot_ms: self.boot_ms(),
            public_key: base64::engine::general_purpose::STANDARD.encode(self.public_key.as_bytes()),
        }
    }
}
