//! All that a MySQL says.

#![no_main]

use proctor::fuzzing::Parsers;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| Parsers::mysql(bytes));
