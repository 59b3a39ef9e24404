//! The seed tree: every generator of a run is derived from one number.

use std::fmt;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::{ClientId, RoundIndex};

/// A node of the seed tree, 256 bits.
///
/// Children are derived with a counter-based generator keyed by the parent, so that the seed of (purpose, round,
/// client) does not depend on the order of derivation, on other clients or on thread timing. Different paths give
/// independent seeds.
///
/// # Examples
///
/// ```
/// use fedburn_core::{ClientId, Purpose, RoundIndex, Seed};
/// let run = Seed::new(7);
/// let a = run.purpose(Purpose::Training).round(RoundIndex(3)).client(ClientId(5));
/// let b = run.purpose(Purpose::Training).round(RoundIndex(3)).client(ClientId(6));
/// assert_ne!(a, b);
/// assert_eq!(a, Seed::new(7).purpose(Purpose::Training).round(RoundIndex(3)).client(ClientId(5)));
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Seed([u8; 32]);

/// What randomness is used for. The numbers are part of every run's identity and may never change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Purpose {
    /// Initial weights.
    Initialisation = 1,
    /// Splitting the data among clients.
    Partition = 2,
    /// Choosing the cohort.
    Sampling = 3,
    /// Batch order and local noise.
    Training = 4,
    /// Which clients can be reached, which fail.
    Availability = 5,
    /// Randomness inside a strategy.
    Strategy = 6,
    /// Making synthetic data.
    Data = 7,
    /// Baselines that run beside the federation.
    Baseline = 8,
    /// Choosing examples to evaluate on.
    Evaluation = 9,
    /// Simulated attacks.
    Attack = 10,
    /// Rounding what is sent.
    Compression = 11,
}

/// Which kind of child a derivation makes; keeps purpose 3, round 3 and client 3 apart.
#[derive(Clone, Copy)]
enum Branch {
    Purpose = 1,
    Round = 2,
    Client = 3,
    Index = 4,
}

impl Seed {
    /// The root of a run's seed tree.
    pub fn new(seed: u64) -> Self {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&seed.to_le_bytes());
        bytes[8..23].copy_from_slice(b"fedburn seed v1");
        Self(bytes)
    }

    /// The child for one use of randomness.
    pub fn purpose(self, purpose: Purpose) -> Self {
        self.child(Branch::Purpose, purpose as u64)
    }

    /// The child for one round.
    pub fn round(self, round: RoundIndex) -> Self {
        self.child(Branch::Round, round.0)
    }

    /// The child for one client.
    pub fn client(self, client: ClientId) -> Self {
        self.child(Branch::Client, client.0)
    }

    /// The child for the `index`-th of anything else: a tensor, an epoch, an image.
    pub fn index(self, index: u64) -> Self {
        self.child(Branch::Index, index)
    }

    /// A generator that starts at this node.
    pub fn rng(self) -> ChaCha8Rng {
        ChaCha8Rng::from_seed(self.0)
    }

    /// Children come from the parent's key stream, at a block far beyond what [`Seed::rng`] reaches: branch in the
    /// block counter's top bits, value in the stream number.
    fn child(self, branch: Branch, value: u64) -> Self {
        let mut rng = self.rng();
        rng.set_stream(value);
        rng.set_word_pos((branch as u128) << 64);
        let mut bytes = [0; 32];
        rng.fill_bytes(&mut bytes);
        Self(bytes)
    }
}

impl fmt::Debug for Seed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Seed(")?;
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))?;
        write!(f, ")")
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn derived_seeds_are_pinned() {
        let seed = Seed::new(0).purpose(Purpose::Training).round(RoundIndex(1)).client(ClientId(2));
        assert_eq!(seed.rng().next_u64(), 941_013_875_811_727_900, "the seed tree is part of every published result");
    }

    #[test]
    fn the_top_bits_of_the_block_counter_keep_branches_apart() {
        let root = Seed::new(1);
        let mut seen = BTreeSet::new();
        for value in 0..1000 {
            for branch in [Branch::Purpose, Branch::Round, Branch::Client, Branch::Index] {
                assert!(seen.insert(root.child(branch, value)));
            }
        }
        assert!(!seen.contains(&root));
    }

    proptest! {
        #[test]
        fn different_paths_give_different_streams(a in any::<(u64, u64, u64)>(), b in any::<(u64, u64, u64)>()) {
            let draw = |(run, round, client)| {
                Seed::new(run).purpose(Purpose::Training).round(RoundIndex(round)).client(ClientId(client)).rng().next_u64()
            };
            prop_assert_eq!(draw(a), draw(a));
            if a != b {
                prop_assert_ne!(draw(a), draw(b));
            }
        }
    }
}
