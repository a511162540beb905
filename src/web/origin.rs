//! Whether a browser asks for its own user, or for a page of somebody else.
//!
//! A page anywhere may send a reader's browser here: under a name that it has made to lead here (DNS rebinding), or
//! from its own origin. The first shows in `Host`, the second in `Sec-Fetch-Site`, or in `Origin` where a browser is old.
//! Both are the rules of Go's `CrossOriginProtection`, and for what only reads a little stricter.

use std::collections::BTreeSet;
use std::net::IpAddr;

use axum::http::{HeaderMap, Method, header};

/// Cuts the port off a host, and the brackets of IPv6.
pub(super) fn without_port(host: &str) -> &str {
    if let Some(rest) = host.strip_prefix('[') {
        return rest.split_once(']').map_or(host, |(address, _)| address);
    }
    match host.rsplit_once(':') {
        Some((name, port)) if !name.contains(':') && port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    }
}

/// Says whether this Proctor goes by a name: an address, `localhost`, a name without a dot (which no stranger can own),
/// or one of its own.
pub(super) fn is_ours(host: &str, own: &BTreeSet<String>) -> bool {
    let name = without_port(host).trim_end_matches('.').to_ascii_lowercase();
    let plain = || name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'));
    !name.is_empty() && (name.parse::<IpAddr>().is_ok() || name.ends_with(".localhost") || own.contains(&name) || plain())
}

/// Says whether a page of another origin asks. A link that somebody follows is none, as long as it only reads.
pub(super) fn is_foreign(method: &Method, headers: &HeaderMap, host: &str) -> bool {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let reads = matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS);
    match text("sec-fetch-site") {
        Some("same-origin" | "none") => false,
        Some(_) => !(reads && text("sec-fetch-mode") == Some("navigate") && text("sec-fetch-dest") == Some("document")),
        None => match headers.get(header::ORIGIN) {
            Some(origin) if !reads => {
                let origin = origin.to_str().ok().and_then(|origin| origin.split_once("://"));
                origin.is_none_or(|(_, of)| !of.eq_ignore_ascii_case(host))
            }
            _ => false,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_names_are_addresses_localhost_names_without_a_dot_and_those_of_the_configuration() {
        let own = ["status.example.org".to_owned()].into();
        for ours in [
            "127.0.0.1:9797",
            "[::1]:9797",
            "::1",
            "10.1.2.3",
            "localhost",
            "LOCALHOST:1",
            "a.localhost",
            "proctor:9797",
            "web_1",
            "status.example.org",
            "Status.Example.Org.:443",
        ] {
            assert!(is_ours(ours, &own), "{ours}");
        }
        for other in ["", ":9797", "evil.example", "evil.example:9797", "127.0.0.1.evil.example", "example.org", "[::1", "a b", "x@proctor"]
        {
            assert!(!is_ours(other, &own), "{other}");
        }
    }

    #[test]
    fn a_page_of_another_origin_may_link_here_and_no_more() {
        let of = |method: Method, headers: &[(&'static str, &'static str)]| {
            let map: HeaderMap =
                headers.iter().map(|(name, value)| (name.parse().expect("is one"), value.parse().expect("is one"))).collect();
            is_foreign(&method, &map, "h:1")
        };
        let navigates = [("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "navigate"), ("sec-fetch-dest", "document")];
        assert!(!of(Method::GET, &navigates) && of(Method::POST, &navigates));
        assert!(of(Method::GET, &[("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "navigate"), ("sec-fetch-dest", "iframe")]));
        assert!(of(Method::GET, &[("sec-fetch-site", "same-site")]) && of(Method::GET, &[("sec-fetch-site", "x")]));
        for method in [Method::GET, Method::POST] {
            assert!(!of(method.clone(), &[]), "curl");
            assert!(!of(method.clone(), &[("sec-fetch-site", "same-origin"), ("origin", "http://evil")]));
            assert!(!of(method, &[("sec-fetch-site", "none")]));
        }
        for (origin, foreign) in [("http://h:1", false), ("https://H:1", false), ("http://h", true), ("null", true), ("http://evil", true)]
        {
            assert_eq!(of(Method::POST, &[("origin", origin)]), foreign, "{origin}");
        }
        assert!(!of(Method::GET, &[("origin", "http://evil")]), "its answer is not given to that page");
    }
}
