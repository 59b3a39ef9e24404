//! Optimal model averaging: how much of a global model a client should mix into its own.
//!
//! F. Grimberg, M.-A. Hartley, S. P. Karimireddy, M. Jaggi: "Optimal Model Averaging: Towards Personalized
//! Collaborative Learning", FL-ICML workshop 2021, arXiv 2110.12946.
//!
//! A local estimator `L` is unbiased and noisy, a global one `G` is biased and quiet. Their mix trades one for the other:
//!
//! ```text
//! M(alpha) = (1 - alpha) L + alpha G
//! E(alpha) = E[(M - mu)^2] = (1-alpha)^2 V_l + alpha^2 (V_g + b^2) + 2 alpha (1-alpha) C
//! D        = E[(L - G)^2] = V_l + V_g + b^2 - 2C
//! alpha*   = (V_l - C) / D
//! B(alpha) = E(0) - E(alpha) = D alpha (2 alpha* - alpha)
//! ```
//!
//! | symbol | meaning | here |
//! |---|---|---|
//! | `V_l`, `V_g`, `C` | variances of `L` and `G`, their covariance | [`Averaging`] |
//! | `b` | bias of `G`: `E G - E L` | [`Averaging::bias`] |
//! | `alpha` | weight of the global estimator | [`Averaging::risk`] |
//! | `w_0` | the client's own weight in `G` | `own_share` |
//! | `q` | number of elements that share a weight | [`Mixing::weight`] |
//! | `delta_i`, `V_i`, `w_i` | bias, variance and weight of source i | [`source_weights`], [`OptimalAveraging`] |
//!
//! Three parts: the theory for one number ([`Averaging`], [`source_weights`]), plug-in weights for models
//! ([`Mixing`]), and what applies them: [`MixingClient`] on the client, [`OptimalAveraging`] on the server.
//!
//! State between rounds: a client keeps its model and its variance, two vectors; the server nothing. Memory: the
//! client's model, its variance and one resampled model at a time; the server one chunk of the cohort.
//!
//! Departures: the paper treats the mean of numbers; vectors, blocks, plug-in estimates and the protocol for networks
//! are this project's. Weights are clipped to `[0, 1]` per block. The paper gives no algorithm for several sources whose
//! biases are unknown: [`OptimalAveraging`] says what it assumes.

mod blocks;
mod client;
mod sources;
mod theory;

pub use blocks::{Mixed, Mixing};
pub use client::MixingClient;
pub use sources::{BiasEstimate, OptimalAveraging, OptimalAveragingConfig};
pub use theory::{Averaging, SourceWeights, source_weights};
