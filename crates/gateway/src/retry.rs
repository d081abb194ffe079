//! When to ask a model server again. Pure; the caller brings randomness and sleeps.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// How often and how long a model server is asked before the agent is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Requests in all, the first included.
    pub attempts_max: u32,
    /// The first pause, before jitter; doubled each time.
    pub pause: Duration,
    /// No pause is longer, unless the server asks for it.
    pub pause_max: Duration,
    /// No attempt begins later than this after the first; a `Retry-After` beyond it ends the trying
    /// at once.
    pub total_max: Duration,
}

impl Default for RetryPolicy {
    /// Four attempts within a minute: rides out a rate limit or a restart, and answers a person
    /// before they give up.
    fn default() -> Self {
        Self {
            attempts_max: 4,
            pause: Duration::from_millis(500),
            pause_max: Duration::from_secs(8),
            total_max: Duration::from_secs(60),
        }
    }
}

impl RetryPolicy {
    /// The pause before the next attempt, or `None` to give up. `attempt` counts those made,
    /// `elapsed` is the time since the first began, `random` is any number.
    pub(crate) fn next_pause(
        &self,
        attempt: u32,
        elapsed: Duration,
        asked: Option<Duration>,
        random: u64,
    ) -> Option<Duration> {
        if attempt >= self.attempts_max {
            return None;
        }
        let doubled = self.pause.saturating_mul(1 << (attempt.max(1) - 1).min(16));
        let ceiling = doubled.min(self.pause_max);
        // Jitter over the upper half: spreads the crowd, and still waits.
        let jitter = ceiling.as_millis() as u64 / 2;
        let own = ceiling - Duration::from_millis(random % (jitter + 1));
        let pause = asked.map_or(own, |asked| asked.max(own));
        (elapsed + pause <= self.total_max).then_some(pause)
    }
}

/// Whether a status is worth another attempt (also 529, Anthropic's "overloaded").
pub(crate) fn is_passing(status: u16) -> bool {
    matches!(status, 408 | 425 | 429 | 500 | 502 | 503 | 504 | 529)
}

/// `Retry-After` (RFC 9110 §10.2.3) in seconds, or `retry-after-ms`; HTTP dates are not used by
/// model servers and count as absent.
pub(crate) fn asked_pause(
    retry_after: Option<&str>,
    retry_after_ms: Option<&str>,
) -> Option<Duration> {
    let number = |text: &str| text.trim().parse::<f64>().ok().filter(|n| (0.0..1e6).contains(n));
    if let Some(ms) = retry_after_ms.and_then(number) {
        return Some(Duration::from_secs_f64(ms / 1000.0));
    }
    retry_after.and_then(number).map(Duration::from_secs_f64)
}

/// A number for jitter; quality does not matter.
pub(crate) fn jitter() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::from(now.subsec_nanos()).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 20
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_stay_jittered_and_end() {
        let policy = RetryPolicy::default();
        for random in [0, 1, 77, u64::MAX] {
            let first = policy.next_pause(1, Duration::ZERO, None, random).expect("retry");
            assert!((250..=500).contains(&first.as_millis()), "{first:?}");
            let third = policy.next_pause(3, Duration::ZERO, None, random).expect("retry");
            assert!((1000..=2000).contains(&third.as_millis()), "{third:?}");
            assert_eq!(policy.next_pause(4, Duration::ZERO, None, random), None);
        }
    }

    #[test]
    fn the_server_s_wish_is_honoured_within_the_total() {
        let policy = RetryPolicy::default();
        let asked = asked_pause(Some("7"), None);
        assert_eq!(policy.next_pause(1, Duration::ZERO, asked, 0), Some(Duration::from_secs(7)));
        let asked = asked_pause(Some("3600"), None);
        assert_eq!(policy.next_pause(1, Duration::ZERO, asked, 0), None);
        assert_eq!(asked_pause(Some("Wed, 21 Oct 2026 07:28:00 GMT"), None), None);
        assert_eq!(asked_pause(Some("-1"), Some("250")), Some(Duration::from_millis(250)));
        assert_eq!(asked_pause(Some("inf"), None), None);
    }
}
