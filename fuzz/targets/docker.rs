//! What docker says: containers, events.

#![no_main]

use proctor::fuzzing::Parsers;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    Parsers::docker(bytes);
    Parsers::docker_events(bytes);
});
