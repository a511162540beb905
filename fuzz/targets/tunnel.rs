//! The first bytes from the far end of a tunnel.

#![no_main]

use proctor::fuzzing::Parsers;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| Parsers::tunnel(bytes));
