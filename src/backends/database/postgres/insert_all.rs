//! One statement for the events of many requests.

use super::super::{NewEvent, rows::PENDING};
use diesel::{
    QueryResult,
    pg::Pg,
    query_builder::{AstPass, QueryFragment, QueryId},
    sql_types::{Array, Integer, Text},
};

/// The columns are passed as arrays, so that the statement is the same for any number of events and
/// is prepared once per connection.
pub(super) struct InsertAll<'a> {
    lanes: Vec<i32>,
    sources: Vec<&'a str>,
    ids: Vec<&'a str>,
    content_hashes: Vec<&'a str>,
    events: Vec<&'a str>,
}

impl<'a> InsertAll<'a> {
    pub(super) fn new(events: &[&'a NewEvent]) -> Self {
        Self {
            lanes: events.iter().map(|new| new.event.lane()).collect(),
            sources: events.iter().map(|new| new.event.source.as_str()).collect(),
            ids: events.iter().map(|new| new.event.id.as_str()).collect(),
            content_hashes: events.iter().map(|new| new.fingerprint.as_str()).collect(),
            events: events.iter().map(|new| &**new.event.document()).collect(),
        }
    }
}

impl QueryFragment<Pg> for InsertAll<'_> {
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, Pg>) -> QueryResult<()> {
        out.push_sql(
            "INSERT INTO outbox \
             (lane, source, event_id, content_hash, event, state, created_at, refusals) \
             SELECT lane, source, event_id, content_hash, event, ",
        );
        out.push_bind_param::<Text, _>(PENDING)?;
        out.push_sql(", (extract(epoch FROM clock_timestamp()) * 1000000)::bigint, 0 FROM unnest(");
        out.push_bind_param::<Array<Integer>, _>(&self.lanes)?;
        for column in [&self.sources, &self.ids, &self.content_hashes] {
            out.push_sql(", ");
            out.push_bind_param::<Array<Text>, _>(column)?;
        }
        out.push_sql(", ");
        out.push_bind_param::<Array<Text>, _>(&self.events)?;
        // The sequence numbers the events in the order of the arrays.
        out.push_sql(
            ") WITH ORDINALITY AS new (lane, source, event_id, content_hash, event, place) \
             ORDER BY place",
        );
        Ok(())
    }
}

impl QueryId for InsertAll<'_> {
    type QueryId = InsertAll<'static>;

    const HAS_STATIC_QUERY_ID: bool = true;
}

#[cfg(test)]
mod tests {
    use diesel::{QueryDsl, debug_query};

    use super::{super::super::schema::outbox, *};

    /// Fails when a new column is left to its default here but not for events with a key.
    #[test]
    fn every_column_of_a_new_event_is_written() {
        let statement = debug_query::<Pg, _>(&InsertAll::new(&[])).to_string();
        let (_, written) = statement.split_once('(').unwrap();
        let written: Vec<&str> = written.split_once(')').unwrap().0.split(", ").collect();
        let table = outbox::table.select(outbox::all_columns);
        let table = debug_query::<Pg, _>(&table).to_string();
        let (selected, _) = table.split_once(" FROM ").unwrap();
        let columns = selected.split('"').filter(|part| !part.contains([' ', '.', ',']));
        let columns: Vec<&str> = columns.filter(|name| !["", "outbox"].contains(name)).collect();
        assert!(columns.len() > written.len(), "{columns:?}");
        // The number of the row, and the marks of its delivery.
        let later = ["seq", "delivered_at", "error", "position"];
        for column in columns.into_iter().filter(|column| !later.contains(column)) {
            assert!(written.contains(&column), "{column} is not in {statement}");
        }
    }
}
