//! What the vectors of a federation look like, as its server and its nodes know it from the plan.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::schema::ParamSchema;
use crate::SideName;

/// The schema of the model, and of what the server sends beside it and is another network's. Both ends of a network make
/// it from the same plan, so that each knows the length of a vector before the first byte of it comes.
#[derive(Clone, Debug)]
pub struct Schemas {
    model: Arc<ParamSchema>,
    side: BTreeMap<SideName, Arc<ParamSchema>>,
}

impl Schemas {
    /// Adds that the server's side vector `name` is of `schema`.
    #[must_use]
    pub fn with_side(mut self, name: impl Into<SideName>, schema: Arc<ParamSchema>) -> Self {
        self.side.insert(name.into(), schema);
        self
    }

    /// That of the model, and of all that clients send.
    pub fn model(&self) -> &Arc<ParamSchema> {
        &self.model
    }

    /// That of the server's side vector `name`: the model's unless another was added.
    pub fn side(&self, name: &str) -> &Arc<ParamSchema> {
        self.side.get(name).unwrap_or(&self.model)
    }
}

/// All vectors are of the model's schema.
impl From<Arc<ParamSchema>> for Schemas {
    fn from(model: Arc<ParamSchema>) -> Self {
        Self { model, side: BTreeMap::new() }
    }
}
