//! Whether hosts beyond this one are reached: what the last connection to each came to, whoever asked.
//!
//! One dead host is its own trouble; when most of them, all names or the gateway fail at once, it is Proctor that cannot
//! see. [`super::net`] notes here; [`crate::mute::sight`] judges.

use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::net::Endpoint;
use crate::model::Timestamp;
use crate::tasks;

/// The most connections that are known; beyond that new ones are not noted until old ones are forgotten.
const MAX_CONTACTS: usize = 1024;
/// What was not tried for so long is forgotten.
const SPAN: Duration = Duration::from_secs(600);

tokio::task_local! {
    /// The target on whose behalf this task connects.
    static ASKER: Arc<str>;
}

/// What a connection came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Met {
    /// Something answered: that a port is closed or a name does not exist is an answer too.
    Reached,
    /// Nothing came back, or there is no way there.
    Missed,
    /// Nobody could be asked for the address of its name.
    Unresolved,
}

/// The newest connection of one asker to one port beyond this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contact {
    /// The target that asked, as it is printed; empty for the mail relay and webhooks.
    pub asker: Arc<str>,
    /// The name or address of the host.
    pub host: Arc<str>,
    /// Whether it was named, and its address had to be looked up.
    pub named: bool,
    /// What it came to.
    pub met: Met,
    /// When.
    pub at: Timestamp,
}

static CONTACTS: Mutex<BTreeMap<(Arc<str>, String), Contact>> = Mutex::new(BTreeMap::new());

/// Runs on behalf of a target: what is connected to meanwhile is noted under its name.
pub async fn on_behalf_of<F: Future>(asker: Arc<str>, run: F) -> F::Output {
    ASKER.scope(asker, run).await
}

/// Returns the newest contacts of all askers, without what is too old.
pub fn contacts(now: Timestamp) -> Vec<Contact> {
    let mut all = CONTACTS.lock().unwrap_or_else(PoisonError::into_inner);
    all.retain(|_, contact| now.since(contact.at) < SPAN);
    all.values().cloned().collect()
}

/// A connection under way. Dropped without a word, since its time was up, it counts as what it would have been then.
#[derive(Debug)]
pub(super) struct Attempt<'a> {
    to: &'a Endpoint,
    met: Option<Met>,
}

impl<'a> Attempt<'a> {
    /// Begins one; what is said to be on this host is never noted.
    pub(super) fn new(to: &'a Endpoint, at_worst: Met) -> Self {
        Self { to, met: (!to.is_local()).then_some(at_worst) }
    }

    /// Says what it came to; nothing where it says nothing about the way there.
    pub(super) fn came_to(mut self, met: Option<Met>) {
        self.met = self.met.and(met);
    }
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        let (Some(met), Endpoint::Tcp { host, .. }) = (self.met, self.to) else { return };
        let asker = ASKER.try_with(Arc::clone).unwrap_or_default();
        let key = (asker.clone(), self.to.to_string());
        let named = host.parse::<IpAddr>().is_err();
        let contact = Contact { asker, host: host.as_str().into(), named, met, at: tasks::now() };
        let mut all = CONTACTS.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() < MAX_CONTACTS || all.contains_key(&key) {
            all.insert(key, contact);
        }
    }
}

/// Says what a failed lookup came to. Of the C library's own errors Rust hands on only the text.
pub(super) fn of_lookup(error: &(dyn std::error::Error + 'static)) -> Met {
    let text = super::net::chain(error);
    // The second is musl's.
    let unasked = ["Temporary failure in name resolution", "Try again"].iter().any(|words| text.contains(words));
    if unasked { Met::Unresolved } else { Met::Reached }
}

/// Says what a failed connection came to.
pub(super) fn of_connect(error: &io::Error) -> Option<Met> {
    match error.kind() {
        io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset => Some(Met::Reached),
        _ if no_way(error) || error.kind() == io::ErrorKind::TimedOut => Some(Met::Missed),
        _ => None,
    }
}

/// Says whether the kernel knows no way to the host.
pub(super) fn no_way(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NetworkUnreachable | io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkDown)
}

