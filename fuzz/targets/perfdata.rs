//! What a plugin of Nagios prints.

#![no_main]

use proctor::fuzzing::Parsers;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| Parsers::perfdata(bytes));
