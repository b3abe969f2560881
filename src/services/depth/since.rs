//! What happened since some time, which is known only later.

use std::{collections::VecDeque, time::Duration};

use tokio::time::Instant;

/// Rows are remembered together within this time.
const TOGETHER: Duration = Duration::from_millis(1);
/// The most entries; beyond it, the oldest are joined.
const MOST: usize = 20_000;

/// Numbers of rows with their times.
#[derive(Debug, Default)]
pub(super) struct Since {
    entries: VecDeque<Entry>,
    rows: i64,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    first: Instant,
    last: Instant,
    rows: i64,
}

impl Entry {
    fn join(&mut self, other: Self) {
        self.first = self.first.min(other.first);
        self.last = self.last.max(other.last);
        self.rows += other.rows;
    }
}

impl Since {
    /// All rows that are not forgotten.
    pub(super) fn rows(&self) -> i64 {
        self.rows
    }

    pub(super) fn add(&mut self, at: Instant, rows: usize) {
        let rows = i64::try_from(rows).unwrap_or(i64::MAX);
        let new = Entry { first: at, last: at, rows };
        self.rows += rows;
        match self.entries.back_mut() {
            Some(newest) if at.saturating_duration_since(newest.first) < TOGETHER => {
                newest.join(new);
            }
            _ => self.entries.push_back(new),
        }
        if self.entries.len() > MOST
            && let Some(oldest) = self.entries.pop_front()
            && let Some(next) = self.entries.front_mut()
        {
            next.join(oldest);
        }
    }

    /// Forgets the entries of whose first and last time this is true.
    pub(super) fn forget(&mut self, is_over: impl Fn((Instant, Instant)) -> bool) {
        self.entries.retain(|entry| !is_over((entry.first, entry.last)));
        self.rows = self.entries.iter().map(|entry| entry.rows).sum();
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn memory_is_bounded_and_no_row_is_forgotten_by_itself() {
        let mut since = Since::default();
        let begin = Instant::now();
        for _ in 0..MOST + 100 {
            since.add(Instant::now(), 2);
            advance(TOGETHER).await;
        }
        assert_eq!(since.entries.len(), MOST);
        assert_eq!(since.rows(), 2 * i64::try_from(MOST + 100).unwrap());
        since.forget(|(first, _)| first <= begin);
        assert_eq!(since.entries.len(), MOST - 1, "the joined entry began first");
        since.forget(|_| true);
        assert_eq!((since.rows(), since.entries.len()), (0, 0));
    }
}
