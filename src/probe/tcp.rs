//! Asks a TCP port: connect, optionally send, optionally expect.
//!
//! The names are blackbox_exporter's; how long it took is `probe_duration_seconds`, as there.

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::io::AsyncWriteExt;

use super::{Planned, Probe, Recorder, failure_at};
use crate::client::net::{self, Endpoint, NetError, Phases};
use crate::model::{Failure, Family, Reason};

/// The most bytes that are read while waiting for what is expected.
const MAX_ANSWER: usize = 16 * 1024;

pub(super) static LOOKUP: Family = Family::gauge("probe_dns_lookup_time_seconds", "How long looking up the name took");
pub(super) static PROTOCOL: Family = Family::gauge("probe_ip_protocol", "Over which version of IP the connection went, 4 or 6");
pub(super) static REGEX: Family =
    Family::gauge("probe_failed_due_to_regex", "Whether the answer was not the expected one, by a regular expression");

crate::config_struct! {
    /// Asks a TCP port: connect, optionally send, optionally expect.
    pub struct TcpConfig {
        /// Where: `host:port` or `unix:/path`.
        address: Endpoint,
        /// Text that is sent once connected; in double quotes `\r\n` is a line end.
        send: Option<String>,
        /// Regular expression that the answer must contain within 16 KiB.
        expect: Option<regex::Regex>,
    }
}

/// Builds the one target.
///
/// # Errors
/// None.
pub fn plan(config: &TcpConfig) -> Result<Vec<Planned>, String> {
    Ok(Planned::only(Tcp(config.clone())))
}

/// Records what connecting showed.
pub(super) fn record_net(rec: &mut Recorder, phases: &Phases) {
    if let Some(took) = phases.resolve {
        rec.set(&LOOKUP, took.as_secs_f64());
    }
    if let Some(peer) = phases.peer {
        rec.set(&PROTOCOL, if peer.is_ipv4() { 4.0 } else { 6.0 });
    }
}

/// The beginning of what a service said, on one line and in quotes, for a detail.
pub(super) fn beginning(answer: &[u8]) -> String {
    let text = String::from_utf8_lossy(&answer[..answer.len().min(1024)]);
    let words: Vec<&str> = text.split_whitespace().collect();
    let line = words.join(" ");
    let short: String = line.chars().take(80).collect();
    format!("\"{short}{}\"", if short.len() < line.len() || answer.len() > 1024 { "…" } else { "" })
}

struct Tcp(TcpConfig);

impl Probe for Tcp {
    fn run<'a>(&'a self, rec: &'a mut Recorder) -> BoxFuture<'a, Result<(), Failure>> {
        async move {
            let TcpConfig { address, send, expect } = &self.0;
            let mut phases = Phases::default();
            let connected = rec.connect(address, &mut phases).await;
            record_net(rec, &phases);
            let mut stream = connected?;
            if let Some(text) = send {
                stream.write_all(text.as_bytes()).await.map_err(|error| failure_at(address, &error.into()))?;
            }
            let Some(pattern) = expect else { return Ok(()) };
            let mut came = Vec::new();
            let matches = |bytes: &[u8]| {
                came.clear();
                came.extend_from_slice(&bytes[..bytes.len().min(200)]);
                if !came.is_empty() {
                    // A whole line that does not match is an answer; part of one may still become the expected one.
                    let reason = if bytes.contains(&b'\n') { Reason::Mismatch } else { Reason::AnswerTimeout };
                    let so_far = beginning(bytes);
                    rec.waiting(reason, format!("{address}: {phases}, expected what matches {pattern}, found so far {so_far}"));
                }
                pattern.is_match(&String::from_utf8_lossy(bytes))
            };
            let answer = net::read_until(&mut stream, MAX_ANSWER, matches).await;
            rec.set(&REGEX, f64::from(u8::from(!came.is_empty() && answer.is_err())));
            match answer {
                Ok(_) => Ok(()),
                Err(error @ (NetError::Eof { after: 1.. } | NetError::TooLarge { .. })) => Err(Failure::new(
                    Reason::Mismatch,
                    format!("{address}: expected an answer that matches {pattern}, found {}, and {error}", beginning(&came)),
                )),
                Err(error) => Err(failure_at(address, &error)),
            }
        }
        .boxed()
    }
}
