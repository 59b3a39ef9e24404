//! Models and updates as they are sent where four bytes a value are too many.
//!
//! ```text
//! server   m_t = D(C_down(x_t))                      what clients train from and strategies call the global model
//! client   v = x_k - m_t + e_k;  c = D(C_up(v));  e_k <- v - c;  sends C_up(v)
//! server   x_k = m_t + c                             what strategies see
//!          x_{t+1} = strategy(m_t, x_k, ...) + (x_t - m_t)
//! ```
//!
//! Error feedback: Karimireddy, Rebjock, Stich and Jaggi, "Error Feedback Fixes SignSGD and other Gradient Compression
//! Schemes", ICML 2019, arXiv:1901.09847. On both sides: Tang, Yu, Lian, Zhang and Liu, "DoubleSqueeze: Parallel
//! Stochastic Gradient Descent with Double-Pass Error-Compensated Compression", ICML 2019, arXiv:1905.05957; here the
//! model is sent and not its change, since a client need not have taken part in the round before.
//!
//! | symbol | meaning |
//! |---|---|
//! | `C`, `D` | writing with the direction's codec, reading |
//! | `x_t`, `m_t` | the server's model, what of it is sent |
//! | `x_k`, `e_k` | a client's model after training, what its updates have left out so far (zeros at first) |
//!
//! Weights are written as one vector; running statistics as 32-bit floats behind it, since a variance that is a little
//! below zero is none. So is side information: the server's and the clients' control variates must stay each other's
//! mean. State: `e_k` beside the client's own; the server's `x_t - m_t` follows from its model and is never stored.

use std::sync::Arc;

use burn::tensor::backend::Backend;
use serde::{Deserialize, Serialize};

use crate::{Codec, CodecError, ParamSchema, ParamVector, Seed};

/// How models and updates are sent. Nothing is lost by default.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CompressionConfig {
    /// How clients write what training changed.
    pub up: Codec,
    /// How the server writes the model.
    pub down: Codec,
    /// Whether each side sends later what a codec left out.
    pub error_feedback: bool,
}

impl CompressionConfig {
    /// Whether nothing is lost in either direction.
    pub fn is_none(&self) -> bool {
        self.up.is_lossless() && self.down.is_lossless()
    }

    /// Checks the settings.
    ///
    /// # Errors
    /// [`CodecError::Config`].
    pub fn check(&self) -> Result<(), CodecError> {
        self.up.check()?;
        match self.down {
            Codec::ScaledSign {} | Codec::TopK { .. } => Err(CodecError::Config {
                field: "down",
                value: self.down.name().to_owned(),
                expected: "f32, f16, bf16, int8 or int4: a whole model is sent down and not what changed",
            }),
            _ => Ok(()),
        }
    }
}

impl Default for CompressionConfig {
    fn default() -> Self {
        Self { up: Codec::default(), down: Codec::default(), error_feedback: true }
    }
}

/// The bytes that a vector was read from.
#[derive(Clone, Debug, PartialEq)]
pub struct Encoded {
    /// How they are written.
    pub codec: Codec,
    /// Weights in this codec, then running statistics as 32-bit floats.
    pub bytes: Vec<u8>,
}

impl Codec {
    /// Bytes of a vector of this schema: its weights in this codec, its running statistics as 32-bit floats.
    pub fn vector_len(self, schema: &ParamSchema) -> usize {
        let weights = schema.num_weights();
        self.encoded_len(weights) + Self::F32 {}.encoded_len(schema.num_values() - weights)
    }

    fn read(self, bytes: &[u8], schema: &ParamSchema) -> Result<Parts, CodecError> {
        let (weights, expected) = (schema.num_weights(), self.vector_len(schema));
        if bytes.len() != expected {
            return Err(CodecError::Length { codec: self.name(), expected, found: bytes.len() });
        }
        let (coded, rest) = bytes.split_at(self.encoded_len(weights));
        let buffers = Self::F32 {}.decode(rest, schema.num_values() - weights)?;
        Ok(Parts { weights: self.decode(coded, weights)?, buffers })
    }

    fn write(self, parts: &Parts, seed: Seed) -> Result<Vec<u8>, CodecError> {
        let mut bytes = self.encode(&parts.weights, seed)?;
        bytes.extend(Self::F32 {}.encode(&parts.buffers, seed)?);
        Ok(bytes)
    }
}

impl<B: Backend> ParamVector<B> {
    /// What of this model gets through `codec`; itself where nothing is lost. `seed` is for rounding.
    ///
    /// # Errors
    /// [`CodecError::NonFinite`], [`CodecError::Config`].
    pub fn through(&self, codec: Codec, seed: Seed) -> Result<Self, CodecError> {
        if codec.is_lossless() {
            return Ok(self.clone());
        }
        let bytes = codec.write(&Parts::of(self), seed)?;
        Self::decode_model(Encoded { codec, bytes }, self.schema(), &self.device())
    }

