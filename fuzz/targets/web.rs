//! What a reader of the status page sends.

#![no_main]

use proctor::fuzzing::Parsers;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let text = String::from_utf8_lossy(bytes);
    Parsers::authorization(&text);
    Parsers::headers(&text);
    drop(serde_json::from_slice::<proctor::web::control::Command>(bytes));
});
