//! The result as tables, and as JSON.

use std::{fs, path::PathBuf};

use serde_json::{Value, json};

use crate::comparison::{Comparison, Spread};

/// What was measured so far.
pub(crate) struct Report {
    json: PathBuf,
    measured: Vec<Value>,
    summary: Vec<String>,
}

impl Report {
    pub(crate) fn new(json: PathBuf) -> Self {
        Self { json, measured: Vec::new(), summary: Vec::new() }
    }

    /// Prints a comparison, and writes all so far, so that a run that is stopped loses nothing.
    pub(crate) fn add(&mut self, comparison: &Comparison) {
        println!("{}", table(comparison));
        self.measured.push(comparison.to_json());
        self.summary.push(row(comparison));
        let cores = std::thread::available_parallelism().map_or(0, usize::from);
        let program = crate::ours::program();
        let all = json!({"cores": cores, "program": program, "rows": self.measured});
        fs::write(&self.json, format!("{all:#}\n")).expect("the JSON file is written");
    }

    /// Prints one line for each comparison.
    pub(crate) fn finish(self) {
        if !self.summary.is_empty() {
            println!("| row | database | share: median (least to most) |\n|---|---|---|");
            println!("{}\n\nwritten: {}", self.summary.join("\n"), self.json.display());
        }
    }
}

fn table(comparison: &Comparison) -> String {
    let Comparison { name, database, ours, rounds, .. } = comparison;
    let peer = comparison.peer.unwrap_or("-");
    let line = |name: &String| {
        let compared = comparison.shares.contains(&name.as_str());
        let share = compared.then(|| comparison.share(name)).flatten();
        let ours = shown(comparison.of_ours(name));
        let peer = shown(comparison.of_peer(name));
        format!("| {name} | {ours} | {peer} | {} |", share.as_ref().map_or(String::new(), spread))
    };
    let lines: Vec<String> = comparison.names().iter().map(line).collect();
    format!(
        "{name}, {}, {} rounds\n\n| median | {ours} | {peer} | share: median (least to most) |\n\
         |---|---|---|---|\n{}\n",
        database.name(),
        rounds.len(),
        lines.join("\n")
    )
}

fn row(comparison: &Comparison) -> String {
    let figure = |name: &&'static str| match comparison.peer {
        Some(_) => {
            format!("{name}: {}", comparison.share(name).as_ref().map_or(String::new(), spread))
        }
        None => format!("{name}: {}, no share", shown(comparison.of_ours(name))),
    };
    let figures: Vec<String> = comparison.shares.iter().map(figure).collect();
    format!("| {} | {} | {} |", comparison.name, comparison.database.name(), figures.join("; "))
}

fn spread(Spread { median, least, most }: &Spread) -> String {
    format!("{median:.2} ({least:.2} to {most:.2})")
}

fn shown(value: Option<f64>) -> String {
    match value {
        None => String::new(),
        Some(value) if value.abs() >= 100.0 => format!("{value:.0}"),
        Some(value) => format!("{value:.2}"),
    }
}