    /// The model that [`ParamVector::through`] wrote.
    ///
    /// # Errors
    /// [`CodecError`]: bytes that are not a model of this schema.
    pub fn decode_model(encoded: Encoded, schema: &Arc<ParamSchema>, device: &B::Device) -> Result<Self, CodecError> {
        let parts = encoded.codec.read(&encoded.bytes, schema)?;
        Ok(Self::from_host(parts.join(schema), schema.clone(), device)?.with_encoded(encoded))
    }

    /// What of the way from `global` to this vector gets through `codec`, and of what earlier updates left out, as a
    /// vector; and what is left out now.
    ///
    /// # Errors
    /// [`CodecError`]: a vector of another model, values that are not finite.
    pub fn update_through(
        &self,
        codec: Codec,
        global: &Self,
        left_out: Option<&Self>,
        seed: Seed,
    ) -> Result<(Self, Self), CodecError> {
        let (schema, device) = (global.schema(), global.device());
        schema.ensure_same(self.schema())?;
        if let Some(entry) = self.first_non_finite() {
            return Err(CodecError::Tensor { path: entry.path.clone() });
        }
        let (from, mut meant) = (Parts::of(global), Parts::of(self));
        meant.weights.iter_mut().zip(&from.weights).for_each(|(to, from)| *to -= from);
        if let Some(left_out) = left_out {
            schema.ensure_same(left_out.schema())?;
            let left_out = Parts::of(left_out).weights;
            meant.weights.iter_mut().zip(left_out).for_each(|(meant, left_out)| *meant += left_out);
        }
        let bytes = codec.write(&meant, seed)?;
        let sent = codec.read(&bytes, schema)?;
        meant.weights.iter_mut().zip(&sent.weights).for_each(|(meant, sent)| *meant -= sent);
        meant.buffers.fill(0.0);
        let left_out = Self::from_host(meant.join(schema), schema.clone(), &device)?;
        let update = Self::from_host(sent.added_to(from).join(schema), schema.clone(), &device)?;
        Ok((update.with_encoded(Encoded { codec, bytes }), left_out))
    }

    /// The vector that [`ParamVector::update_through`] made of `global`, from its bytes.
    ///
    /// # Errors
    /// [`CodecError`]: bytes that are not an update of this model.
    pub fn decode_update(encoded: Encoded, global: &Self) -> Result<Self, CodecError> {
        let schema = global.schema();
        let sent = encoded.codec.read(&encoded.bytes, schema)?;
        let values = sent.added_to(Parts::of(global)).join(schema);
        Ok(Self::from_host(values, schema.clone(), &global.device())?.with_encoded(encoded))
    }
}

/// Weights and running statistics of a vector, apart.
struct Parts {
    weights: Vec<f32>,
    buffers: Vec<f32>,
}

impl Parts {
    fn of<B: Backend>(vector: &ParamVector<B>) -> Self {
        let (schema, values) = (vector.schema(), vector.to_host());
        if schema.num_weights() == values.len() {
            return Self { weights: values, buffers: Vec::new() };
        }
        let mut parts = Self { weights: Vec::with_capacity(schema.num_weights()), buffers: Vec::new() };
        let mut at = 0;
        for range in schema.weight_ranges() {
            parts.buffers.extend_from_slice(&values[at..range.start]);
            parts.weights.extend_from_slice(&values[range.clone()]);
            at = range.end;
        }
        parts.buffers.extend_from_slice(&values[at..]);
        parts
    }

    fn join(self, schema: &ParamSchema) -> Vec<f32> {
        if self.buffers.is_empty() {
            return self.weights;
        }
        let mut values = Vec::with_capacity(schema.num_values());
        let (mut weights, mut buffers) = (&self.weights[..], &self.buffers[..]);
        for range in schema.weight_ranges() {
            buffers = take(buffers, range.start - values.len(), &mut values);
            weights = take(weights, range.len(), &mut values);
        }
        values.extend_from_slice(buffers);
        values
    }

    /// These weights on top of those of `global`, and these running statistics.
    fn added_to(mut self, global: Self) -> Self {
        self.weights.iter_mut().zip(global.weights).for_each(|(sent, from)| *sent += from);
        self
    }
}

/// Moves the first `count` values over and gives the rest.
fn take<'a>(from: &'a [f32], count: usize, to: &mut Vec<f32>) -> &'a [f32] {
    let (now, later) = from.split_at(count);
    to.extend_from_slice(now);
    later
}
