//! The last answers of a target as a small picture: an hour in a few cells, each bounded, whatever comes in.

use std::time::Duration;

use crate::model::{ProbeResult, Sight, Timestamp};

/// How many cells a history has: with `LEAST_SPAN` they show an hour.
pub const CELLS: usize = 40;
/// The least time of a cell; a target that is asked less often has one cell for each time.
const LEAST_SPAN: Duration = Duration::from_secs(90);

/// How a target answered during the time of one cell. Each count stops at its end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cell {
    /// Answers that were well.
    pub well: u16,
    /// Answers that failed.
    pub failed: u16,
    /// Runs that were not allowed to see anything.
    pub unseen: u16,
}

impl Cell {
    fn add(&mut self, other: Self) {
        self.well = self.well.saturating_add(other.well);
        self.failed = self.failed.saturating_add(other.failed);
        self.unseen = self.unseen.saturating_add(other.unseen);
    }
}

/// The last [`CELLS`] cells of one target: 264 bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct History {
    /// The time of a cell, in milliseconds.
    span: i64,
    /// The number of the newest cell, counted from the epoch.
    newest: i64,
    /// The newest last.
    cells: [Cell; CELLS],
}

impl History {
    /// Begins without an answer, for a target that is asked so often.
    pub fn new(interval: Duration) -> Self {
        Self { span: span(interval), newest: i64::MIN, cells: [Cell::default(); CELLS] }
    }

    /// Says whether it is drawn for a target that is asked so often.
    pub(super) fn fits(&self, interval: Duration) -> bool {
        self.span == span(interval)
    }

    /// Counts an answer.
    pub(super) fn note(&mut self, result: &ProbeResult) {
        let one = match (&result.outcome, &result.sight) {
            (Err(_), _) => Cell { failed: 1, ..Cell::default() },
            (Ok(()), Sight::Blind { .. }) => Cell { unseen: 1, ..Cell::default() },
            (Ok(()), _) => Cell { well: 1, ..Cell::default() },
        };
        self.cells = self.until(result.at);
        self.newest = self.newest.max(result.at.0.div_euclid(self.span));
        if let Some(last) = self.cells.last_mut() {
            last.add(one);
        }
    }

    /// Returns the cells up to this moment: what has not happened since the last answer is empty.
    pub fn until(&self, now: Timestamp) -> [Cell; CELLS] {
        let ahead = now.0.div_euclid(self.span).saturating_sub(self.newest).max(0);
        let gone = usize::try_from(ahead).unwrap_or(CELLS).min(CELLS);
        let mut cells = [Cell::default(); CELLS];
        cells[..CELLS - gone].copy_from_slice(&self.cells[gone..]);
        cells
    }

    /// Returns how much time all cells show together.
    pub fn shows(&self) -> Duration {
        Duration::from_millis(u64::try_from(self.span).unwrap_or_default()) * u32::try_from(CELLS).unwrap_or_default()
    }
}

/// Draws several histories as one.
pub fn merge(cells: impl IntoIterator<Item = [Cell; CELLS]>) -> [Cell; CELLS] {
    let mut all = [Cell::default(); CELLS];
    for one in cells {
        all.iter_mut().zip(one).for_each(|(sum, cell)| sum.add(cell));
    }
    all
}

fn span(interval: Duration) -> i64 {
    i64::try_from(interval.max(LEAST_SPAN).as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::model::{Failure, Reason, Target};

    fn result(at: i64, outcome: Result<(), Failure>) -> ProbeResult {
        let target = Target {
            probe: "web".into(),
            target: None,
            kind: "tcp",
            interval: Duration::from_secs(15),
            timeout: Duration::from_secs(5),
            depends_on: Arc::new([]),
        };
        ProbeResult {
            target: Arc::new(target),
            at: Timestamp::from_secs(at),
            duration: Duration::ZERO,
            outcome,
            samples: Vec::new(),
            sight: Sight::Full,
            evidence: Vec::new(),
        }
    }

    #[test]
    fn an_hour_is_forty_cells_and_silence_is_an_empty_one() {
        let mut history = History::new(Duration::from_secs(15));
        assert_eq!(history.shows(), Duration::from_secs(3600));
        for at in [900, 915, 990, 1170] {
            history.note(&result(at, if at == 915 { Err(Failure::new(Reason::Refused, "")) } else { Ok(()) }));
        }
        let cells = history.until(Timestamp::from_secs(1260));
        let seen: Vec<(u16, u16)> = cells[CELLS - 6..].iter().map(|cell| (cell.well, cell.failed)).collect();
        assert_eq!(seen, [(0, 0), (1, 1), (1, 0), (0, 0), (1, 0), (0, 0)]);
        // A clock that went back a little counts in the newest cell, and far ahead nothing is left.
        history.note(&result(1000, Ok(())));
        assert_eq!(history.until(Timestamp::from_secs(1170))[CELLS - 1].well, 2);
        assert_eq!(history.until(Timestamp::from_secs(1_000_000)), [Cell::default(); CELLS]);
        let both = merge([cells, cells]);
        assert_eq!((both[CELLS - 5].well, both[CELLS - 5].failed), (2, 2));
        // One that is asked each hour has a cell for each hour.
        assert_eq!(History::new(Duration::from_secs(3600)).shows(), Duration::from_secs(40 * 3600));
    }
}
