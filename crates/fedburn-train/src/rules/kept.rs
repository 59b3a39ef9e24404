//! A flat vector that a rule keeps for its client between rounds.

use burn::tensor::backend::Backend;
use fedburn_core::{ParamVector, SchemaError, StateDict, StateError, StateTensor};

/// One named vector of a client's state. State comes back from disk before the model's schema is known, so it is checked
/// when it is first used.
#[derive(Clone, Debug)]
pub(crate) struct Kept<B: Backend> {
    name: &'static str,
    vector: Vector<B>,
}

#[derive(Clone, Debug)]
enum Vector<B: Backend> {
    Nothing,
    Restored(StateTensor),
    Live(ParamVector<B>),
}

impl<B: Backend> Kept<B> {
    /// Nothing yet, to be known as `name`.
    pub(crate) fn new(name: &'static str) -> Self {
        Self { name, vector: Vector::Nothing }
    }

    /// The vector, of the schema and on the device of `like`; zeros where nothing was kept.
    ///
    /// # Errors
    /// [`StateError::Shape`] where it is of another model.
    pub(crate) fn recall(&self, like: &ParamVector<B>) -> Result<ParamVector<B>, StateError> {
        match &self.vector {
            Vector::Nothing => Ok(ParamVector::zeros(like.schema().clone(), &like.device())),
            Vector::Live(vector) => Ok(vector.clone()),
            Vector::Restored(tensor) => {
                let mut state = StateDict::new();
                state.insert(self.name, tensor.clone());
                state.take_params(self.name, like.schema(), &like.device())
            }
        }
    }

    /// The vector, of the schema and on the device of `like`, where one was kept.
    ///
    /// # Errors
    /// [`StateError::Shape`] where it is of another model.
    pub(crate) fn recall_any(&self, like: &ParamVector<B>) -> Result<Option<ParamVector<B>>, StateError> {
        match &self.vector {
            Vector::Nothing => Ok(None),
            _ => self.recall(like).map(Some),
        }
    }

    /// The vector, of the schema and on the device of `start`, which it is where nothing was kept.
    ///
    /// # Errors
    /// [`StateError::Shape`] where it is of another model.
    pub(crate) fn recall_or(&self, start: &ParamVector<B>) -> Result<ParamVector<B>, StateError> {
        Ok(self.recall_any(start)?.unwrap_or_else(|| start.clone()))
    }

    /// As [`Kept::recall_or`], for a model to be used.
    ///
    /// # Errors
    /// [`SchemaError::Length`] where it is of another model.
    pub(crate) fn deployed_or(&self, global: &ParamVector<B>) -> Result<ParamVector<B>, SchemaError> {
        let found = match &self.vector {
            Vector::Nothing => global.num_values(),
            Vector::Live(vector) => vector.num_values(),
            Vector::Restored(tensor) => tensor.shape.iter().product(),
        };
        self.recall_or(global).map_err(|_| SchemaError::Length { expected: global.num_values(), found })
    }

    /// Keeps `vector` from now on.
    pub(crate) fn keep(&mut self, vector: ParamVector<B>) {
        self.vector = Vector::Live(vector);
    }

    /// What [`Kept::restore`] takes back.
    pub(crate) fn state(&self) -> StateDict {
        let mut state = StateDict::new();
        match &self.vector {
            Vector::Nothing => {}
            Vector::Restored(tensor) => state.insert(self.name, tensor.clone()),
            Vector::Live(vector) => state.insert_params(self.name, vector),
        }
        state
    }

    /// Takes back what [`Kept::state`] gave; an empty state is that of a client that has not taken part yet.
    ///
    /// # Errors
    /// [`StateError`] where the state holds something else.
    pub(crate) fn restore(&mut self, mut state: StateDict) -> Result<(), StateError> {
        let vector = if state.is_empty() { Vector::Nothing } else { Vector::Restored(state.take(self.name)?) };
        state.expect_empty()?;
        self.vector = vector;
        Ok(())
    }
}
