//! The configuration of certbot and of acme.sh.

#![no_main]

use proctor::fuzzing::Parsers;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| Parsers::renewal(bytes));
