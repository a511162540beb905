//! Which task a uuid is: only the first events of a task say its name.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};

/// The most tasks of one generation; the two together take at most 2.2 MiB. Those that end are let go, so that this is how
/// many may be waiting and running at a time.
pub(super) const GENERATION: usize = 28_000;

/// What is known of a task.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Task {
    /// The number of its name.
    pub(super) name: u16,
    /// The number of the queue that it was sent to, where somebody said so.
    pub(super) queue: Option<u16>,
    /// When it was sent to run at once, by the sender's clock, in seconds.
    pub(super) sent: Option<f64>,
}

/// Tasks that wait or run. Where there are too many, those are forgotten that nothing was heard of for longest: a
/// generation that is full becomes the old one, and what is asked for moves into the young one.
#[derive(Debug, Default)]
pub(super) struct Flying {
    young: HashMap<u128, Task>,
    old: HashMap<u128, Task>,
    hasher: RandomState,
}

impl Flying {
    /// Returns the task of this key to be changed; a new one where none is known.
    pub(super) fn entry(&mut self, key: u128, new: Task) -> &mut Task {
        let known = self.old.remove(&key).unwrap_or(new);
        if self.young.len() >= GENERATION && !self.young.contains_key(&key) {
            self.old = std::mem::replace(&mut self.young, HashMap::with_capacity(GENERATION));
        }
        self.young.entry(key).or_insert(known)
    }

    /// Returns what is known of a task.
    pub(super) fn get(&self, key: u128) -> Option<Task> {
        self.young.get(&key).or_else(|| self.old.get(&key)).copied()
    }

    /// Lets go of a task that ended, and returns what is known of it.
    pub(super) fn remove(&mut self, key: u128) -> Option<Task> {
        let old = self.old.remove(&key);
        self.young.remove(&key).or(old)
    }

    /// Returns every task.
    pub(super) fn all(&self) -> impl Iterator<Item = &Task> {
        self.young.values().chain(self.old.values())
    }

    /// Returns the uuid's own 128 bits; where an app has ids of its own, a number that stands for it.
    pub(super) fn key(&self, uuid: &str) -> u128 {
        let mut bits = 0;
        let mut digits = 0;
        for byte in uuid.bytes() {
            let digit = match byte {
                b'0'..=b'9' => byte - b'0',
                b'a'..=b'f' => byte - b'a' + 10,
                b'A'..=b'F' => byte - b'A' + 10,
                b'-' => continue,
                _ => return self.hasher.hash_one(uuid).into(),
            };
            bits = bits << 4 | u128::from(digit);
            digits += 1;
        }
        if digits == 32 { bits } else { self.hasher.hash_one(uuid).into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(name: u16) -> Task {
        Task { name, queue: None, sent: None }
    }

    #[test]
    fn what_was_asked_for_lately_is_kept_and_the_rest_is_bounded() {
        let mut flying = Flying::default();
        let kept = flying.key("kept");
        flying.entry(kept, task(1));
        for n in 0..10 * GENERATION as u128 {
            flying.entry(n, task(2));
            if n % 1000 == 0 {
                assert_eq!(*flying.entry(kept, task(9)), task(1), "{n}");
            }
        }
        assert!(flying.all().count() <= 2 * GENERATION);
        assert!(flying.young.capacity() + flying.old.capacity() <= 4 * GENERATION, "{}", flying.young.capacity());
        assert_eq!(flying.get(1), None, "it is long ago");
        let last = flying.key(&format!("{:032x}", 10 * GENERATION - 1));
        assert_eq!(flying.get(last), Some(task(2)));
        assert_eq!((flying.remove(last), flying.get(last)), (Some(task(2)), None));
    }

    #[test]
    fn a_uuid_is_its_bits_and_any_other_id_its_own() {
        let mut flying = Flying::default();
        for (name, id) in ["4bf92f35-77b3-4da6-a3ce-929d0e0e4736", "4bf92f35-77b3-4da6-a3ce-929d0e0e473", "beat", "", "é"].iter().enumerate() {
            flying.entry(flying.key(id), task(u16::try_from(name).expect("is small")));
        }
        assert_eq!(flying.all().count(), 5);
        assert_eq!(flying.get(flying.key("4BF92F3577B34DA6A3CE929D0E0E4736")), Some(task(0)));
        assert_eq!(flying.get(flying.key("é")), Some(task(4)));
    }
}
