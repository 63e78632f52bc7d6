//! Where leaves meet, each pair in one file.

pub(crate) mod block;
pub(crate) mod builder;
pub(crate) mod mounted;
