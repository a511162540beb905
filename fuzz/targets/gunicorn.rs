//! What gunicorn says: datagrams, its control socket; and what the kernel counts for it.

#![no_main]

use proctor::fuzzing::Parsers;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    Parsers::statsd(bytes);
    Parsers::gunicorn(bytes);
    Parsers::netstat(bytes);
});