/// Returns the gateway of this host if it does not even answer for its address on its own network.
pub fn silent_gateway() -> Option<String> {
    // Both are tables of the kernel, of a few lines.
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    silent(&read("/proc/net/route"), &read("/proc/net/arp"))
}

/// A gateway whose entry in the ARP table has no address (flags 0x0): it was asked for and did not answer.
fn silent(routes: &str, arp: &str) -> Option<String> {
    let gateways = routes.lines().skip(1).filter_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (destination, gateway) = (fields.get(1)?, fields.get(2)?);
        // Printed as the number that lies in memory, whose bytes are in network order.
        let gateway = u32::from_str_radix(gateway, 16).ok().filter(|gateway| *gateway != 0)?;
        (*destination == "00000000").then(|| Ipv4Addr::from(gateway.to_ne_bytes()))
    });
    let is_silent = |gateway: &Ipv4Addr| {
        let rows = arp.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>());
        let mut flags =
            rows.filter(|row| row.first().and_then(|ip| ip.parse().ok()) == Some(*gateway)).filter_map(|row| row.get(2).copied());
        flags.next().is_some_and(|flags| flags == "0x0")
    };
    // A host with two ways out sees while one of them answers.
    let all: Vec<Ipv4Addr> = gateways.collect();
    if all.iter().all(is_silent) { all.first().map(ToString::to_string) } else { None }
}

#[cfg(fuzzing)]
impl crate::fuzzing::Parsers {
    /// What the kernel says of gateways: routes, a line of `%`, neighbours.
    pub fn gateways(bytes: &[u8]) {
        let text = String::from_utf8_lossy(bytes);
        let (routes, arp) = text.split_once("\n%\n").unwrap_or((&text, &text));
        silent(routes, arp);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROUTES: &str = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\n\
                          eth0\t00000000\t0100000A\t0003\t0\t0\t0\t00000000\n\
                          eth0\t0000000A\t00000000\t0001\t0\t0\t0\t00FFFFFF\n";

    fn arp(flags: &str) -> String {
        format!(
            "IP address       HW type     Flags       HW address            Mask     Device\n\
             10.0.0.7         0x1         0x0         00:00:00:00:00:00     *        eth0\n\
             10.0.0.1         0x1         {flags}         52:54:00:12:34:56     *        eth0\n"
        )
    }

    #[cfg(target_endian = "little")]
    #[test]
    fn a_gateway_is_silent_if_it_was_asked_for_and_did_not_answer() {
        assert_eq!(silent(ROUTES, &arp("0x0")), Some("10.0.0.1".to_owned()));
        assert_eq!(silent(ROUTES, &arp("0x2")), None);
        assert_eq!(silent(ROUTES, ""), None, "nobody asked for it yet");
        assert_eq!(silent("", &arp("0x0")), None, "there is none");
    }

    #[tokio::test]
    async fn a_lookup_or_connection_that_never_ends_counts_and_what_stays_here_does_not() {
        let of = |asker: &str| {
            let all = contacts(tasks::now()).into_iter().filter(|contact| &*contact.asker == asker);
            all.map(|contact| (contact.host.to_string(), contact.met)).collect::<Vec<_>>()
        };
        let (far, here) = (Endpoint::parse("192.0.2.7:80").expect("is one"), Endpoint::parse("127.0.0.1:80").expect("is one"));
        on_behalf_of("a".into(), async { drop(Attempt::new(&far, Met::Missed)) }).await;
        on_behalf_of("b".into(), async { drop(Attempt::new(&here, Met::Missed)) }).await;
        assert_eq!((of("a"), of("b")), (vec![("192.0.2.7".to_owned(), Met::Missed)], vec![]));
        on_behalf_of("a".into(), async { Attempt::new(&far, Met::Missed).came_to(Some(Met::Reached)) }).await;
        assert_eq!(of("a"), vec![("192.0.2.7".to_owned(), Met::Reached)]);
        let said = io::Error::other("failed to lookup address information: Temporary failure in name resolution");
        assert_eq!((of_lookup(&said), of_lookup(&io::Error::other("Name or service not known"))), (Met::Unresolved, Met::Reached));
    }
}
