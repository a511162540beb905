//! gunicorn's control socket (25.1 and later): its workers, and when each was last idle.
//!
//! Four bytes of length, the most significant first, then JSON (`gunicorn/ctl/protocol.py`). The same socket takes orders,
//! to end workers or gunicorn itself; nothing but `show` is ever sent. The connection is closed within moments: while
//! one is open gunicorn may wait for it before it makes a worker (`ctl/server.py`, `_stop_for_fork`).

use std::io;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

/// The longest answer: one of 1,000 workers has about 100 KiB.
const MAX_ANSWER: u32 = 1 << 20;

/// The most workers that are looked at.
const MAX_WORKERS: usize = 1024;

/// How long all of it may take: not so long that the question to a worker has no time left.
const LIMIT: Duration = Duration::from_secs(1);

/// What gunicorn says of its workers.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Workers {
    /// How many there are.
    pub(super) count: usize,
    /// How many there should be.
    pub(super) wanted: Option<u64>,
    /// How many were started since gunicorn was, recycled ones among them.
    pub(super) spawned: Option<u64>,
    /// Seconds since each last said that it is not busy, the smallest first: a sync worker says so between two requests,
    /// and while it waits for one at least every half of gunicorn's `timeout`.
    pub(super) quiet: Vec<f64>,
    /// gunicorn's `timeout`, in seconds.
    pub(super) timeout: Option<f64>,
}

/// Asks for the workers.
///
/// # Errors
/// It cannot be reached in time, or what it says is not of this protocol.
pub(super) async fn ask(path: &Path) -> io::Result<Workers> {
    let asked = async {
        let mut stream = UnixStream::connect(path).await?;
        let mut answers = Vec::new();
        for (id, what) in ["workers", "stats", "config"].into_iter().enumerate() {
            let question = json!({"id": id, "command": "show", "args": [what]}).to_string();
            let length = u32::try_from(question.len()).map_err(io::Error::other)?;
            stream.write_all(&[&length.to_be_bytes(), question.as_bytes()].concat()).await?;
            let length = stream.read_u32().await?;
            if length > MAX_ANSWER {
                return Err(wrong(format!("expected an answer of at most {MAX_ANSWER} bytes, found {length}")));
            }
            let mut answer = Vec::new();
            (&mut stream).take(length.into()).read_to_end(&mut answer).await?;
            let mut answer: Value = serde_json::from_slice(&answer).map_err(|error| wrong(format!("expected JSON: {error}")))?;
            if answer["status"] != "ok" {
                let said: String = answer.to_string().chars().take(100).collect();
                return Err(wrong(format!("expected status ok, found {said}")));
            }
            answers.push(answer["data"].take());
        }
        read(&answers).ok_or_else(|| wrong("expected a list of workers".to_owned()))
    };
    tokio::time::timeout(LIMIT, asked).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

fn wrong(why: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

fn read(answers: &[Value]) -> Option<Workers> {
    let [workers, stats, config] = answers else { return None };
    let list = workers["workers"].as_array()?;
    let quiet = list.iter().take(MAX_WORKERS).filter_map(|worker| worker["last_heartbeat"].as_f64().filter(|age| *age >= 0.0));
    let mut quiet: Vec<f64> = quiet.collect();
    quiet.sort_by(f64::total_cmp);
    Some(Workers {
        count: list.len(),
        wanted: stats["workers_target"].as_u64(),
        spawned: stats["workers_spawned"].as_u64(),
        quiet,
        timeout: config["timeout"].as_f64().filter(|timeout| *timeout > 0.0),
    })
}

impl Workers {
    /// Returns how many workers are certainly busy, and how long the oldest request has been at least, given how many
    /// connections workers have taken where that is known.
    ///
    /// One that was quiet for longer than half the timeout is busy. Of the others it cannot be told which are, but where
    /// so many are, the oldest is at least as old as that many-th.
    pub(super) fn busy(&self, taken: Option<usize>) -> (usize, f64) {
        let idle_at_most = self.timeout.map_or(f64::INFINITY, |timeout| timeout / 2.0 + 1.0);
        let overdue = self.quiet.iter().filter(|age| **age > idle_at_most).count();
        let busy = taken.unwrap_or(0).max(overdue).min(self.count);
        let by_rank = busy.checked_sub(1).and_then(|rank| self.quiet.get(rank)).copied().unwrap_or(0.0);
        let oldest = if overdue > 0 { self.quiet.last().copied().unwrap_or(0.0) } else { 0.0 };
        (busy, by_rank.max(oldest))
    }
}

#[cfg(fuzzing)]
impl crate::fuzzing::Parsers {
    /// What a control socket of gunicorn says: a list of the three answers.
    pub fn gunicorn(bytes: &[u8]) {
        if let Some(workers) = serde_json::from_slice::<Vec<Value>>(bytes).ok().and_then(|answers| read(&answers)) {
            assert!(workers.busy(Some(3)).0 <= workers.count);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_many_are_busy_and_for_how_long_is_never_more_than_is_certain() {
        let workers = |quiet: &[f64]| Workers { count: quiet.len(), quiet: quiet.to_vec(), timeout: Some(30.0), ..Workers::default() };
        for (quiet, taken, wanted) in [
            (&[0.1, 7.0, 14.0][..], None, (0, 0.0)),
            (&[0.1, 7.0, 14.0], Some(0), (0, 0.0)),
            (&[0.1, 7.0, 14.0], Some(1), (1, 0.1)),
            (&[0.1, 7.0, 14.0], Some(3), (3, 14.0)),
            (&[0.1, 7.0, 14.0], Some(9), (3, 14.0)),
            (&[0.1, 7.0, 29.0], Some(1), (1, 29.0)),
            (&[0.1, 7.0, 29.0], None, (1, 29.0)),
            (&[], Some(4), (0, 0.0)),
        ] {
            assert_eq!(workers(quiet).busy(taken), wanted, "{quiet:?} {taken:?}");
        }
    }

    #[test]
    fn what_gunicorn_says_is_read_leniently() {
        let read = |workers: Value, rest: Value| read(&[workers, rest.clone(), rest]);
        let worker = |age: Value| json!({"pid": 7, "age": 1, "booted": false, "aborted": false, "last_heartbeat": age});
        let list = json!({"workers": [worker(json!(9.5)), worker(Value::Null), worker(json!("x")), worker(json!(0.25)), 7], "count": 5});
        let found = read(list, json!({"workers_target": 3, "workers_spawned": "x", "timeout": 0})).unwrap();
        assert_eq!((found.count, found.quiet, found.wanted, found.spawned, found.timeout), (5, vec![0.25, 9.5], Some(3), None, None));
        assert_eq!(read(json!({"workers": {}}), json!(null)), None);
        assert_eq!(read(json!([]), json!(null)), None);
    }
}
