//! A model's parameters as one flat vector, and the way between vector and burn module.

mod file;
mod module;
mod schema;
mod vector;

pub use module::{flatten, load, schema_of};
pub use schema::{ParamEntry, ParamKind, ParamSchema};
pub use vector::ParamVector;
