//! A configuration: taken, or each mistake has a place.

#![no_main]

use std::path::Path;

use proctor::config::Config;

libfuzzer_sys::fuzz_target!(|text: &str| {
    if let Err(problems) = Config::from_text(Path::new("proctor.yml"), text) {
        assert!(!problems.is_empty());
        // YAML knows more line ends than `lines` does.
        let lines = text.split(['\n', '\r', '\u{85}', '\u{2028}', '\u{2029}']).count() + 1;
        for problem in problems {
            assert!((1..=lines).contains(&problem.at.line) && problem.at.col >= 1 && !problem.message.is_empty(), "{problem}");
        }
    }
});
