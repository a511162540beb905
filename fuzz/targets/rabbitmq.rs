//! Prometheus' text format, as RabbitMQ writes it.

#![no_main]

use proctor::fuzzing::Parsers;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| Parsers::exposition(bytes));
