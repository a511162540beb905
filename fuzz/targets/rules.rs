//! A rule file, and a file of unit tests: taken, or each mistake has a place.

#![no_main]

use std::path::Path;
use std::time::Duration;

use proctor::model::Problems;
use proctor::model::decode;
use proctor::rules::load;
use proctor::rules::unit::TestFile;

libfuzzer_sys::fuzz_target!(|text: &str| {
    let mut problems = Problems::new("rules.yml");
    load::from_text(Path::new("rules.yml"), text, Duration::from_secs(15), &mut problems);
    let lines = text.split(['\n', '\r', '\u{85}', '\u{2028}', '\u{2029}']).count() + 1;
    for problem in problems.into_sorted() {
        assert!((1..=lines).contains(&problem.at.line) && problem.at.col >= 1 && !problem.message.is_empty(), "{problem}");
    }
    drop(decode::from_text::<TestFile>("tests.yml", text));
});
