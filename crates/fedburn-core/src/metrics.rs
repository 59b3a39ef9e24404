//! Metrics that carry their weight, so that means are never averaged.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The name of a metric, lower-case with underscores: `accuracy`, `train_loss`.
pub type MetricName = Cow<'static, str>;

/// A weighted mean that is not divided yet: the sum of `value x weight`, and the sum of the weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Mean {
    #[serde(with = "any_float")]
    sum: f64,
    #[serde(with = "any_float")]
    weight: f64,
}

impl Mean {
    /// One value with a weight, usually the number of examples it was taken over.
    pub fn new(value: f64, weight: f64) -> Self {
        Self { sum: value * weight, weight }
    }

    /// A sum over examples and their number, for example correct predictions and examples.
    pub fn from_sum(sum: f64, weight: f64) -> Self {
        Self { sum, weight }
    }

    /// Adds both parts.
    pub fn merge(&mut self, other: Self) {
        self.sum += other.sum;
        self.weight += other.weight;
    }

    /// The mean; `None` while nothing was added.
    pub fn value(self) -> Option<f64> {
        (self.weight > 0.0).then(|| self.sum / self.weight)
    }

    /// The weight added so far.
    pub fn weight(self) -> f64 {
        self.weight
    }
}

/// Named means, sorted by name.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Metrics(BTreeMap<MetricName, Mean>);

impl Metrics {
    /// Share of examples classified correctly, in `[0, 1]`.
    pub const ACCURACY: &'static str = "accuracy";
    /// Mean loss over examples, in nats for cross-entropy.
    pub const LOSS: &'static str = "loss";
    /// Mean loss over the batches of local training, each measured before its step.
    pub const TRAIN_LOSS: &'static str = "train_loss";

    /// No metrics.
    pub fn new() -> Self {
        Self::default()
    }

    /// The same metrics with one more; merges where the name is taken.
    #[must_use]
    pub fn with(mut self, name: impl Into<MetricName>, mean: Mean) -> Self {
        self.add(name, mean);
        self
    }

    /// Adds a mean; merges where the name is taken.
    pub fn add(&mut self, name: impl Into<MetricName>, mean: Mean) {
        self.0.entry(name.into()).or_default().merge(mean);
    }

    /// Merges all of `other`.
    pub fn merge(&mut self, other: &Metrics) {
        other.0.iter().for_each(|(name, mean)| self.add(name.clone(), *mean));
    }

    /// The value of a metric.
    pub fn get(&self, name: &str) -> Option<f64> {
        self.0.get(name).and_then(|mean| mean.value())
    }

    /// Names and means, sorted by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, Mean)> {
        self.0.iter().map(|(name, mean)| (name.as_ref(), *mean))
    }

    /// Whether there is no metric.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromIterator<(MetricName, Mean)> for Metrics {
    /// The means as they are, to the last bit; of equal names the last one counts.
    fn from_iter<I: IntoIterator<Item = (MetricName, Mean)>>(means: I) -> Self {
        Self(means.into_iter().collect())
    }
}

/// Numbers as they are, and in formats for people, which may lack them (JSON does), NaN and infinities as text.
mod any_float {
    use std::fmt;

    use serde::de::{Deserializer, Error, Unexpected, Visitor};
    use serde::ser::Serializer;

    pub fn serialize<S: Serializer>(value: &f64, serializer: S) -> Result<S::Ok, S::Error> {
        if value.is_finite() || !serializer.is_human_readable() {
            serializer.serialize_f64(*value)
        } else {
            serializer.collect_str(value)
        }
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
        if deserializer.is_human_readable() {
            deserializer.deserialize_any(NumberOrText)
        } else {
            deserializer.deserialize_f64(NumberOrText)
        }
    }

    struct NumberOrText;

    impl Visitor<'_> for NumberOrText {
        type Value = f64;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a number, \"NaN\", \"inf\" or \"-inf\"")
        }

        fn visit_f64<E: Error>(self, value: f64) -> Result<f64, E> {
            Ok(value)
        }

        fn visit_u64<E: Error>(self, value: u64) -> Result<f64, E> {
            Ok(value as f64)
        }

        fn visit_i64<E: Error>(self, value: i64) -> Result<f64, E> {
            Ok(value as f64)
        }

        fn visit_str<E: Error>(self, text: &str) -> Result<f64, E> {
            match text {
                "NaN" => Ok(f64::NAN),
                "inf" => Ok(f64::INFINITY),
                "-inf" => Ok(f64::NEG_INFINITY),
                _ => Err(E::invalid_value(Unexpected::Str(text), &self)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn merging_equals_the_pooled_mean(parts in prop::collection::vec((-1e3f64..1e3, 1u32..1000), 1..20)) {
            let mut merged = Metrics::new();
            for &(value, weight) in &parts {
                merged.merge(&Metrics::new().with("m", Mean::new(value, f64::from(weight))));
            }
            let total: f64 = parts.iter().map(|&(_, w)| f64::from(w)).sum();
            let pooled = parts.iter().map(|&(v, w)| v * f64::from(w)).sum::<f64>() / total;
            prop_assert!((merged.get("m").unwrap() - pooled).abs() < 1e-9);
        }

        #[test]
        fn the_grouping_of_merges_does_not_matter(parts in prop::collection::vec((-8i32..8, 1u32..16), 2..20), cut in 1usize..19) {
            // Small integers: sums are exact, so equality is exact.
            let cut = cut.min(parts.len() - 1);
            let merge = |parts: &[(i32, u32)]| parts.iter().fold(Metrics::new(), |mut all, &(v, w)| {
                all.add("m", Mean::new(f64::from(v), f64::from(w)));
                all
            });
            let mut grouped = merge(&parts[..cut]);
            grouped.merge(&merge(&parts[cut..]));
            prop_assert_eq!(grouped, merge(&parts));
        }
    }

    #[test]
    fn nothing_added_is_no_value() {
        assert_eq!(Metrics::new().get("m"), None);
        assert_eq!(Mean::new(1.0, 0.0).value(), None);
    }

    #[test]
    fn json_keeps_numbers_that_it_has_no_sign_for() {
        let means = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 0.1].map(|sum| Mean::from_sum(sum, 3.0));
        let text = serde_json::to_string(&means).unwrap();
        assert!(text.starts_with(r#"[{"sum":"NaN","weight":3.0},{"sum":"inf""#), "{text}");
        let read: [Mean; 4] = serde_json::from_str(&text).unwrap();
        assert!(read[0].sum.is_nan());
        assert_eq!(read[1..], means[1..]);
        assert_eq!(serde_json::from_str::<Mean>(r#"{"sum":1,"weight":-0}"#).unwrap(), Mean::from_sum(1.0, 0.0));
        assert!(serde_json::from_str::<Mean>(r#"{"sum":"one","weight":1}"#).is_err());
    }
}
