//! The clock against another one: by SNTP (RFC 4330), or by the `Date` of a page (RFC 9110 §6.6.1).

use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::net::UdpSocket;

use super::Standing;
use crate::client::http::{self, Method, Request, Seen, Url};
use crate::client::net::{self, Endpoint, Phases, Trust};
use crate::model::decode::{Decode, mismatch};
use crate::model::yaml::Node;
use crate::model::{Failure, Family, Problems, Reason, Sample, Timestamp};
use crate::probe::{Probe, Recorder, failure_at};
use crate::tasks;

static OFFSET: Family = Family::gauge("host_clock_offset_seconds", "How far this host's clock is ahead of the other one");

/// What is more is wrong: sessions, tickets and signatures begin to fail, and logs do not fit together.
const MOST: f64 = 2.0;
/// How often the other clock is asked, well or not.
const EVERY: [Duration; 2] = [Duration::from_secs(300), Duration::from_secs(60)];
/// Seconds from 1900, where NTP begins, to 1970.
const NTP_EPOCH: f64 = 2_208_988_800.0;
/// A packet of SNTP.
const PACKET: usize = 48;

/// Another clock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClockSource {
    /// A server of NTP.
    Ntp(Endpoint),
    /// A page.
    Http(Url),
}

impl Decode for ClockSource {
    const EXPECTED: &'static str = "ntp://HOST or the URL of a page";
    fn decode(node: &Node, problems: &mut Problems) -> Option<Self> {
        let text = String::decode(node, &mut Problems::default()).unwrap_or_default();
        let source = match text.strip_prefix("ntp://") {
            Some(host) => {
                let whole = if host.contains(':') { host.to_owned() } else { format!("{host}:123") };
                Endpoint::parse(&whole).filter(|_| !host.is_empty()).map(Self::Ntp)
            }
            None => Url::parse(&text).ok().map(Self::Http),
        };
        if source.is_none() {
            mismatch(node, Self::EXPECTED, problems);
        }
        source
    }
}

pub(super) struct Clock {
    source: ClockSource,
    standing: Standing,
}

impl Clock {
    pub(super) fn new(source: ClockSource) -> Self {
        Self { source, standing: Standing::new(EVERY[0], EVERY[1]) }
    }

    async fn ask(&self, rec: &mut Recorder) -> Result<(), Failure> {
        if let Some(again) = self.standing.again(rec) {
            return again;
        }
        let (asked, name, error) = match &self.source {
            ClockSource::Ntp(server) => (by_ntp(server, rec).await, server.to_string(), 0.0),
            // Whole seconds: it is half a second later on average, and as much may be missing.
            ClockSource::Http(url) => (by_page(url, rec).await, url.to_string(), 0.5),
        };
        let offset = match asked {
            Ok(offset) => offset,
            Err(failure) => {
                self.standing.keep(Vec::new(), &Err(failure.clone()));
                return Err(failure);
            }
        };
        rec.set(&OFFSET, offset);
        let outcome = if offset.abs() - error > MOST {
            let way = if offset > 0.0 { "ahead of" } else { "behind" };
            let what = format!("this host's clock is {:.1}s {way} {name}: expected at most {MOST}s (timedatectl; is chrony or systemd-timesyncd running?)", offset.abs());
            Err(Failure::new(Reason::Mismatch, what))
        } else {
            Ok(())
        };
        self.standing.keep(vec![Sample { family: &OFFSET, labels: Vec::new(), value: offset }], &outcome);
        outcome
    }
}

impl Probe for Clock {
    fn run<'a>(&'a self, rec: &'a mut Recorder) -> BoxFuture<'a, Result<(), Failure>> {
        self.ask(rec).boxed()
    }
}

/// Asks once and returns by how many seconds this host is ahead.
async fn by_ntp(server: &Endpoint, rec: &mut Recorder) -> Result<f64, Failure> {
    rec.waiting(Reason::Resolve, format!("looking up the name of {server}"));
    let addresses = net::lookup(server, &mut Phases::default()).await.map_err(|error| failure_at(server, &error))?;
    let failed = |error: std::io::Error| {
        let reason = if error.kind() == std::io::ErrorKind::ConnectionRefused { Reason::Refused } else { Reason::Unavailable };
        Failure::new(reason, format!("{server}: {error}"))
    };
    let Some(address) = addresses.first() else { return Err(Failure::new(Reason::Resolve, format!("{server}: no address"))) };
    let own = if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(own).await.map_err(failed)?;
    socket.connect(address).await.map_err(failed)?;
    rec.waiting(Reason::AnswerTimeout, format!("waiting for {server} to say the time (NTP, UDP)"));
    let sent = tasks::wall_now();
    let (mut request, mut answer) = ([0u8; PACKET], [0u8; PACKET]);
    // Version 4, client.
    request[0] = 0x23;
    // It comes back as the time of origin: who does not know it cannot answer for the server.
    request[40..48].copy_from_slice(&(u64::try_from(sent.0).unwrap_or(0).rotate_left(17) ^ u64::from(std::process::id())).to_be_bytes());
    socket.send(&request).await.map_err(failed)?;
    loop {
        let length = socket.recv(&mut answer).await.map_err(failed)?;
        if length == PACKET && answer[24..32] == request[40..48] {
            break;
        }
    }
    let received = tasks::wall_now();
    offset_of(&answer, sent, received).ok_or_else(|| Failure::new(Reason::Unavailable, format!("{server}: it does not know the time itself (not synchronised)")))
}

