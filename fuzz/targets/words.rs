//! The small notations of a configuration: what is read is printed so that it reads the same.

#![no_main]

use proctor::client::http::Url;
use proctor::client::net::Endpoint;
use proctor::model::labels::Matcher;
use proctor::model::{duration, one_line};
use proctor::notify::config::Mailbox;

libfuzzer_sys::fuzz_target!(|text: &str| {
    if let Ok(matcher) = Matcher::parse(text) {
        assert_eq!(Matcher::parse(&matcher.to_string()).as_ref(), Ok(&matcher));
        matcher.matches_value(text);
    }
    if let Ok(length) = duration::parse(text) {
        assert_eq!(duration::parse(&duration::print(length)), Ok(length));
        duration::print_measured(length);
    }
    if let Ok(url) = Url::parse(text) {
        assert_eq!(Url::parse(&url.to_string()), Ok(url));
    }
    if let Some(endpoint) = Endpoint::parse(text) {
        assert_eq!(Endpoint::parse(&endpoint.to_string()), Some(endpoint));
    }
    drop(Mailbox::parse(text));
    let line = one_line(text, 80);
    assert!(line.chars().count() <= 80 && !line.contains(char::is_control));
});
