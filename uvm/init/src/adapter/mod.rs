//! Where leaves meet, each pair in one file.

pub(crate) mod block;
pub(crate) mod builder;
pub(crate) mod fill;
pub(crate) mod host;
pub(crate) mod mounted;

#[cfg(test)]
mod tree_tests;
