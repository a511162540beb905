//! Ports that are open to other hosts. Those that are open at the first look are taken for meant; a new one is news.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};

use crate::client::process;
use crate::client::sock_diag::{self, Listener};
use crate::model::{Failure, Family, Reason, Sight, Target};
use crate::probe::{Looking, Probe, Recorder};
use crate::store::{Batch, Record, Store, Table};

static OPEN: Family = Family::gauge("host_open_ports", "How many TCP ports other hosts can reach, as far as this host knows");
static NEW: Family = Family::gauge("host_open_port_new", "A TCP port that other hosts can reach and that was not open at the first look");

/// The most ports that are remembered, and the most new ones that are told.
const MAX_KNOWN: usize = 1000;
const MAX_NEW: usize = 20;
/// The kernel chooses from here on (its default): which one it is says nothing, whose it is does.
const CHOSEN: u16 = 32_768;

/// What was open at the first look.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Known {
    target: String,
    ports: BTreeSet<u16>,
    /// Users with a port that the kernel chose for them.
    users: BTreeSet<u32>,
}

impl Record for Known {
    const TABLE: Table = Table::Meta;
    const PREFIX: &'static str = "host/ports/";
    fn key(&self) -> String {
        format!("{}{}", Self::PREFIX, self.target)
    }
}

pub(super) struct Ports {
    meant: Vec<u16>,
    looking: Looking,
    known: Mutex<Option<(Store, Known, bool)>>,
}

impl Ports {
    pub(super) fn new(meant: Vec<u16>) -> Self {
        Self { meant, looking: Looking::default(), known: Mutex::default() }
    }

    async fn ask(&self, rec: &mut Recorder) -> Result<(), Failure> {
        rec.waiting(Reason::AnswerTimeout, "waiting for the kernel's list of sockets");
        let open = match self.looking.at(sock_diag::listening).await? {
            Ok(listening) => of_others(listening),
            Err(error) => {
                let missing = format!("which ports are open: {error}");
                rec.sight(Sight::Blind { missing, remedy: "in Proctor's unit, add AF_NETLINK to RestrictAddressFamilies=".to_owned() });
                return Ok(());
            }
        };
        rec.set(&OPEN, open.len() as f64);
        let new: Vec<(u16, Listener)> = {
            let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            // Without a state there is no first look to compare with.
            let Some((store, known, written)) = known.as_mut() else { return Ok(()) };
            if !*written {
                *written = true;
                known.learn(&open);
                let mut batch = Batch::new();
                batch.put(known);
                // Memory has it at once; the disk's answer is not waited for.
                let _in_memory = store.commit(batch).now_or_never();
            }
            open.into_iter().filter(|(port, listener)| !self.meant.contains(port) && !known.has(*port, listener)).take(MAX_NEW).collect()
        };
        if new.is_empty() {
            return Ok(());
        }
        let mut told = Vec::new();
        for (port, listener) in new {
            rec.set_with(&NEW, &[("port", &port.to_string())], 1.0);
            let inode = u64::from(listener.inode);
            let holder = self.looking.at(move || process::holder(inode, &[])).await?;
            let user = process::user_name(listener.uid);
            told.push(holder.map_or_else(|| format!("{port} by user {user}"), |holder| format!("{port} by {holder}")));
        }
        let what = format!("open to other hosts, and was not at the first look: {}", told.join(", "));
        Err(Failure::new(Reason::Mismatch, what))
    }
}

impl Probe for Ports {
    fn run<'a>(&'a self, rec: &'a mut Recorder) -> BoxFuture<'a, Result<(), Failure>> {
        self.ask(rec).boxed()
    }

    fn remember(&mut self, target: &Target, store: &Store) {
        let empty = Known { target: target.to_string(), ..Known::default() };
        let kept = store.get::<Known>(&empty.key());
        let written = kept.is_some();
        *self.known.lock().unwrap_or_else(PoisonError::into_inner) = Some((store.clone(), kept.unwrap_or(empty), written));
    }
}

impl Known {
    fn learn(&mut self, open: &BTreeMap<u16, Listener>) {
        for (port, listener) in open.iter().take(MAX_KNOWN) {
            self.ports.insert(*port);
            if *port >= CHOSEN {
                self.users.insert(listener.uid);
            }
        }
    }

    fn has(&self, port: u16, listener: &Listener) -> bool {
        self.ports.contains(&port) || (port >= CHOSEN && self.users.contains(&listener.uid))
    }
}

/// Returns the ports that do not listen on loopback alone.
fn of_others(listening: Vec<(SocketAddr, Listener)>) -> BTreeMap<u16, Listener> {
    let open = listening.into_iter().filter(|(address, _)| !address.ip().to_canonical().is_loopback());
    open.map(|(address, listener)| (address.port(), listener)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_listens_on_loopback_is_nobodys_business_and_a_chosen_port_is_known_by_its_user() {
        let listener = |uid| Listener { queue: sock_diag::Queue::default(), inode: 1, uid };
        let at = |text: &str, uid| (text.parse::<SocketAddr>().expect(text), listener(uid));
        let open = of_others(vec![
            at("127.0.0.1:11211", 1),
            at("[::1]:25", 1),
            at("[::ffff:127.0.0.1]:26", 1),
            at("0.0.0.0:22", 0),
            at("[::]:443", 0),
            at("192.0.2.1:41234", 7),
        ]);
        assert_eq!(open.keys().copied().collect::<Vec<_>>(), [22, 443, 41_234]);
        let mut known = Known::default();
        known.learn(&open);
        assert!(known.has(22, &listener(9)) && known.has(50_000, &listener(7)));
        assert!(!known.has(50_000, &listener(9)) && !known.has(4444, &listener(7)));
    }
}
