//! A model's parameters as one flat vector, and the way between vector and burn module.

mod file;
mod module;
mod schema;
mod schemas;
mod slice;
mod training;
mod vector;

pub use module::{flatten, flatten_part, load, load_part, schema_of};
pub use schema::{ParamEntry, ParamKind, ParamSchema, is_below};
pub use schemas::Schemas;
pub use slice::{Slice, SliceName};
pub use training::{flat_gradients, load_frozen, load_part_to_train, load_to_train};
pub use vector::ParamVector;
