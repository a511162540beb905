//! All that a mail server says up to the handshake.

#![no_main]

use proctor::fuzzing::Parsers;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| Parsers::starttls(bytes));
