//! The last samples of every series, in memory, as long as the loaded rules look back.
//!
//! It has no clock: the present is the newest sample it took. A sample costs 16 bytes and at most a quarter more.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use crate::metrics::Metrics;
use crate::model::labels::NAME;
use crate::model::{Labels, MatchOp, Matcher, Timestamp};

/// The least that is kept, whatever the rules ask for: queries by people and the five minutes of an instant selector.
pub const MIN_LOOK_BACK: Duration = Duration::from_secs(10 * 60);
/// The most that is kept: a rule that looks further back is refused at load.
pub const MAX_LOOK_BACK: Duration = Duration::from_secs(6 * 3600);
/// Kept beyond the look-back, for rules that are evaluated a little late or with `query_offset`.
const SLACK: Duration = Duration::from_secs(60);
/// How often, by the time of the samples, series that nobody writes any more are looked through.
const SWEEP: Duration = Duration::from_secs(60);

/// The value that marks the end of a series: Prometheus' stale NaN, distinct from an ordinary NaN by its bits.
pub const STALE: f64 = f64::from_bits(0x7ff0_0000_0000_0002);

/// Says whether a value is the stale marker.
pub fn is_stale(value: f64) -> bool {
    value.to_bits() == STALE.to_bits()
}

/// How much the window holds at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Series; samples of further ones are dropped and counted.
    pub series: usize,
    /// Samples in all (16 to 20 bytes each); beyond, a series loses its oldest sample for each new one.
    pub samples: usize,
}

/// Series beside those of the targets: Proctor's own, what rules record, one probe with very many.
const SERIES: usize = 50_000;
/// Series for each target.
const SERIES_PER_TARGET: usize = 30;
/// The most series, whatever the number of targets.
const MAX_SERIES: usize = 200_000;

impl Limits {
    /// Returns the limits for so many targets. A series with a sample every 15 s costs 2.2 KiB at the least look-back, its
    /// share of the target and of `/metrics` included (docs/performance.md): at most 110 MiB where there are few targets,
    /// 440 MiB where there are 5,000 and more.
    pub fn for_targets(targets: usize) -> Self {
        Self { series: targets.saturating_mul(SERIES_PER_TARGET).saturating_add(SERIES).min(MAX_SERIES), samples: 8_000_000 }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self::for_targets(0)
    }
}

/// The samples of one series, oldest first, as (milliseconds since the epoch, value); see [`is_stale`].
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    /// Its labels with `__name__`.
    pub labels: Labels,
    /// Its samples, stale markers among them.
    pub samples: Vec<(i64, f64)>,
}

/// The last samples of every series. Clones share the same samples.
#[derive(Clone, Debug)]
pub struct Window {
    table: Arc<RwLock<Table>>,
    metrics: Arc<Metrics>,
}

#[derive(Debug)]
struct Stored {
    labels: Labels,
    samples: VecDeque<(i64, f64)>,
    /// Who gave the newest sample; 0 is nobody in particular ([`Window::append`]).
    owner: u32,
    /// The number of the [`Window::accept`] that gave the newest sample.
    turn: u64,
}

#[derive(Debug, Default)]
struct Owner {
    number: u32,
    /// What it gave last time, by slot.
    series: Vec<u32>,
}

#[derive(Debug)]
struct Table {
    limits: Limits,
    look_back: Duration,
    slots: Vec<Option<Stored>>,
    free: Vec<u32>,
    by_labels: HashMap<Labels, u32>,
    by_name: HashMap<Box<str>, Vec<u32>>,
    owners: HashMap<Box<str>, Owner>,
    last_owner: u32,
    turn: u64,
    samples: usize,
    first_at: Option<Timestamp>,
    newest: Timestamp,
    next_sweep: Timestamp,
}

impl Window {
    /// Begins without samples, looking back [`MIN_LOOK_BACK`].
    pub fn new(limits: Limits, metrics: Arc<Metrics>) -> Self {
        Self::looking_back(MIN_LOOK_BACK, limits, metrics)
    }

    /// Begins without samples and drops none for its age: for the unit tests of rules, which bound what they give it.
    pub fn of_all_time(limits: Limits, metrics: Arc<Metrics>) -> Self {
        Self::looking_back(Duration::MAX, limits, metrics)
    }

    fn looking_back(look_back: Duration, limits: Limits, metrics: Arc<Metrics>) -> Self {
        let table = Table {
            limits,
            look_back,
            slots: Vec::new(),
            free: Vec::new(),
            by_labels: HashMap::new(),
            by_name: HashMap::new(),
            owners: HashMap::new(),
            last_owner: 0,
            turn: 0,
            samples: 0,
            first_at: None,
            newest: Timestamp(i64::MIN),
            next_sweep: Timestamp(i64::MIN),
        };
        Self { table: Arc::new(RwLock::new(table)), metrics }
    }