/// Works out the offset of an answer, RFC 4330 §5; nothing where the server has no time.
fn offset_of(answer: &[u8; PACKET], sent: Timestamp, received: Timestamp) -> Option<f64> {
    let (unsynchronised, stratum) = (answer[0] >> 6 == 3, answer[1]);
    let time = |at: usize| {
        let part = |at: usize| answer.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map(u32::from_be_bytes);
        let (seconds, fraction) = (part(at)?, part(at + 4)?);
        // The 32 bits of seconds begin anew in 2036.
        let era = if seconds & 0x8000_0000 == 0 { 4_294_967_296.0 } else { 0.0 };
        Some(f64::from(seconds) + era - NTP_EPOCH + f64::from(fraction) / 4_294_967_296.0)
    };
    let (their_receipt, their_answer) = (time(32)?, time(40)?);
    let theirs = f64::midpoint(their_receipt, their_answer);
    let ours = f64::midpoint(sent.as_secs_f64(), received.as_secs_f64());
    (!unsynchronised && stratum != 0 && stratum < 16).then_some(ours - theirs)
}

/// Reads the date of a page.
fn seconds_of_date(date: &str) -> Option<f64> {
    Some(jiff::fmt::rfc2822::parse(date).ok()?.timestamp().as_millisecond() as f64 / 1000.0)
}

async fn by_page(url: &Url, rec: &mut Recorder) -> Result<f64, Failure> {
    rec.waiting(Reason::AnswerTimeout, format!("waiting for the date of {url}"));
    let sent = tasks::wall_now();
    let request = Request { method: Method::HEAD, ..Request::get(url.clone()) };
    let answer = http::send(&request, &Trust::system(), 4096, &mut Seen::default())
        .await
        .map_err(|error| Failure::new(error.reason(), format!("{url}: {}", net::chain(&error))))?;
    let received = tasks::wall_now();
    let date = answer.header("date").unwrap_or("");
    let theirs = seconds_of_date(date).ok_or_else(|| Failure::new(Reason::Protocol, format!("{url}: expected a Date, found {date:?}")))?;
    // The date is cut to whole seconds.
    Ok(f64::midpoint(sent.as_secs_f64(), received.as_secs_f64()) - (theirs + 0.5))
}

#[cfg(fuzzing)]
impl crate::fuzzing::Parsers {
    /// An answer of NTP, and the date of a page.
    pub fn clock(bytes: &[u8]) {
        let now = Timestamp::from_secs(1_800_000_000);
        if let Some(offset) = bytes.first_chunk().and_then(|answer| offset_of(answer, now, now)) {
            assert!(offset.is_finite());
        }
        seconds_of_date(&String::from_utf8_lossy(bytes));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_of_ntp_gives_the_offset_over_the_change_of_2036_too() {
        let answer = |leap: u8, stratum: u8, seconds: u32| {
            let mut packet = [0u8; PACKET];
            (packet[0], packet[1]) = (leap << 6 | 0x24, stratum);
            for at in [32, 40] {
                packet[at..at + 4].copy_from_slice(&seconds.to_be_bytes());
                packet[at + 4..at + 8].copy_from_slice(&0x8000_0000u32.to_be_bytes());
            }
            packet
        };
        // 2026-03-01T00:00:00Z and half a second.
        let at = Timestamp::from_secs(1_772_323_200);
        let ntp = u32::try_from(1_772_323_200i64 + 2_208_988_800).expect("before 2036");
        assert_eq!(offset_of(&answer(0, 2, ntp), at, at + Duration::from_secs(1)), Some(0.0));
        assert_eq!(offset_of(&answer(0, 2, ntp - 60), at, at + Duration::from_secs(1)), Some(60.0));
        assert_eq!(offset_of(&answer(3, 2, ntp), at, at), None);
        assert_eq!(offset_of(&answer(0, 0, ntp), at, at), None, "a kiss of death");
        // 2036-02-07T06:28:16Z is second 0 of the next era.
        let at = Timestamp::from_secs(2_085_978_496);
        assert_eq!(offset_of(&answer(0, 1, 0), at, at + Duration::from_secs(1)), Some(0.0));
    }
}
