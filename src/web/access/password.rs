//! Passwords over HTTP: one hash at a time, wrong ones counted before they cost a hash, right ones remembered.

use std::collections::{BTreeMap, HashSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use ring::rand::SecureRandom as _;
use sha2::{Digest, Sha256};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::model::Secret;
use crate::web::tries::Tries;

/// The most right passwords that are remembered, so that a scrape costs no hash; then all are forgotten.
const MAX_KNOWN: usize = 100;
/// The most requests that wait for their hash.
const MAX_WAITING: usize = 16;
/// The longest that one waits.
const WAIT: Duration = Duration::from_secs(10);
/// The longest header of which anything is decoded.
const MAX_HEADER: usize = 1024;
/// What is compared where there is no such user, so that it takes as long; its cost is put in place of the 10.
const NOBODY: (&str, &str) = ("$2b$", "$QOauhQNbBCuQDKes6eFzPeMqBSjb7Mr5DUmpZ/VcEd00UAV/LDeSi");

/// Why a request is not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::web) enum Refusal {
    /// No password, or a wrong one.
    Unauthorized,
    /// Too many wrong ones from this address.
    TooMany,
    /// Too many wait for their hash.
    Busy,
}

/// One of the users, who has shown the password.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::web) struct User(pub(in crate::web) String);

/// What is known of passwords. Clones share it.
#[derive(Clone)]
pub(in crate::web) struct Passwords(Arc<Inner>);

struct Inner {
    /// Random, so that what is remembered cannot be made from outside.
    key: [u8; 32],
    known: Mutex<HashSet<[u8; 32]>>,
    tries: Tries,
    waiting: Semaphore,
    hashing: Semaphore,
}

impl Passwords {
    /// Begins without any.
    ///
    /// # Errors
    /// The system has no randomness.
    pub(in crate::web) fn new() -> std::io::Result<Self> {
        let mut key = [0; 32];
        ring::rand::SystemRandom::new().fill(&mut key).map_err(|_| std::io::Error::other("the system gives no random bytes"))?;
        let inner = Inner {
            key,
            known: Mutex::default(),
            tries: Tries::default(),
            waiting: Semaphore::new(MAX_WAITING),
            hashing: Semaphore::new(1),
        };
        Ok(Self(Arc::new(inner)))
    }

    /// Lets a request in and says whose it is, or why not. `authorization` is the header.
    pub(in crate::web) async fn check(&self, users: &BTreeMap<String, Secret>, authorization: &str, from: IpAddr) -> Result<User, Refusal> {
        let Some((user, password)) = decode(authorization) else { return Err(Refusal::Unauthorized) };
        let cost = users.values().filter_map(|hash| hash.expose().split('$').nth(2)).max().unwrap_or("10");
        let (exists, hash) = match users.get(&user) {
            Some(hash) => (true, hash.expose().to_owned()),
            None => (false, format!("{}{cost}{}", NOBODY.0, NOBODY.1)),
        };
        let name = self.name(&user, &hash, &password);
        if exists && self.0.known.lock().unwrap_or_else(PoisonError::into_inner).contains(&name) {
            return Ok(User(user));
        }
        let spent = || self.0.tries.are_spent(from, Instant::now());
        if spent() {
            return Err(Refusal::TooMany);
        }
        let Ok(_waits) = self.0.waiting.try_acquire() else { return Err(Refusal::Busy) };
        let Ok(Ok(_alone)) = tokio::time::timeout(WAIT, self.0.hashing.acquire()).await else { return Err(Refusal::Busy) };
        // Those that came before may have used all tries up.
        if spent() {
            return Err(Refusal::TooMany);
        }
        let right = tokio::task::spawn_blocking(move || bcrypt::verify(&password, &hash).unwrap_or(false)).await.unwrap_or(false);
        if !(right && exists) {
            self.0.tries.count(from, Instant::now());
            tracing::info!(%from, "a password over HTTP was wrong");
            return Err(Refusal::Unauthorized);
        }
        let mut known = self.0.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MAX_KNOWN {
            known.clear();
        }
        known.insert(name);
        Ok(User(user))
    }

    /// Names what was right: with the hash in it, so that a changed one is asked for anew.
    fn name(&self, user: &str, hash: &str, password: &[u8]) -> [u8; 32] {
        let mut digest = Sha256::new();
        digest.update(self.0.key);
        // Each with its length: no two of them run into one another.
        for part in [user.as_bytes(), hash.as_bytes(), password] {
            digest.update((part.len() as u64).to_le_bytes());
            digest.update(part);
        }
        digest.finalize().into()
    }
}

