//! Data sets by name, and readers of the formats they come in. The only files of the crate that read files.

pub mod cifar;
mod config;
mod csv;
mod digits;
pub mod idx;
pub mod leaf;
mod reduce;
mod safetensors;
mod server_data;
mod source;
mod synthetic;
mod table;

pub use config::{Dataset, DatasetConfig, EmnistSplit, Normalisation, load};
pub use csv::csv;
pub use digits::digits;
pub use reduce::ReduceConfig;
pub use safetensors::safetensors;
pub use server_data::ServerDataConfig;
pub use synthetic::{Synthetic, SyntheticConfig};
pub use table::Table;
