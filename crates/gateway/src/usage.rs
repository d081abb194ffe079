//! What models cost: counted from answers as they stream by, kept in a ledger, held to budgets.
//!
//! ```text
//! request ─► estimate ─► reserve (within the budget?) ─► answer ─► meter ─► settle ─► usage.jsonl
//! ```
//!
//! Invariants:
//! 1. A reservation is in the file before its request leaves; concurrent calls, also of several
//!    gateways over one file, see each other's.
//! 2. What was reserved and never settled counts as spent.
//! 3. An answer whose counts did not come is charged by its bytes, never as nothing.

mod ledger;
mod lines;
mod meter;
mod sync;

pub use ledger::{Ledger, OverBudget, Reservation, Spender, UsedUp};
pub use lines::{LedgerError, Total, day_of, totals};
pub(crate) use meter::{Meter, looks_like_sse};
pub use sync::Syncing;

use model::{AgentName, Price, SessionId, TurnId};
use serde::{Deserialize, Serialize};

/// Tokens as the provider counted them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Usage {
    /// Of the prompt, neither read from nor written to a cache.
    pub input: u64,
    /// Of the prompt, read from the provider's cache.
    #[serde(default)]
    pub cache_read: u64,
    /// Of the prompt, written to the provider's cache.
    #[serde(default)]
    pub cache_write: u64,
    /// Of the answer, hidden reasoning included.
    pub output: u64,
}

impl Usage {
    /// The whole prompt.
    #[must_use]
    pub fn prompt(&self) -> u64 {
        self.input.saturating_add(self.cache_read).saturating_add(self.cache_write)
    }

    /// Prompt and answer.
    #[must_use]
    pub fn tokens(&self) -> u64 {
        self.prompt().saturating_add(self.output)
    }

    /// Whether nothing was counted.
    #[must_use]
    pub fn is_none(&self) -> bool {
        self.tokens() == 0
    }

    /// The cost in micro-USD, rounded up.
    #[must_use]
    pub fn cost(&self, price: &Price) -> u64 {
        let parts = [
            (self.input, price.input),
            (self.cache_read, price.cached_input),
            (self.cache_write, price.cache_write),
            (self.output, price.output),
        ];
        // Counts are a provider's word: absurd ones must not overflow.
        let sum = parts
            .iter()
            .map(|&(n, each)| u128::from(n) * u128::from(each))
            .fold(0, u128::saturating_add);
        u64::try_from(sum.div_ceil(1_000_000)).unwrap_or(u64::MAX)
    }

    pub(crate) fn add(&mut self, other: &Self) {
        self.input = self.input.saturating_add(other.input);
        self.cache_read = self.cache_read.saturating_add(other.cache_read);
        self.cache_write = self.cache_write.saturating_add(other.cache_write);
        self.output = self.output.saturating_add(other.output);
    }

    /// Counts grow while an answer streams (they are repeated cumulatively): the most counts.
    pub(crate) fn keep_most(&mut self, other: &Self) {
        // A later count splits the prompt more finely, so its parts belong together.
        if other.prompt() >= self.prompt() {
            (self.input, self.cache_read, self.cache_write) =
                (other.input, other.cache_read, other.cache_write);
        }
        self.output = self.output.max(other.output);
    }
}

/// Something the owner of the installation should be told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notice {
    /// Whose doing it was.
    pub agent: AgentName,
    /// In which session.
    pub session: SessionId,
    /// In which turn, if one ran.
    pub turn: Option<TurnId>,
    /// The rule that spoke, e.g. `budget`.
    pub rule: String,
    /// What happened and what to do, for people.
    pub text: String,
}

/// Where notices go.
pub type Notices = std::sync::Arc<dyn Fn(Notice) + Send + Sync>;

/// Micro-USD as people read it.
#[must_use]
pub fn usd(micro: u64) -> String {
    let (whole, part) = (micro / 1_000_000, micro % 1_000_000);
    if part % 10_000 == 0 {
        return format!("${whole}.{:02}", part / 10_000);
    }
    format!("${whole}.{part:06}").trim_end_matches('0').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn costs_are_exact_and_rounded_up() {
        let price = Price {
            input: 3_000_000,
            cached_input: 300_000,
            cache_write: 3_750_000,
            output: 15_000_000,
        };
        let usage = Usage { input: 1000, cache_read: 10_000, cache_write: 100, output: 10 };
        assert_eq!(usage.cost(&price), 3000 + 3000 + 375 + 150);
        assert_eq!(Usage { cache_read: 1, ..Usage::default() }.cost(&price), 1);
        let most = Usage { input: u64::MAX, cache_read: 0, cache_write: 0, output: u64::MAX };
        assert_eq!(most.cost(&Price { output: u64::MAX, ..price }), u64::MAX);
        assert_eq!(
            (usd(2_000_000), usd(1_234_500), usd(7)),
            ("$2.00".into(), "$1.2345".into(), "$0.000007".into())
        );
    }
}
