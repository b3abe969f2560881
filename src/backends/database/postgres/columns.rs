//! Many rows as parameters of one statement.

use diesel::{
    QueryResult,
    pg::Pg,
    query_builder::AstPass,
    serialize::ToSql,
    sql_types::{Array, HasSqlType},
};

/// Defines a row, and a table of such rows that is passed as one array for each column: the text of
/// the statement is the same for any number of rows, so it is prepared once per connection.
macro_rules! rows {
    ($(#[$attribute:meta])* $table:ident of $row:ident { $($column:ident: $type:ty as $sql:ty,)+ }) => {
        $(#[$attribute])*
        #[derive(Default)]
        pub(super) struct $table<'a> {
            $($column: Vec<$type>,)+
            lifetime: std::marker::PhantomData<&'a ()>,
        }

        /// One row.
        pub(super) struct $row<'a> {
            $(pub(super) $column: $type,)+
        }

        impl<'a> $table<'a> {
            pub(super) fn push(&mut self, row: $row<'a>) {
                $(self.$column.push(row.$column);)+
            }

            /// Writes the table: `unnest(…) AS new (…)`.
            pub(super) fn walk<'b>(
                &'b self,
                out: &mut diesel::query_builder::AstPass<'_, 'b, diesel::pg::Pg>,
            ) -> diesel::QueryResult<()> {
                out.push_sql("unnest(");
                let mut first = true;
                $(
                    $crate::backends::database::postgres::columns::bind::<$sql, _>(
                        out, &self.$column, std::mem::take(&mut first),
                    )?;
                )+
                let names = [$(stringify!($column)),+].join(", ");
                out.push_sql(&format!(") AS new ({names})"));
                Ok(())
            }
        }
    };
}

pub(super) use rows;

/// Binds a column as an array.
pub(super) fn bind<'b, T: 'static, C>(
    out: &mut AstPass<'_, 'b, Pg>,
    column: &'b C,
    first: bool,
) -> QueryResult<()>
where
    Pg: HasSqlType<Array<T>>,
    C: ToSql<Array<T>, Pg>,
{
    if !first {
        out.push_sql(", ");
    }
    out.push_bind_param::<Array<T>, _>(column)
}