    /// Sets how much it holds at most; what it holds already stays.
    pub fn set_limits(&self, limits: Limits) {
        self.write(|table| {
            table.limits = limits;
            0
        });
    }

    /// Sets how long samples are kept, at least [`MIN_LOOK_BACK`], at most [`MAX_LOOK_BACK`]; older ones are dropped now.
    pub fn set_look_back(&self, look_back: Duration) {
        self.write(|table| {
            table.look_back = look_back.clamp(MIN_LOOK_BACK, MAX_LOOK_BACK);
            table.sweep();
            table.slots.iter_mut().flatten().for_each(|stored| stored.samples.shrink_to_fit());
            0
        });
    }

    /// Takes the samples of one target's run at one moment; a series that the target gave last time and not now gets a
    /// stale marker. The labels carry `__name__`. Of two samples of a series at one moment the last wins; one older than
    /// the newest is refused.
    pub fn accept(&self, owner: &str, at: Timestamp, series: impl IntoIterator<Item = (Labels, f64)>) {
        self.write(|table| {
            let mut of = table.owners.remove(owner).unwrap_or_else(|| {
                table.last_owner += 1;
                Owner { number: table.last_owner, series: Vec::new() }
            });
            table.turn += 1;
            let (mut dropped, before) = (0, of.series.len());
            for (labels, value) in series {
                match table.append(labels, at, value, of.number) {
                    Some(slot) => of.series.push(slot),
                    None => dropped += 1,
                }
            }
            for slot in of.series.drain(..before) {
                table.end(slot, of.number, at);
            }
            table.owners.insert(owner.into(), of);
            dropped
        });
    }

    /// Marks all series of a target as ended: it is gone, or its result is too old to be believed.
    pub fn forget_owner(&self, owner: &str, at: Timestamp) {
        self.write(|table| {
            let Some(of) = table.owners.remove(owner) else { return 0 };
            table.turn += 1;
            for slot in of.series {
                table.end(slot, of.number, at);
            }
            0
        });
    }

    /// Takes one sample that belongs to no target: what a recording rule computed, `ALERTS`. Write [`STALE`] to end it.
    pub fn append(&self, labels: Labels, at: Timestamp, value: f64) {
        self.write(|table| usize::from(table.append(labels, at, value, 0).is_none()));
    }

    /// Returns the samples after `after` and up to `until` of every series that matches and has any there; stale markers
    /// are among them, since only the reader knows what an end means to it.
    pub fn select(&self, matchers: &[Matcher], after: Timestamp, until: Timestamp) -> Vec<Series> {
        let mut found = Vec::new();
        self.read(matchers, |stored| {
            let from = stored.samples.partition_point(|(at, _)| *at <= after.0);
            let to = stored.samples.partition_point(|(at, _)| *at <= until.0);
            if from < to {
                found.push(Series { labels: stored.labels.clone(), samples: stored.samples.range(from..to).copied().collect() });
            }
        });
        found
    }

    /// Returns the newest sample after `after` and up to `until` of every series that matches, unless it is a stale
    /// marker: what an instant selector sees.
    pub fn select_newest(&self, matchers: &[Matcher], after: Timestamp, until: Timestamp) -> Vec<(Labels, i64, f64)> {
        let mut found = Vec::new();
        self.read(matchers, |stored| {
            let to = stored.samples.partition_point(|(at, _)| *at <= until.0);
            if let Some((at, value)) = to.checked_sub(1).and_then(|index| stored.samples.get(index)).copied()
                && at > after.0
                && !is_stale(value)
            {
                found.push((stored.labels.clone(), at, value));
            }
        });
        found
    }

    /// Returns how many series a selection has to look at, whether or not they match: what it costs.
    pub fn candidates(&self, matchers: &[Matcher]) -> usize {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        match fixed_name(matchers) {
            Some(name) => table.by_name.get(name).map_or(0, Vec::len),
            None => table.slots.len(),
        }
    }

    /// Returns the moment of the first sample ever taken: before it nothing is known.
    pub fn first_at(&self) -> Option<Timestamp> {
        self.table.read().unwrap_or_else(PoisonError::into_inner).first_at
    }

    /// Returns how many series have samples.
    pub fn series_count(&self) -> usize {
        self.table.read().unwrap_or_else(PoisonError::into_inner).by_labels.len()
    }

    /// Changes the table, then the metrics; `change` returns how many samples it had to drop.
    fn write(&self, change: impl FnOnce(&mut Table) -> usize) {
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        let dropped = change(&mut table);
        if table.newest >= table.next_sweep {
            table.sweep();
        }
        self.metrics.window_series.set(i64::try_from(table.by_labels.len()).unwrap_or(i64::MAX));
        drop(table);
        if dropped > 0 {
            self.metrics.window_samples_dropped.inc_by(dropped as u64);
        }
    }

