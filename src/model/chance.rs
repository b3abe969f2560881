//! Chance, by which processes that failed together do not retry together.

/// Returns a number in 0..1. No other code asks for one.
#[must_use]
pub fn chance() -> f64 {
    #[cfg(test)]
    if let Some(chance) = super::simulated::chance() {
        return chance;
    }
    rand::random()
}
