//! What changed before: `dpkg.log`, and git's log.

#![no_main]

use proctor::fuzzing::Parsers;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    for line in String::from_utf8_lossy(bytes).lines() {
        Parsers::package(line);
        Parsers::git_log(line);
    }
});
