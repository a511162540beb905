//! What the kernel says: sockets, routes, neighbours.

#![no_main]

use proctor::fuzzing::Parsers;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    Parsers::sock_diag(bytes);
    Parsers::gateways(bytes);
});
