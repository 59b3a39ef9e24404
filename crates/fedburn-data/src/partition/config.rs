//! Every kind of partition by name, for config files.

use fedburn_core::{ClassId, Seed};
use serde::{Deserialize, Serialize};

use super::{
    Dirichlet, FeatureShift, Iid, InnerDirichlet, Natural, Partition, Partitioner, Pathological, QuantitySkew, Shards,
    Shift, SizeLaw,
};
use crate::PartitionError;

/// How to split a data set; `kind` chooses the rule.
///
/// # Examples
///
/// ```
/// use fedburn_core::{ClassId, Seed};
/// use fedburn_data::partition::PartitionConfig;
///
/// let config: PartitionConfig = serde_json::from_str(r#"{"kind": "shards", "clients": 10}"#)?;
/// let labels: Vec<ClassId> = (0..600).map(|i| ClassId(i % 10)).collect();
/// let partition = config.partition(&labels, None, Seed::new(0))?;
/// assert!(partition.clients().iter().all(|indices| indices.len() == 60));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum PartitionConfig {
    /// [`Iid`].
    Iid {
        /// Number of clients, at least 1.
        clients: usize,
    },
    /// [`Dirichlet`].
    Dirichlet {
        /// Number of clients, at least 1.
        clients: usize,
        /// Concentration, above 0; 0.5 unless told, as in NIID-Bench.
        #[serde(default = "half")]
        alpha: f64,
        /// Examples that every client has at least; 10 unless told, as in NIID-Bench's code.
        #[serde(default = "ten")]
        min_examples: usize,
    },
    /// [`Pathological`].
    Pathological {
        /// Number of clients, at least 1.
        clients: usize,
        /// Classes of each client; 2 unless told, the middle of NIID-Bench's 1 to 3.
        #[serde(default = "two")]
        classes_per_client: usize,
    },
    /// [`Shards`].
    Shards {
        /// Number of clients, at least 1.
        clients: usize,
        /// Shards of each client; 2 unless told, as in McMahan et al.
        #[serde(default = "two")]
        shards_per_client: usize,
    },
    /// [`QuantitySkew`].
    QuantitySkew {
        /// Number of clients, at least 1.
        clients: usize,
        /// How sizes are distributed.
        law: SizeLaw,
        /// Examples that every client has at least; 1 unless told, so that nobody is empty.
        #[serde(default = "one")]
        min_examples: usize,
    },
    /// [`Natural`].
    Natural {
        /// Number of clients; every user with enough examples unless told.
        #[serde(default)]
        clients: Option<usize>,
        /// Users with fewer examples are left out; 1 unless told.
        #[serde(default = "one")]
        min_examples: usize,
    },
    /// [`FeatureShift`].
    FeatureShift {
        /// Number of clients, at least 1.
        clients: usize,
        /// What differs between clients.
        shift: Shift,
    },
    /// [`InnerDirichlet`].
    InnerDirichlet {
        /// Number of clients, at least 1.
        clients: usize,
        /// Concentration, above 0; 0.3 unless told, as in Acar et al.
        #[serde(default = "three_tenths")]
        alpha: f64,
        /// Standard deviation of the logarithm of sizes; 0 unless told: equal sizes.
        #[serde(default)]
        sigma: f64,
        /// Examples that every client has at least; 1 unless told, so that nobody is empty.
        #[serde(default = "one")]
        min_examples: usize,
    },
}

