//! What nginx says: its counters, its error log, its configuration.

#![no_main]

use proctor::discover::nginx;
use proctor::fuzzing::Parsers;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    Parsers::stub_status(bytes);
    Parsers::error_log(bytes);
    let servers = nginx::parse(&String::from_utf8_lossy(bytes));
    nginx::status(&servers);
});
