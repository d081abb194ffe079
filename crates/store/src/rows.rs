//! Rows into typed values. A row that does not parse is damage, not a panic.

use rusqlite::types::{FromSql, FromSqlError, FromSqlResult, ValueRef};

/// A typed id out of a text column.
pub(crate) struct Id<T>(pub(crate) T);

impl<T: TryFrom<String>> FromSql for Id<T>
where
    T::Error: std::error::Error + Send + Sync + 'static,
{
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        let text = value.as_str()?.to_owned();
        T::try_from(text).map(Id).map_err(|e| FromSqlError::Other(Box::new(e)))
    }
}

/// Unix milliseconds and counters fit i64 for 292 million years; beyond is the caller's mistake
/// and is kept at the largest value rather than wrapped.
pub(crate) fn to_sql(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// The way back; negative values do not occur and count as zero.
pub(crate) fn from_sql(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}