impl PartitionConfig {
    /// The name in configs.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Iid { .. } => "iid",
            Self::Dirichlet { .. } => "dirichlet",
            Self::Pathological { .. } => "pathological",
            Self::Shards { .. } => "shards",
            Self::QuantitySkew { .. } => "quantity_skew",
            Self::Natural { .. } => "natural",
            Self::FeatureShift { .. } => "feature_shift",
            Self::InnerDirichlet { .. } => "inner_dirichlet",
        }
    }

    /// Number of clients; `None` for every natural one.
    pub fn clients(&self) -> Option<usize> {
        match *self {
            Self::Iid { clients }
            | Self::Dirichlet { clients, .. }
            | Self::Pathological { clients, .. }
            | Self::Shards { clients, .. }
            | Self::QuantitySkew { clients, .. }
            | Self::FeatureShift { clients, .. }
            | Self::InnerDirichlet { clients, .. } => Some(clients),
            Self::Natural { clients, .. } => clients,
        }
    }

    /// The rule. `user_ids` says who made each example, where the data set knows.
    ///
    /// # Errors
    /// [`PartitionError::Setting`] where a field is out of range, [`PartitionError::NoUsers`].
    pub fn build(&self, user_ids: Option<&[u64]>) -> Result<Box<dyn Partitioner>, PartitionError> {
        if let Some(clients) = self.clients() {
            super::check_clients(clients)?;
        }
        Ok(match *self {
            Self::Iid { .. } => Box::new(Iid),
            Self::Dirichlet { alpha, min_examples, .. } => Box::new(Dirichlet::new(alpha, min_examples)?),
            Self::Pathological { classes_per_client, .. } => Box::new(Pathological::new(classes_per_client)?),
            Self::Shards { shards_per_client, .. } => Box::new(Shards::new(shards_per_client)?),
            Self::QuantitySkew { law, min_examples, .. } => Box::new(QuantitySkew::new(law, min_examples)?),
            Self::Natural { min_examples, .. } => {
                Box::new(Natural::new(user_ids.ok_or(PartitionError::NoUsers)?, min_examples))
            }
            Self::FeatureShift { shift, .. } => Box::new(FeatureShift::new(shift)?),
            Self::InnerDirichlet { alpha, sigma, min_examples, .. } => {
                Box::new(InnerDirichlet::new(alpha, sigma, min_examples)?)
            }
        })
    }

    /// Builds the rule and splits with it.
    ///
    /// # Errors
    /// As [`PartitionConfig::build`] and [`Partitioner::partition`].
    pub fn partition(
        &self,
        labels: &[ClassId],
        user_ids: Option<&[u64]>,
        seed: Seed,
    ) -> Result<Partition, PartitionError> {
        let clients = match (self.clients(), self, user_ids) {
            (Some(clients), ..) => clients,
            (None, Self::Natural { min_examples, .. }, Some(ids)) => Natural::new(ids, *min_examples).num_users(),
            _ => return Err(PartitionError::NoUsers),
        };
        self.build(user_ids)?.partition(labels, clients, seed)
    }
}

fn half() -> f64 {
    0.5
}

fn three_tenths() -> f64 {
    0.3
}

fn one() -> usize {
    1
}

fn two() -> usize {
    2
}

fn ten() -> usize {
    10
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<PartitionConfig, serde_json::Error> {
        serde_json::from_str(text)
    }

    #[test]
    fn defaults_are_filled_in_and_written_out() {
        let config = parse(r#"{"kind": "dirichlet", "clients": 3}"#).unwrap();
        assert_eq!(config, PartitionConfig::Dirichlet { clients: 3, alpha: 0.5, min_examples: 10 });
        let written = serde_json::to_string(&config).unwrap();
        assert_eq!(parse(&written).unwrap(), config);
        assert!(written.contains(config.kind()));
    }

    #[test]
    fn unknown_fields_and_kinds_are_refused() {
        let error = parse(r#"{"kind": "iid", "clients": 3, "alpha": 1.0}"#).unwrap_err().to_string();
        assert!(error.contains("alpha"), "{error}");
        assert!(parse(r#"{"kind": "dirichelet", "clients": 3}"#).is_err());
        let law = r#"{"kind": "quantity_skew", "clients": 3, "law": {"kind": "power_law", "exponent": 1, "x": 2}}"#;
        assert!(parse(law).is_err());
    }

    #[test]
    fn impossible_settings_are_refused_with_field_and_value() {
        let refused = |text: &str, field: &str, value: &str| {
            let error = parse(text).unwrap().build(None).err().unwrap();
            match error {
                PartitionError::Setting { field: f, value: v, .. } => assert_eq!((f, v.as_str()), (field, value)),
                other => panic!("{other}"),
            }
        };
        refused(r#"{"kind": "iid", "clients": 0}"#, "clients", "0");
        refused(r#"{"kind": "dirichlet", "clients": 1, "alpha": -1.0}"#, "alpha", "-1");
        refused(r#"{"kind": "pathological", "clients": 1, "classes_per_client": 0}"#, "classes_per_client", "0");
        refused(r#"{"kind": "shards", "clients": 1, "shards_per_client": 0}"#, "shards_per_client", "0");
        refused(r#"{"kind": "inner_dirichlet", "clients": 1, "sigma": -0.5}"#, "sigma", "-0.5");
        let natural = parse(r#"{"kind": "natural"}"#).unwrap();
        assert_eq!(natural.build(None).err(), Some(PartitionError::NoUsers));
        assert_eq!(natural.partition(&[], None, Seed::new(0)), Err(PartitionError::NoUsers));
    }
}
