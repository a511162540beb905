//! A template of a rule: expanded, or refused with a reason.

#![no_main]

use proctor::model::Labels;
use proctor::rules::template::{Facts, Template};

libfuzzer_sys::fuzz_target!(|text: &str| {
    let labels = Labels::new([("a", "b"), ("instance", "web")]);
    for value in [0.0, -1.5, 1e308, f64::NAN] {
        let facts = Facts { labels: &labels, value, external_labels: &labels, external_url: "http://p" };
        match Template::parse(text) {
            Ok(template) => drop(template.expand(&facts)),
            Err(error) => assert!(!error.message.is_empty()),
        }
    }
});
