//! Decides who looks for new events: this process, the others, or both.

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::model::lanes::Slots;

/// The news of events, between the requests, the other processes and the relay of this one.
#[derive(Debug, Default)]
pub(super) struct Wakeups {
    wake: Notify,
    tell: Notify,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The slots that this process holds; `None` while it does not know.
    held: Option<Slots>,
    /// The slots with new events of which the others are not told yet.
    untold: Slots,
}

impl State {
    /// True when this process may have to deliver events of these slots.
    fn is_for_us(&self, new: &Slots) -> bool {
        self.held.is_none_or(|held| new.meets(&held))
    }

    /// True when another process may have to deliver one of them.
    fn is_for_others(&self, new: &Slots) -> bool {
        self.held.is_none_or(|held| !new.is_within(&held))
    }
}

impl Wakeups {
    /// Records the slots that this process holds, if it knows.
    pub(super) fn hold(&self, held: Option<Slots>) {
        self.state.lock().held = held;
    }

    /// Events of these slots were accepted here.
    pub(super) fn accepted(&self, new: &Slots) {
        let mut state = self.state.lock();
        if state.is_for_us(new) {
            self.wake.notify_one();
        }
        if state.is_for_others(new) {
            state.untold.extend(new);
            self.tell.notify_one();
        }
    }

    /// Another process has accepted events of these slots.
    pub(super) fn heard(&self, new: &Slots) {
        if self.state.lock().is_for_us(new) {
            self.wake.notify_one();
        }
    }

    /// Waits until this process should look for events.
    pub(super) async fn woken(&self) {
        self.wake.notified().await;
    }

    /// Waits until there is something to tell the others. Gives the slots of all events accepted
    /// since it was last asked.
    pub(super) async fn news(&self) -> Slots {
        loop {
            self.tell.notified().await;
            let news = std::mem::take(&mut self.state.lock().untold);
            if !news.is_empty() {
                return news;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    fn slots(slots: &[i32]) -> Slots {
        slots.iter().copied().collect()
    }

    /// Whether this process is woken, and what the others are told.
    fn after(wakeups: &Wakeups) -> (bool, Option<Slots>) {
        (wakeups.woken().now_or_never().is_some(), wakeups.news().now_or_never())
    }

    #[test]
    fn news_wakes_those_who_hold_its_lanes_and_nobody_else() {
        let wakeups = Wakeups::default();
        wakeups.hold(Some(slots(&[1, 17])));
        wakeups.accepted(&slots(&[17]));
        assert_eq!(after(&wakeups), (true, None), "it concerns this process alone");
        wakeups.accepted(&slots(&[2]));
        assert_eq!(after(&wakeups), (false, Some(slots(&[2]))), "it concerns others alone");
        wakeups.accepted(&slots(&[1, 2]));
        assert_eq!(after(&wakeups), (true, Some(slots(&[1, 2]))));
        wakeups.heard(&slots(&[2, 3]));
        assert_eq!(after(&wakeups), (false, None));
        wakeups.heard(&slots(&[3, 17]));
        assert_eq!(after(&wakeups), (true, None));
        wakeups.heard(&Slots::ALL);
        assert_eq!(after(&wakeups), (true, None), "the previous program does not say which");
    }

    #[test]
    fn what_is_accepted_meanwhile_is_told_at_once() {
        let wakeups = Wakeups::default();
        wakeups.hold(Some(Slots::default()));
        for slot in [5, 6, 7] {
            wakeups.accepted(&slots(&[slot]));
        }
        assert_eq!(after(&wakeups), (false, Some(slots(&[5, 6, 7]))));
        assert_eq!(after(&wakeups), (false, None));
    }

    #[test]
    fn a_process_that_does_not_know_what_it_holds_looks_and_tells() {
        let wakeups = Wakeups::default();
        wakeups.accepted(&slots(&[9]));
        assert_eq!(after(&wakeups), (true, Some(slots(&[9]))));
        wakeups.heard(&slots(&[9]));
        assert_eq!(after(&wakeups), (true, None));
        wakeups.hold(Some(Slots::ALL));
        wakeups.accepted(&slots(&[9]));
        assert_eq!(after(&wakeups), (true, None), "one that holds everything tells nobody");
    }
}