/// Reads `Basic` and its user and password.
fn decode(authorization: &str) -> Option<(String, Vec<u8>)> {
    let (scheme, encoded) = authorization.trim().split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") || encoded.len() > MAX_HEADER {
        return None;
    }
    let bytes = base64::engine::general_purpose::STANDARD.decode(encoded.trim()).ok()?;
    let colon = bytes.iter().position(|byte| *byte == b':')?;
    Some((String::from_utf8(bytes[..colon].to_vec()).ok()?, bytes[colon + 1..].to_vec()))
}

#[cfg(fuzzing)]
impl crate::fuzzing::Parsers {
    /// `Authorization` of a reader.
    pub fn authorization(text: &str) {
        decode(text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COST: u32 = 4;

    fn users() -> BTreeMap<String, Secret> {
        let hash = |password: &str| Secret::new(bcrypt::hash(password, COST).expect("is hashed"));
        [("ann".to_owned(), hash("right:ä")), ("bob".to_owned(), hash("other"))].into()
    }

    fn basic(text: &str) -> String {
        format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(text))
    }

    #[tokio::test]
    async fn a_right_password_is_let_in_and_after_ten_wrong_ones_only_who_was_known_before() {
        let (passwords, users) = (Passwords::new().expect("there is randomness"), users());
        let [here, there] = ["10.0.0.1", "10.0.0.2"].map(|text| text.parse::<IpAddr>().expect("is one"));
        let check = |text: &'static str, from| {
            let (passwords, users) = (passwords.clone(), users.clone());
            async move { passwords.check(&users, &basic(text), from).await.map(|User(name)| name) }
        };
        assert_eq!(check("ann:right:ä", here).await, Ok("ann".to_owned()));
        for wrong in ["ann:", "ann:other", "bob:right:ä", "nobody:", "", "annright"] {
            assert_eq!(check(wrong, there).await, Err(Refusal::Unauthorized), "{wrong}");
        }
        // "", "annright" are no tries.
        for _ in 0..6 {
            assert_eq!(check("ann:wrong", there).await, Err(Refusal::Unauthorized));
        }
        assert_eq!(check("ann:wrong", there).await, Err(Refusal::TooMany));
        assert_eq!(check("bob:other", there).await, Err(Refusal::TooMany), "not even a right one costs a hash now");
        assert_eq!(check("ann:right:ä", there).await, Ok("ann".to_owned()), "a scrape that was right before goes on");
        assert_eq!(check("bob:other", here).await, Ok("bob".to_owned()), "and so does another address");
    }

    // The clock stands still while a hash is made: however slow this host is, none waits for too long.
    #[tokio::test(start_paused = true)]
    async fn what_comes_at_once_has_no_more_tries_than_what_comes_in_turn() {
        let (passwords, users) = (Passwords::new().expect("there is randomness"), users());
        let from: IpAddr = "10.0.0.1".parse().expect("is one");
        let header = basic("ann:wrong");
        let mut counts = [0; 3];
        for refusal in futures_util::future::join_all((0..40).map(|_| passwords.check(&users, &header, from))).await {
            match refusal.expect_err("is wrong") {
                Refusal::Unauthorized => counts[0] += 1,
                Refusal::TooMany => counts[1] += 1,
                Refusal::Busy => counts[2] += 1,
            }
        }
        assert_eq!(counts, [10, 6, 24], "hashed, refused after those, never waited");
    }

    #[tokio::test]
    async fn a_changed_hash_is_asked_for_anew_and_what_is_remembered_is_bounded() {
        let (passwords, mut users) = (Passwords::new().expect("there is randomness"), users());
        let from: IpAddr = "10.0.0.1".parse().expect("is one");
        assert_eq!(passwords.check(&users, &basic("bob:other"), from).await, Ok(User("bob".to_owned())));
        users.insert("bob".to_owned(), Secret::new(bcrypt::hash("new", COST).expect("is hashed")));
        assert_eq!(passwords.check(&users, &basic("bob:other"), from).await, Err(Refusal::Unauthorized));
        for _ in 0..MAX_KNOWN + 5 {
            users.insert("bob".to_owned(), Secret::new(bcrypt::hash("new", COST).expect("is hashed")));
            assert_eq!(passwords.check(&users, &basic("bob:new"), from).await, Ok(User("bob".to_owned())));
        }
        assert!(passwords.0.known.lock().expect("no panic in here").len() <= MAX_KNOWN);
    }

    #[test]
    fn what_is_compared_for_nobody_is_a_hash_of_the_same_cost() {
        use std::str::FromStr;
        for cost in ["04", "10", "12"] {
            let text = format!("{}{cost}{}", NOBODY.0, NOBODY.1);
            assert_eq!(bcrypt::HashParts::from_str(&text).expect("is one").get_cost().to_string(), cost.trim_start_matches('0'));
        }
        assert_eq!(decode(&format!("Basic {}", "A".repeat(5000))), None);
    }
}
