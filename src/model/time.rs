//! Wall-clock time. Durations and deadlines are measured with `tokio::time` instead, which tests
//! can pause.

pub use jiff::Timestamp;

/// Returns the current time. No other code reads the wall clock.
///
/// Rounded to microseconds, the precision of the databases, so that a time that is stored and read
/// back equals the original.
#[must_use]
pub fn now() -> Timestamp {
    #[cfg(test)]
    if let Some(now) = super::simulated::now() {
        return from_micros(now.as_microsecond());
    }
    from_micros(Timestamp::now().as_microsecond())
}

/// Returns the time `micros` microseconds after the epoch, clamped to the representable range.
#[must_use]
pub fn from_micros(micros: i64) -> Timestamp {
    Timestamp::from_microsecond(micros).unwrap_or(if micros < 0 {
        Timestamp::MIN
    } else {
        Timestamp::MAX
    })
}
