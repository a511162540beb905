//! Parses, calls `cli`, maps to an exit code; nothing else.

fn main() {}
