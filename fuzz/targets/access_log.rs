//! An access log of nginx: the first line is its format.

#![no_main]

use proctor::probe::nginx::format::LogFormat;
use proctor::probe::nginx::log::Requests;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let end = bytes.iter().position(|byte| *byte == b'\n').unwrap_or(bytes.len());
    let own = std::str::from_utf8(&bytes[..end]).ok().and_then(|text| LogFormat::new(text).ok());
    let known = ["combined", "$status $upstream_response_time, $request_time"].map(|text| LogFormat::new(text).expect("is one"));
    for format in own.into_iter().chain(known) {
        let mut requests = Requests::new(format.clone());
        for line in bytes.split(|byte| *byte == b'\n') {
            assert!(format.read(line).is_none_or(|line| line.class <= 5));
            requests.take(line);
        }
    }
});
