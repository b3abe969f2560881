//! Wall-clock time. Durations and deadlines are measured with `tokio::time` instead, which tests
//! can pause.

pub use jiff::Timestamp;

/// The present moment; the one place that reads the wall clock.
///
/// Rounded to microseconds, because that is what the databases keep: a time that was stored and
/// read back equals the original.
#[must_use]
pub fn now() -> Timestamp {
    from_micros(Timestamp::now().as_microsecond())
}

/// The moment `micros` microseconds after the epoch, clamped to the representable range.
#[must_use]
pub fn from_micros(micros: i64) -> Timestamp {
    Timestamp::from_microsecond(micros).unwrap_or(if micros < 0 {
        Timestamp::MIN
    } else {
        Timestamp::MAX
    })
}
