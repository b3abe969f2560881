//! The rows, each of which is measured in its own file.

mod cost;
mod drain;
mod end_to_end;
mod endings;
mod far;
mod held;
mod under_load;

use crate::{Bench, DatabaseKind, Report, Row};

/// The clients of a row that does not say otherwise.
const CLIENTS: usize = 64;

pub(crate) async fn measure(bench: &Bench, row: Row, database: DatabaseKind, report: &mut Report) {
    match row {
        Row::UnderLoad => report.add(&under_load::compare(bench, database).await),
        Row::Drain => report.add(&drain::compare(bench, database, drain::To::Temporal).await),
        Row::Stub => report.add(&drain::compare(bench, database, drain::To::Stub).await),
        Row::Far => far::compare(bench, database, report).await,
        Row::Held => report.add(&held::compare(bench, database).await),
        Row::Cost => report.add(&cost::compare(bench, database).await),
        Row::Endings => endings::measure(bench, database, report).await,
        Row::EndToEnd => report.add(&end_to_end::compare(bench, database).await),
    }
}