    fn read(&self, matchers: &[Matcher], mut each: impl FnMut(&Stored)) {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        let mut visit = |stored: &Stored| {
            if matchers.iter().all(|matcher| matcher.matches(&stored.labels)) {
                each(stored);
            }
        };
        match fixed_name(matchers) {
            Some(name) => {
                let slots = table.by_name.get(name).map_or(&[][..], Vec::as_slice);
                slots.iter().filter_map(|slot| table.slots[*slot as usize].as_ref()).for_each(&mut visit);
            }
            None => table.slots.iter().flatten().for_each(&mut visit),
        }
    }
}

/// Returns the metric's name where the matchers leave no choice.
fn fixed_name(matchers: &[Matcher]) -> Option<&str> {
    let name = matchers.iter().find(|matcher| matcher.name == NAME && matcher.op == MatchOp::Equal && !matcher.value.is_empty());
    name.map(|matcher| matcher.value.as_str())
}

impl Table {
    /// Takes one sample and returns its slot; nothing where there is no room. One older than the newest changes nothing.
    fn append(&mut self, labels: Labels, at: Timestamp, value: f64, owner: u32) -> Option<u32> {
        let slot = match self.by_labels.get(&labels) {
            Some(slot) => *slot,
            None if self.by_labels.len() >= self.limits.series || self.samples >= self.limits.samples => return None,
            None => self.insert(labels),
        };
        let oldest = (self.newest.max(at) - self.look_back - SLACK).0;
        let stored = self.slots[slot as usize].as_mut()?;
        let samples = &mut stored.samples;
        match samples.back_mut() {
            Some((last, _)) if *last > at.0 => {
                // A run that comes late has still given the series: it has not ended.
                stored.turn = self.turn;
                return Some(slot);
            }
            Some((last, have)) if *last == at.0 => *have = value,
            _ => {
                let before = samples.len();
                while samples.front().is_some_and(|(at, _)| *at < oldest) {
                    samples.pop_front();
                }
                self.samples -= before - samples.len();
                if self.samples >= self.limits.samples && samples.pop_front().is_some() {
                    self.samples -= 1;
                }
                if samples.len() == samples.capacity() {
                    samples.reserve_exact((samples.len() / 4).max(4));
                }
                samples.push_back((at.0, value));
                self.samples += 1;
            }
        }
        (stored.owner, stored.turn) = (owner, self.turn);
        self.newest = self.newest.max(at);
        self.first_at.get_or_insert(at);
        Some(slot)
    }

    fn insert(&mut self, labels: Labels) -> u32 {
        let stored = Stored { labels: labels.clone(), samples: VecDeque::new(), owner: 0, turn: 0 };
        let slot = self.free.pop().unwrap_or(u32::try_from(self.slots.len()).unwrap_or(u32::MAX));
        match self.slots.get_mut(slot as usize) {
            Some(free) => *free = Some(stored),
            None => self.slots.push(Some(stored)),
        }
        self.by_name.entry(labels.get(NAME).unwrap_or("").into()).or_default().push(slot);
        self.by_labels.insert(labels, slot);
        slot
    }

    /// Writes the stale marker, unless somebody else gives the series by now or this turn gave it.
    fn end(&mut self, slot: u32, owner: u32, at: Timestamp) {
        let turn = self.turn;
        let Some(stored) = self.slots.get(slot as usize).and_then(Option::as_ref) else { return };
        if stored.owner != owner || stored.turn == turn || stored.samples.back().is_none_or(|(_, value)| is_stale(*value)) {
            return;
        }
        // The last value stays: its end comes a moment after it.
        let after_last = stored.samples.back().map_or(at.0, |(last, _)| last.saturating_add(1));
        self.append(stored.labels.clone(), Timestamp(at.0.max(after_last)), STALE, owner);
    }

    /// Drops what is too old, and series of which nothing is left.
    fn sweep(&mut self) {
        let oldest = (self.newest - self.look_back - SLACK).0;
        let mut gone = HashSet::new();
        for (index, slot) in self.slots.iter_mut().enumerate() {
            let Some(stored) = slot else { continue };
            let before = stored.samples.len();
            stored.samples.drain(..stored.samples.partition_point(|(at, _)| *at < oldest));
            self.samples -= before - stored.samples.len();
            // A stale marker alone says nothing that its absence does not say.
            if stored.samples.iter().all(|(_, value)| is_stale(*value)) {
                self.samples -= stored.samples.len();
                self.by_labels.remove(&stored.labels);
                gone.insert(Box::<str>::from(stored.labels.get(NAME).unwrap_or("")));
                *slot = None;
                self.free.push(u32::try_from(index).unwrap_or(u32::MAX));
            }
        }
        for name in gone {
            if let Some(of) = self.by_name.get_mut(&name) {
                of.retain(|slot| self.slots[*slot as usize].is_some());
                if of.is_empty() {
                    self.by_name.remove(&name);
                }
            }
        }
        self.next_sweep = self.newest + SWEEP;
    }
}
