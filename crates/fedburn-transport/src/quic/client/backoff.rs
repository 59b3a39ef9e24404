//! How long to wait before trying again.

use std::time::Duration;

use rustls::crypto::SecureRandom;

/// Exponential back-off with full jitter: each wait is drawn evenly from nothing up to a bound that doubles, so that
/// nodes that lost their server together do not come back together.
///
/// The randomness is that of cryptography: it decides when packets are sent and nothing that a run computes.
pub(super) struct Backoff {
    base: Duration,
    cap: Duration,
    attempt: u32,
    random: &'static dyn SecureRandom,
}

impl Backoff {
    pub(super) fn new(base: Duration, cap: Duration, random: &'static dyn SecureRandom) -> Self {
        Self { base, cap, attempt: 0, random }
    }

    /// The attempt succeeded: the next wait is short again.
    pub(super) fn reset(&mut self) {
        self.attempt = 0;
    }

    /// The next wait, of at least what the other side asked for.
    pub(super) fn next(&mut self, at_least: Duration) -> Duration {
        let bound = self.base.saturating_mul(1 << self.attempt.min(MAX_DOUBLINGS)).min(self.cap);
        self.attempt = self.attempt.saturating_add(1);
        let mut bytes = [0; 4];
        // Without randomness the wait is the whole bound.
        let share = match self.random.fill(&mut bytes) {
            Ok(()) => f64::from(u32::from_le_bytes(bytes)) / f64::from(u32::MAX),
            Err(_) => 1.0,
        };
        at_least + bound.mul_f64(share)
    }
}

const MAX_DOUBLINGS: u32 = 20;

#[cfg(test)]
mod tests {
    use super::super::super::tls;
    use super::*;

    #[test]
    fn waits_grow_up_to_the_cap_and_start_again() {
        let (base, cap) = (Duration::from_millis(500), Duration::from_secs(60));
        let mut backoff = Backoff::new(base, cap, tls::provider().secure_random);
        for attempt in 0..100 {
            let bound = base.saturating_mul(1 << attempt.min(10)).min(cap);
            assert!(backoff.next(Duration::ZERO) <= bound, "attempt {attempt}");
        }
        let hint = Duration::from_secs(5);
        assert!((hint..=hint + cap).contains(&backoff.next(hint)));
        backoff.reset();
        assert!(backoff.next(Duration::ZERO) <= base);
    }
}
