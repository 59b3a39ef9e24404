//! State that survives: as named host tensors, and where a simulation keeps it.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use burn::tensor::backend::Backend;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};

use crate::{ClientId, ParamSchema, ParamVector, RoundIndex, StateError};

/// Values of one state entry.
#[derive(Clone, Debug, PartialEq)]
pub enum StateData {
    /// 32-bit floats: moments, model copies.
    F32(Vec<f32>),
    /// 64-bit floats: scalars, accumulators.
    F64(Vec<f64>),
    /// Counters.
    U64(Vec<u64>),
}

/// One named piece of state.
#[derive(Clone, Debug, PartialEq)]
pub struct StateTensor {
    /// Its shape; the product is the number of values.
    pub shape: Vec<usize>,
    /// Its values.
    pub data: StateData,
}

impl StateTensor {
    fn describe(&self) -> String {
        let kind = match self.data {
            StateData::F32(_) => "f32",
            StateData::F64(_) => "f64",
            StateData::U64(_) => "u64",
        };
        format!("{kind} {:?}", self.shape)
    }
}

/// The state of a strategy or a client as named host tensors, sorted by name. It is consumed entry by entry on
/// restoring, so that anything left over is noticed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StateDict(BTreeMap<String, StateTensor>);

impl StateDict {
    /// No state.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether there is no entry.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Names and entries, sorted by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &StateTensor)> {
        self.0.iter().map(|(name, tensor)| (name.as_str(), tensor))
    }

    /// Sets an entry.
    pub fn insert(&mut self, name: impl Into<String>, tensor: StateTensor) {
        self.0.insert(name.into(), tensor);
    }

    /// Sets a flat parameter vector.
    pub fn insert_params<B: Backend>(&mut self, name: impl Into<String>, params: &ParamVector<B>) {
        self.insert(name, StateTensor { shape: vec![params.num_values()], data: StateData::F32(params.to_host()) });
    }

    /// Sets one number.
    pub fn insert_f64(&mut self, name: impl Into<String>, value: f64) {
        self.insert(name, StateTensor { shape: vec![1], data: StateData::F64(vec![value]) });
    }

    /// Sets one counter.
    pub fn insert_u64(&mut self, name: impl Into<String>, value: u64) {
        self.insert(name, StateTensor { shape: vec![1], data: StateData::U64(vec![value]) });
    }

    /// Takes an entry out.
    ///
    /// # Errors
    /// [`StateError::Missing`].
    pub fn take(&mut self, name: &str) -> Result<StateTensor, StateError> {
        self.0.remove(name).ok_or_else(|| StateError::Missing { name: name.to_owned() })
    }

    /// Takes a flat parameter vector out.
    ///
    /// # Errors
    /// [`StateError::Missing`], [`StateError::Shape`] where it is not as long as `schema` says.
    pub fn take_params<B: Backend>(
        &mut self,
        name: &str,
        schema: &Arc<ParamSchema>,
        device: &B::Device,
    ) -> Result<ParamVector<B>, StateError> {
        let tensor = self.take(name)?;
        let found = tensor.describe();
        let wrong =
            || StateError::Shape { name: name.to_owned(), expected: format!("f32 [{}]", schema.num_values()), found };
        match tensor.data {
            StateData::F32(values) => ParamVector::from_host(values, schema.clone(), device).map_err(|_| wrong()),
            _ => Err(wrong()),
        }
    }

    /// Takes one number out.
    ///
    /// # Errors
    /// [`StateError::Missing`], [`StateError::Shape`].
    pub fn take_f64(&mut self, name: &str) -> Result<f64, StateError> {
        let tensor = self.take(name)?;
        match &tensor.data {
            StateData::F64(values) if values.len() == 1 => Ok(values[0]),
            _ => Err(StateError::Shape {
                name: name.to_owned(),
                expected: "f64 [1]".to_owned(),
                found: tensor.describe(),
            }),
        }
    }

    /// Takes one counter out.
    ///
    /// # Errors
    /// [`StateError::Missing`], [`StateError::Shape`].
    pub fn take_u64(&mut self, name: &str) -> Result<u64, StateError> {
        let tensor = self.take(name)?;
        match &tensor.data {
            StateData::U64(values) if values.len() == 1 => Ok(values[0]),
            _ => Err(StateError::Shape {
                name: name.to_owned(),
                expected: "u64 [1]".to_owned(),
                found: tensor.describe(),
            }),
        }
    }

    /// Moves the entries whose names begin with `prefix` and a dot into a dict of their own, the prefix removed; a
    /// wrapper keeps its base's state so.
    pub fn split_off(&mut self, prefix: &str) -> Self {
        let (inside, outside) = std::mem::take(&mut self.0)
            .into_iter()
            .partition(|(name, _)| name.strip_prefix(prefix).is_some_and(|rest| rest.starts_with('.')));
        self.0 = outside;
        let inside: BTreeMap<String, StateTensor> = inside;
        Self(inside.into_iter().map(|(name, tensor)| (name[prefix.len() + 1..].to_owned(), tensor)).collect())
    }

    /// Takes in the entries of `inner`, their names behind `prefix` and a dot.
    pub fn nest(&mut self, prefix: &str, inner: Self) {
        self.0.extend(inner.0.into_iter().map(|(name, tensor)| (format!("{prefix}.{name}"), tensor)));
    }

    /// Succeeds where nothing is left.
    ///
    /// # Errors
    /// [`StateError::Unexpected`] with the first entry's name.
    pub fn expect_empty(self) -> Result<(), StateError> {
        match self.0.into_keys().next() {
            None => Ok(()),
            Some(name) => Err(StateError::Unexpected { name }),
        }
    }

    /// Encodes the state as safetensors.
    ///
    /// # Errors
    /// [`StateError::Damaged`] where the encoder refuses (a shape that does not fit its values).
    pub fn to_bytes(&self) -> Result<Vec<u8>, StateError> {
        let damaged = |e: safetensors::SafeTensorError| StateError::Damaged { reason: e.to_string() };
        let bytes: Vec<(&str, Dtype, &[usize], Vec<u8>)> = self
            .0
            .iter()
            .map(|(name, tensor)| {
                let (dtype, bytes) = match &tensor.data {
                    StateData::F32(v) => (Dtype::F32, v.iter().flat_map(|v| v.to_le_bytes()).collect()),
                    StateData::F64(v) => (Dtype::F64, v.iter().flat_map(|v| v.to_le_bytes()).collect()),
                    StateData::U64(v) => (Dtype::U64, v.iter().flat_map(|v| v.to_le_bytes()).collect()),
                };
                (name.as_str(), dtype, tensor.shape.as_slice(), bytes)
            })
            .collect();
        let views = bytes.iter().map(|(name, dtype, shape, bytes)| {
            Ok((*name, TensorView::new(*dtype, shape.to_vec(), bytes).map_err(damaged)?))
        });
        let views: Vec<_> = views.collect::<Result<_, StateError>>()?;
        safetensors::serialize(views, None).map_err(damaged)
    }

    /// Decodes what [`StateDict::to_bytes`] made.
    ///
    /// # Errors
    /// [`StateError::Damaged`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, StateError> {
        let damaged = |reason: String| StateError::Damaged { reason };
        let file = SafeTensors::deserialize(bytes).map_err(|e| damaged(e.to_string()))?;
        let mut dict = BTreeMap::new();
        for (name, view) in file.tensors() {
            let words = || view.data().as_chunks::<8>().0.iter();
            let data = match view.dtype() {
                Dtype::F32 => {
                    StateData::F32(view.data().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect())
                }
                Dtype::F64 => StateData::F64(words().map(|b| f64::from_le_bytes(*b)).collect()),
                Dtype::U64 => StateData::U64(words().map(|b| u64::from_le_bytes(*b)).collect()),
                other => return Err(damaged(format!("entry `{name}` is {other:?}"))),
            };
            dict.insert(name, StateTensor { shape: view.shape().to_vec(), data });
        }
        Ok(Self(dict))
    }
}

