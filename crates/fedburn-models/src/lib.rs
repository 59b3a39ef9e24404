//! The model zoo: one file per architecture, one enum over them.
//!
//! [`ZooConfig`] names an architecture in a configuration file; [`ZooConfig::build`] checks it against the data's input
//! shape and number of classes and gives a [`Zoo`], the [`ModelFamily`](fedburn_core::ModelFamily) of a run. The
//! families behind it ([`TwoNnFamily`], [`ResNetFamily`], …) can be used alone. Own models become families with
//! [`seeded`], which draws initial weights on the host from the run's seed.
//!
//! # Examples
//!
//! ```
//! use burn::tensor::Tensor;
//! use burn_flex::{Flex, FlexDevice};
//! use fedburn_core::{Classifier, Mode, ModelFamily, Seed, schema_of};
//! use fedburn_models::{ZooConfig, ZooModel};
//!
//! let zoo = ZooConfig::TwoNn { hidden: 200 }.build([1, 28, 28], 10)?;
//! let model: ZooModel<Flex> = zoo.init(Seed::new(7), &FlexDevice);
//! assert_eq!(schema_of::<Flex, _>(&model)?.num_weights(), 199_210);
//! let images = Tensor::zeros([4, 1, 28, 28], &FlexDevice);
//! assert_eq!(model.forward(images, Mode::Evaluate).dims(), [4, 10]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod auxiliary_head;
mod char_lstm;
mod conditional_generator;
mod depth_fl;
mod error;
mod family;
mod feature_generator;
mod fedavg_cnn;
mod init;
mod layers;
mod lenet5;
mod norm;
mod preresnet;
mod projection;
mod resnet;
mod softmax;
mod split_mix;
mod two_nn;
mod vit;
mod zoo;

pub use auxiliary_head::AuxiliaryHead;
pub use char_lstm::{CharLstm, CharLstmFamily, LstmCell};
pub use conditional_generator::{ConditionalGenerator, ConditionalGeneratorFamily, GeneratorConfig};
pub use depth_fl::{DepthFl, DepthFlFamily, Exit, Prediction};
pub use error::ModelError;
pub use feature_generator::{FeatureGenerator, FeatureGeneratorFamily};
pub use fedavg_cnn::{FedAvgCnn, FedAvgCnnFamily};
pub use init::{InitScheme, seeded};
pub use layers::{conv2d, conv2d_workspace, linear, linear_relu, relu_max_pool2d};
pub use lenet5::{LeNet5, LeNet5Family};
pub use norm::{Norm, NormChoice, ScaleShift};
pub use preresnet::{PreActivationBlock, PreResNet, PreResNetFamily};
pub use projection::Projection;
pub use resnet::{ResNet, ResNetFamily, ResidualBlock, Shortcut};
pub use softmax::{Softmax, SoftmaxFamily};
pub use split_mix::{SplitMix, SplitMixFamily};
pub use two_nn::{TwoNn, TwoNnFamily};
pub use vit::{EncoderLayer, Vit, VitConfig, VitFamily};
pub use zoo::{NormKind, Zoo, ZooConfig, ZooModel};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
