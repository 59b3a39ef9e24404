//! How values are written where four bytes each are too many: bytes in, values out, no input or output.
//!
//! The number of bytes follows from the codec and the number of values alone, so that nothing which somebody sends can
//! change it, and whoever reads knows it before the first byte comes. All integers and floats are little-endian.
//!
//! | codec | bytes of `n` values | what is lost |
//! |---|---|---|
//! | `f32` | `4 n` | nothing |
//! | `f16`, `bf16` | `2 n` | rounded to the nearest, ties to even; beyond the largest finite value, that one |
//! | `int8` | `n`, and 2 each 256 | rounded up or down at random to a multiple of the block's scale, right on average |
//! | `int4` | `n / 2`, and 2 each 256 | the same with 15 levels instead of 255 |
//! | `scaled_sign` | `n / 5`, and 4 | all but the signs and one size |
//! | `top_k` | `8 k` | all but the `k` values of largest size |
//!
//! Stochastic rounding in blocks: Alistarh, Grubic, Li, Tomioka and Vojnovic, "QSGD: Communication-Efficient SGD via
//! Gradient Quantization and Encoding", NeurIPS 2017, arXiv:1610.02132 (there with the norm as scale and an entropy code).
//! Scaled sign and top k: Wang, Lin and Chen, "Communication-Efficient Adaptive Federated Learning" (FedCAMS), ICML
//! 2022, arXiv:2205.02719.

mod blocks;
mod floats;
mod largest;
mod signs;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{SchemaError, Seed};

/// How values are written.
///
/// # Laws
/// `decode(encode(v))` has as many values as `v`, all finite. What `f32`, `f16`, `bf16` and `top_k` decode to, they write
/// again without a change. `int8` and `int4` are right on average over seeds, in blocks without a value beyond 65504 x 127
/// or 65504 x 7: their scale is of half precision, and larger values become these. Equal values, codecs and seeds make
/// equal bytes, on every machine.
///
/// # Examples
///
/// ```
/// use fedburn_core::{Codec, Seed};
///
/// let values = [0.5, -2.0, 0.25, 0.0];
/// let bytes = Codec::TopK { ratio: 0.5 }.encode(&values, Seed::new(1))?;
/// assert_eq!(bytes.len(), 16);
/// assert_eq!(Codec::TopK { ratio: 0.5 }.decode(&bytes, 4)?, [0.5, -2.0, 0.0, 0.0]);
/// # Ok::<(), fedburn_core::CodecError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Codec {
    /// IEEE 754 single precision: nothing is lost.
    F32 {},
    /// IEEE 754 half precision: 11 bits of each value, up to 65504.
    F16 {},
    /// The upper half of single precision: 8 bits of each value, of the same range.
    Bf16 {},
    /// Blocks of 256 values, each an integer of 8 bits times the block's scale.
    Int8 {},
    /// Blocks of 256 values, each an integer of 4 bits times the block's scale.
    Int4 {},
    /// One size for all values: their signs, times the mean of their absolute values. The sign of 0 is 0.
    ScaledSign {},
    /// The values of largest size, and no others; of equal ones the first.
    TopK {
        /// Share of the values that are kept, in `(0, 1]`, rounded up. FedCAMS tries 1/64, 1/128 and 1/256.
        #[serde(default = "default_ratio")]
        ratio: f64,
    },
}

/// Values that cannot be written, or bytes that no codec wrote.
#[derive(Clone, Debug, PartialEq, Error)]
#[non_exhaustive]
pub enum CodecError {
    /// A setting that is not possible.
    #[error("`{field}` is {value}, expected {expected}")]
    Config {
        /// The field.
        field: &'static str,
        /// Its value.
        value: String,
        /// What is possible.
        expected: &'static str,
    },
    /// More or fewer bytes than so many values take.
    #[error("{found} bytes in {codec}, expected {expected}")]
    Length {
        /// How they are written.
        codec: &'static str,
        /// Bytes of the values.
        expected: usize,
        /// Bytes that came.
        found: usize,
    },
    /// A value is a NaN or an infinity.
    #[error("value {index} is not a finite number")]
    NonFinite {
        /// Its place.
        index: usize,
    },
    /// A tensor of a model holds a NaN or an infinity.
    #[error("tensor `{path}` holds a NaN or an infinity")]
    Tensor {
        /// The first such tensor.
        path: String,
    },
    /// A scale that no block has.
    #[error("block {block} has the scale {scale}")]
    Scale {
        /// The block.
        block: usize,
        /// Its scale.
        scale: f32,
    },
    /// An integer that the codec does not use.
    #[error("the value at {index} is written as no value is")]
    Level {
        /// Its place.
        index: usize,
    },
    /// A value's place is behind the last, or too far behind the one before it.
    #[error("a value for place {index} of {num_values}")]
    Place {
        /// The place.
        index: u64,
        /// Number of values.
        num_values: usize,
    },
    /// A vector of another model.
    #[error("{source}")]
    Schema {
        /// What does not fit.
        #[from]
        source: SchemaError,
    },
}