/// Where the state of single clients is kept between the rounds in which they are sampled: their own in a simulation
/// (control variates, personal models), and what a strategy remembers of each of them ([`crate::Round::memory`]).
///
/// Versions are kept by round, so that a run that goes on from an older checkpoint sees the state of that time.
///
/// # Laws
/// `load(c, r)` gives the newest committed state of `c` that was staged in a round before `r`. A staged state is not
/// visible before `commit`.
pub trait StateStore: fmt::Debug + Send + Sync {
    /// The client's state as it was when `round` began; `None` before its first participation.
    ///
    /// # Errors
    /// [`StateError`] where the store cannot be read or its content is damaged.
    fn load(&self, client: ClientId, round: RoundIndex) -> Result<Option<StateDict>, StateError>;

    /// Keeps the state that the client has after training in `round`, for [`StateStore::commit`] to decide.
    ///
    /// # Errors
    /// [`StateError`] where the store cannot be written.
    fn stage(&self, client: ClientId, round: RoundIndex, state: StateDict) -> Result<(), StateError>;

    /// The round ended with the updates of `clients`: their staged states become permanent, every other state staged
    /// in this round is forgotten. An abandoned round commits no client.
    ///
    /// # Errors
    /// [`StateError`] where the store cannot be written.
    fn commit(&self, round: RoundIndex, clients: &[ClientId]) -> Result<(), StateError>;

    /// The run can go on after `round` and will never go back further: older versions may be dropped.
    ///
    /// # Errors
    /// [`StateError`] where the store cannot be written.
    fn checkpointed(&self, round: RoundIndex) -> Result<(), StateError>;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> StateDict {
        let mut dict = StateDict::new();
        dict.insert(
            "moment",
            StateTensor { shape: vec![2, 2], data: StateData::F32(vec![1.0, -0.0, f32::MIN_POSITIVE, 3.5]) },
        );
        dict.insert_f64("alpha", 0.1);
        dict.insert_u64("step", u64::MAX);
        dict
    }

    #[test]
    fn bytes_round_trip() {
        let dict = sample();
        assert_eq!(StateDict::from_bytes(&dict.to_bytes().unwrap()).unwrap(), dict);
    }

    #[test]
    fn damage_is_an_error() {
        let bytes = sample().to_bytes().unwrap();
        for cut in 0..bytes.len() {
            assert!(StateDict::from_bytes(&bytes[..cut]).is_err(), "cut at {cut}");
        }
    }

    #[test]
    fn entries_are_consumed_and_leftovers_noticed() {
        let mut dict = sample();
        assert_eq!(dict.take_f64("alpha").unwrap(), 0.1);
        assert!(matches!(dict.take_f64("alpha"), Err(StateError::Missing { .. })));
        assert!(matches!(dict.take_f64("step"), Err(StateError::Shape { .. })));
        assert!(matches!(dict.expect_empty(), Err(StateError::Unexpected { .. })));
    }

    #[test]
    fn nesting_is_undone_by_splitting() {
        let mut outer = StateDict::new();
        outer.insert_u64("base", 1);
        outer.nest("base", sample());
        assert_eq!(outer.split_off("base"), sample());
        assert_eq!(outer.take_u64("base").unwrap(), 1);
    }
}
