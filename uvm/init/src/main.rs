//! The utility VM.
mod image;
fn main() {}
