//! `health --watch`.

use std::time::Duration;

use serde_json::json;
use tokio::time::{MissedTickBehavior, interval};

use super::{Answer, Service};
use crate::{
    cli::{
        Format, print_while_read,
        screen::{Screen, Tone},
    },
    lifecycle::{Exit, Signals},
    model::time,
};

/// Moves the cursor to the upper left corner.
const HOME: &str = "\u{1b}[H";
/// Clears the rest of the line, left over from an earlier report.
const END_OF_LINE: &str = "\u{1b}[K\n";
/// Clears the rest of the screen.
const END_OF_SCREEN: &str = "\u{1b}[J";

/// Asks until Ctrl-C, or until the reader of the output has gone.
pub(super) async fn run(
    service: &Service,
    screen: Screen,
    format: Format,
    pause: Duration,
) -> anyhow::Result<Exit> {
    let mut signals = Signals::listen()?;
    let mut pace = interval(pause.max(Duration::from_millis(100)));
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut last = String::new();
    loop {
        let answer = tokio::select! {
            _ = signals.next() => return Ok(Exit::Clean),
            answer = async { pace.tick().await; service.ask().await } => answer,
        };
        let line = answer.as_ref().map_or_else(|cause| format!("unreachable: {cause}"), line);
        let text = match format {
            Format::Text if screen.is_terminal => frame(service, screen, &answer),
            _ if line == last => continue,
            Format::Text => format!("{} {line}\n", time::now()),
            Format::Json => in_one_line(&answer)?,
        };
        last = line;
        if !print_while_read(&text)? {
            return Ok(Exit::Clean);
        }
    }
}

fn line(answer: &Answer) -> String {
    answer.report.line()
}

fn in_one_line(answer: &Result<Answer, String>) -> anyhow::Result<String> {
    let document = match answer {
        Ok(answer) => serde_json::to_string(&answer.document)?,
        Err(cause) => {
            let unreachable =
                json!({"status": "unreachable", "error": cause, "timestamp": time::now()});
            unreachable.to_string()
        }
    };
    Ok(document + "\n")
}

fn frame(service: &Service, screen: Screen, answer: &Result<Answer, String>) -> String {
    let report = match answer {
        Ok(answer) => answer.report.text(screen, service.key.is_some()),
        Err(cause) => format!("{}  {cause}\n", screen.paint(Tone::Bad, "unreachable")),
    };
    let foot = format!("\n{} at {}, Ctrl-C ends\n", service.url, time::now());
    let text = (report + &screen.paint(Tone::Faint, &foot)).replace('\n', END_OF_LINE);
    format!("{HOME}{text}{END_OF_SCREEN}")
}
