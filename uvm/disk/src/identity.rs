//! Identities that are the same each time they are asked for.

use uuid::{Uuid, uuid};

/// Of all that this crate derives. It never changes: disks that were made carry what follows from it.
const NAMESPACE: Uuid = uuid!("6f1c0bd2-6f4e-4a52-9a55-8a1c6d7b1f3e");

/// The identity of `purpose` in what has the seed `seed`: a UUID of version 5. It is no secret.
///
/// `purpose` names one thing within the seed, such as `disk` or `partition/3`; a seed holds no `/`, or the caller sees
/// to it that seed and purpose together are unambiguous.
pub fn derive(seed: &str, purpose: &str) -> Uuid {
    Uuid::new_v5(&NAMESPACE, format!("{seed}/{purpose}").as_bytes())
}

/// The same for an MBR, whose disk signature has 32 bits and is never zero.
pub fn derive_signature(seed: &str, purpose: &str) -> u32 {
    derive(seed, purpose).as_fields().0.max(1)
}
