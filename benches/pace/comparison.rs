//! Two ways to do the same work, measured in turn.

use serde_json::{Map, Value, json};

use crate::{
    DatabaseKind,
    figures::{Figures, median},
};

/// Both sides of a round.
pub(crate) struct Round {
    ours_first: bool,
    ours: Figures,
    peer: Option<Figures>,
}

/// A measured row.
pub(crate) struct Comparison {
    /// Its name, with what distinguishes it from others of the same row.
    pub(crate) name: String,
    pub(crate) database: DatabaseKind,
    pub(crate) ours: &'static str,
    /// Our side is shown as a share of this one.
    pub(crate) peer: Option<&'static str>,
    /// The figures that matter most: compared with the other side's, if there is one.
    pub(crate) shares: &'static [&'static str],
    pub(crate) rounds: Vec<Round>,
}

/// The median, the least and the greatest of the rounds.
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) least: f64,
    pub(crate) most: f64,
}

/// Measures both sides in each round, and changes the order from round to round, so that neither
/// always finds the machine as the other has left it.
pub(crate) async fn in_pairs(
    name: &str,
    rounds: usize,
    ours: impl AsyncFn() -> Figures,
    peer: impl AsyncFn() -> Figures,
) -> Vec<Round> {
    let mut measured = Vec::new();
    for round in 0..rounds {
        let ours_first = round % 2 == 0;
        let (ours, peer) = if ours_first {
            let ours = ours().await;
            (ours, peer().await)
        } else {
            let peer = peer().await;
            (ours().await, peer)
        };
        measured.push(Round { ours_first, ours, peer: Some(peer) });
        progress(name, &measured, rounds);
    }
    measured
}

/// Measures our side only.
pub(crate) async fn alone(
    name: &str,
    rounds: usize,
    ours: impl AsyncFn() -> Figures,
) -> Vec<Round> {
    let mut measured = Vec::new();
    for _ in 0..rounds {
        measured.push(Round { ours_first: true, ours: ours().await, peer: None });
        progress(name, &measured, rounds);
    }
    measured
}

/// Shows on standard error how far a row is, with the first figure of its last round.
fn progress(name: &str, measured: &[Round], rounds: usize) {
    let Some(last) = measured.last() else { return };
    let first =
        |figures: &Figures| figures.iter().next().map(|(name, value)| (name.to_owned(), value));
    let Some((figure, ours)) = first(&last.ours) else { return };
    let peer = last.peer.as_ref().and_then(first).map(|(_, value)| format!(" beside {value:.1}"));
    let (round, peer) = (measured.len(), peer.unwrap_or_default());
    eprintln!("{name}, round {round} of {rounds}: {figure} {ours:.1}{peer}");
}

impl Comparison {
    /// The names of all figures of both sides.
    pub(crate) fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = Vec::new();
        let sides = self.rounds.iter().flat_map(|round| [Some(&round.ours), round.peer.as_ref()]);
        for (name, _) in sides.flatten().flat_map(Figures::iter) {
            if !names.iter().any(|known| known == name) {
                names.push(name.to_owned());
            }
        }
        names
    }

    /// The median of a figure of our side.
    pub(crate) fn of_ours(&self, name: &str) -> Option<f64> {
        middle(self.rounds.iter().filter_map(|round| round.ours.get(name)))
    }

    /// The median of a figure of the other side.
    pub(crate) fn of_peer(&self, name: &str) -> Option<f64> {
        middle(self.rounds.iter().filter_map(|round| round.peer.as_ref()?.get(name)))
    }

    /// Our figure as a share of the other side's, in each round.
    pub(crate) fn share(&self, name: &str) -> Option<Spread> {
        let share = |round: &Round| Some(round.ours.get(name)? / round.peer.as_ref()?.get(name)?);
        let shares: Vec<f64> = self.rounds.iter().filter_map(share).collect();
        let least = shares.iter().copied().reduce(f64::min)?;
        let most = shares.iter().copied().reduce(f64::max)?;
        Some(Spread { median: median(shares), least, most })
    }

    pub(crate) fn to_json(&self) -> Value {
        let share = |name: &&'static str| {
            let Spread { median, least, most } = self.share(name)?;
            Some(((*name).to_owned(), json!({"median": median, "min": least, "max": most})))
        };
        let shares: Map<String, Value> = self.shares.iter().filter_map(share).collect();
        let rounds: Vec<Value> = self.rounds.iter().map(Round::to_json).collect();
        let (database, ours, peer) = (self.database.name(), self.ours, self.peer);
        json!({"row": self.name, "database": database, "ours": ours, "peer": peer,
            "shares": shares, "rounds": rounds})
    }
}

impl Round {
    fn to_json(&self) -> Value {
        let object = |figures: &Figures| -> Map<String, Value> {
            figures.iter().map(|(name, value)| (name.to_owned(), json!(value))).collect()
        };
        let first = if self.ours_first { "ours" } else { "peer" };
        let peer = self.peer.as_ref().map(object);
        json!({"first": first, "ours": object(&self.ours), "peer": peer})
    }
}

fn middle(values: impl Iterator<Item = f64>) -> Option<f64> {
    let values: Vec<f64> = values.collect();
    (!values.is_empty()).then(|| median(values))
}
