//! All that an HTTP server says.

#![no_main]

use proctor::fuzzing::Parsers;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| Parsers::http(bytes));
