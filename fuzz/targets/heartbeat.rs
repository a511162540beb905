//! What a job reports: over HTTP, and by what it prints.

#![no_main]

use proctor::fuzzing::Parsers;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    Parsers::report(bytes);
    Parsers::checks(bytes);
});