impl Codec {
    /// The name that configuration files and reports use.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 {} => "f32",
            Self::F16 {} => "f16",
            Self::Bf16 {} => "bf16",
            Self::Int8 {} => "int8",
            Self::Int4 {} => "int4",
            Self::ScaledSign {} => "scaled_sign",
            Self::TopK { .. } => "top_k",
        }
    }

    /// Whether every value comes back as it was.
    pub fn is_lossless(self) -> bool {
        self == Self::F32 {}
    }

    /// Bytes of `num_values` values.
    pub fn encoded_len(self, num_values: usize) -> usize {
        match self {
            Self::F32 {} => 4 * num_values,
            Self::F16 {} | Self::Bf16 {} => 2 * num_values,
            Self::Int8 {} => blocks::encoded_len::<8>(num_values),
            Self::Int4 {} => blocks::encoded_len::<4>(num_values),
            Self::ScaledSign {} => signs::encoded_len(num_values),
            Self::TopK { ratio } => largest::encoded_len(largest::count(ratio, num_values)),
        }
    }

    /// Writes values. `seed` decides what is rounded up and what down; codecs without chance leave it out of account.
    ///
    /// # Errors
    /// [`CodecError::NonFinite`], [`CodecError::Config`] for a ratio out of its range.
    pub fn encode(self, values: &[f32], seed: Seed) -> Result<Vec<u8>, CodecError> {
        self.check()?;
        finite(values)?;
        let mut bytes = Vec::with_capacity(self.encoded_len(values.len()));
        match self {
            Self::F32 {} => floats::encode(values, f32::to_le_bytes, &mut bytes),
            Self::F16 {} => floats::encode(values, floats::to_f16, &mut bytes),
            Self::Bf16 {} => floats::encode(values, floats::to_bf16, &mut bytes),
            Self::Int8 {} => blocks::encode::<8>(values, &mut seed.rng(), &mut bytes),
            Self::Int4 {} => blocks::encode::<4>(values, &mut seed.rng(), &mut bytes),
            Self::ScaledSign {} => signs::encode(values, &mut bytes),
            Self::TopK { ratio } => largest::encode(values, largest::count(ratio, values.len()), &mut bytes)?,
        }
        Ok(bytes)
    }

    /// Reads `num_values` values.
    ///
    /// # Errors
    /// [`CodecError`]: what is wrong with the bytes. Nothing is allocated before their number is right.
    pub fn decode(self, bytes: &[u8], num_values: usize) -> Result<Vec<f32>, CodecError> {
        self.check()?;
        let expected = self.encoded_len(num_values);
        if bytes.len() != expected {
            return Err(CodecError::Length { codec: self.name(), expected, found: bytes.len() });
        }
        let values = match self {
            Self::F32 {} => floats::decode(bytes, f32::from_le_bytes),
            Self::F16 {} => floats::decode(bytes, floats::from_f16),
            Self::Bf16 {} => floats::decode(bytes, floats::from_bf16),
            Self::Int8 {} => blocks::decode::<8>(bytes, num_values)?,
            Self::Int4 {} => blocks::decode::<4>(bytes, num_values)?,
            Self::ScaledSign {} => signs::decode(bytes, num_values)?,
            Self::TopK { .. } => largest::decode(bytes, num_values)?,
        };
        finite(&values)?;
        Ok(values)
    }

    /// Checks the settings.
    ///
    /// # Errors
    /// [`CodecError::Config`].
    pub fn check(self) -> Result<(), CodecError> {
        match self {
            Self::TopK { ratio } if !(ratio > 0.0 && ratio <= 1.0) => Err(CodecError::Config {
                field: "ratio",
                value: ratio.to_string(),
                expected: "a share of the values in (0, 1]",
            }),
            _ => Ok(()),
        }
    }
}

impl Default for Codec {
    fn default() -> Self {
        Self::F32 {}
    }
}

fn default_ratio() -> f64 {
    1.0 / 64.0
}

fn finite(values: &[f32]) -> Result<(), CodecError> {
    match values.iter().position(|value| !value.is_finite()) {
        Some(index) => Err(CodecError::NonFinite { index }),
        None => Ok(()),
    }
}
