//! Clients that see the same things through different instruments.
//!
//! Examples are dealt as in [`Iid`]; client `i` of `n`, counted from 1, then sees its inputs changed at level `i / n` of
//! the maximum. Noise is the "noise-based feature distribution skew" of NIID-Bench (Li, Diao, Chen and He, "Federated
//! Learning on Non-IID Data Silos: An Experimental Study", ICDE 2022, arXiv 2102.02079, section IV-B; the level is a
//! standard deviation here). Rotated clients are those of Ghosh et al. ("An Efficient Framework for Clustered Federated
//! Learning", NeurIPS 2020, arXiv 2006.04088): 4 clients and 360 degrees give quarter turns.

use fedburn_core::{ClassId, ClientId, Seed};
use serde::{Deserialize, Serialize};

use super::{Iid, Partition, Partitioner, check_not_negative};
use crate::{PartitionError, Transform};

/// What differs between instruments.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Shift {
    /// Gaussian noise.
    Noise {
        /// Standard deviation of the last client's noise, in units of the normalised inputs; at least 0.
        max_sigma: f64,
    },
    /// Rotation.
    Rotation {
        /// Angle of the last client in degrees, counter-clockwise; any finite number.
        max_degrees: f64,
    },
}

/// Gives away all examples; sizes differ by at most one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FeatureShift {
    shift: Shift,
}

impl FeatureShift {
    /// Levels up to the maximum of `shift`.
    ///
    /// # Errors
    /// [`PartitionError::Setting`] where the maximum is out of range.
    pub fn new(shift: Shift) -> Result<Self, PartitionError> {
        match shift {
            Shift::Noise { max_sigma } => check_not_negative("max_sigma", max_sigma)?,
            Shift::Rotation { max_degrees } if max_degrees.is_finite() => (),
            Shift::Rotation { max_degrees } => {
                return Err(PartitionError::Setting {
                    field: "max_degrees",
                    value: max_degrees.to_string(),
                    expected: "a finite number".into(),
                });
            }
        }
        Ok(Self { shift })
    }
}

impl Partitioner for FeatureShift {
    fn partition(&self, labels: &[ClassId], clients: usize, seed: Seed) -> Result<Partition, PartitionError> {
        let partition = Iid.partition(labels, clients, seed.index(0))?;
        let transform = |client: usize| {
            let level = (client + 1) as f64 / clients as f64;
            match self.shift {
                Shift::Rotation { max_degrees } => Transform::Rotation { degrees: level * max_degrees },
                Shift::Noise { max_sigma } => {
                    Transform::Noise { sigma: level * max_sigma, seed: seed.index(1).client(ClientId(client as u64)) }
                }
            }
        };
        Ok(partition.with_transforms((0..clients).map(transform).collect()))
    }
}
