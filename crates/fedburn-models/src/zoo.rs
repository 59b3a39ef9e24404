//! The one registry of architectures: a configuration, the recipe it becomes, the model that recipe builds.

use burn::backend::Autodiff;
use burn::module::Module;
use burn::tensor::{Tensor, backend::Backend};
use fedburn_core::{Classifier, Ensemble, Mode, ModelFamily, Seed, Split, Staged};
use fedburn_ops::Kernels;
use serde::{Deserialize, Serialize};

use crate::error::{at_least, refuse};
use crate::projection::Features;
use crate::{
    CharLstm, CharLstmFamily, DepthFl, DepthFlFamily, FedAvgCnn, FedAvgCnnFamily, LeNet5, LeNet5Family, ModelError,
    NormChoice, PreResNet, PreResNetFamily, Prediction, ResNet, ResNetFamily, Softmax, SoftmaxFamily, SplitMix,
    SplitMixFamily, TwoNn, TwoNnFamily, Vit, VitConfig, VitFamily,
};

/// An architecture as a configuration file names it, `kind = "two_nn"` and so on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum ZooConfig {
    /// [`Softmax`] regression.
    Softmax {},
    /// [`TwoNn`], the FedAvg paper's perceptron.
    TwoNn {
        /// Units in each of the two hidden layers.
        #[serde(default = "two_nn_hidden")]
        hidden: usize,
    },
    /// [`LeNet5`].
    #[serde(rename = "lenet5")]
    LeNet5 {},
    /// [`FedAvgCnn`], the FedAvg paper's convolutional net.
    #[serde(rename = "fedavg_cnn")]
    FedAvgCnn {},
    /// [`ResNet`] for small images.
    #[serde(rename = "resnet")]
    ResNet {
        /// 8, 20, 32 or 56.
        depth: usize,
        /// Which normalisation.
        #[serde(default)]
        norm: NormKind,
        /// Groups of group norm, a divisor of 16; two unless given. Not to be given with batch norm.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        groups: Option<usize>,
    },
    /// [`ResNet`]-18 with group norm.
    #[serde(rename = "resnet18")]
    ResNet18 {
        /// Groups of group norm, a divisor of 64.
        #[serde(default = "groups")]
        groups: usize,
    },
    /// [`PreResNet`] of 20 layers.
    #[serde(rename = "preresnet20")]
    PreResNet20 {
        /// Channels of the first group; the second has twice, the third four times as many.
        #[serde(default = "preresnet_width")]
        width: usize,
        /// Which normalisation; batch norm has no running statistics here.
        #[serde(default = "batch")]
        norm: NormKind,
        /// Groups of group norm, a divisor of `width`; two unless given. Not to be given with batch norm.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        groups: Option<usize>,
    },
    /// [`SplitMix`]: several nets of the kind `preresnet20`, whose scores are averaged.
    SplitMix {
        /// Number of nets.
        nets: usize,
        /// Channels of the first group of each net.
        width: usize,
        /// Which normalisation; batch norm has no running statistics here.
        #[serde(default = "batch")]
        norm: NormKind,
        /// Groups of group norm, a divisor of `width`; two unless given. Not to be given with batch norm.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        groups: Option<usize>,
    },
    /// [`DepthFl`]: a net of the kind `preresnet20` with a classifier at several depths, whose scores are averaged.
    DepthFl {
        /// Channels of the first group.
        #[serde(default = "preresnet_width")]
        width: usize,
        /// Number of blocks before each classifier, ascending to all 9; after each group unless given.
        #[serde(default = "groups_of_blocks")]
        exits: Vec<usize>,
        /// Which classifiers predict.
        #[serde(default)]
        prediction: Prediction,
        /// Which normalisation; batch norm has no running statistics here.
        #[serde(default = "batch")]
        norm: NormKind,
        /// Groups of group norm, a divisor of `width`; two unless given. Not to be given with batch norm.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        groups: Option<usize>,
    },
    /// [`Vit`], of the sizes of ViT-Ti/16 unless given.
    Vit {
        /// Side of a patch; divides the sides of the image.
        #[serde(default = "vit_patch")]
        patch: usize,
        /// Numbers of a token.
        #[serde(default = "vit_width")]
        width: usize,
        /// Layers.
        #[serde(default = "vit_depth")]
        depth: usize,
        /// Heads of attention, a divisor of `width`.
        #[serde(default = "vit_heads")]
        heads: usize,
    },
    /// [`CharLstm`], the next-character model.
    CharLstm {
        /// Units in each of the two layers.
        #[serde(default = "lstm_hidden")]
        hidden: usize,
    },
    /// Another architecture with a [`Projection`](crate::Projection) before its head.
    Projected {
        /// The architecture.
        body: Box<ZooConfig>,
        /// Length of what the projection makes.
        #[serde(default = "projection_width")]
        width: usize,
    },
    /// `preresnet20` or `vit` with an [`AuxiliaryHead`](crate::AuxiliaryHead) behind each block, for m-FeDepth.
    WithExits {
        /// The architecture.
        body: Box<ZooConfig>,
    },
}

/// A normalisation by name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NormKind {
    /// Group norm.
    #[default]
    Group,
    /// Batch norm.
    Batch,
}

impl NormKind {
    /// The normalisation of `model` with the configured groups; `batch` is what it takes for batch norm.
    fn choice(self, model: &'static str, given: Option<usize>, batch: NormChoice) -> Result<NormChoice, ModelError> {
        match (self, given) {
            (NormKind::Group, given) => Ok(NormChoice::Group { groups: given.unwrap_or_else(groups) }),
            (NormKind::Batch, None) => Ok(batch),
            (NormKind::Batch, Some(found)) => refuse(model, "groups", found, "nothing, since batch norm has no groups"),
        }
    }
}

impl ZooConfig {
    /// Checks the architecture against the data: inputs `[channels, height, width]` and the number of classes.
    ///
    /// # Errors
    /// [`ModelError`] names the field, its value and what was expected: an image too small to pool, groups that do not
    /// divide the channels, no classes, a depth that does not exist.
    pub fn build(self, input: [usize; 3], classes: usize) -> Result<Zoo, ModelError> {
        Ok(match self {
            ZooConfig::Softmax {} => Zoo::Softmax(SoftmaxFamily::new(input, classes)?),
            ZooConfig::TwoNn { hidden } => Zoo::TwoNn(TwoNnFamily::new(input, classes, hidden)?),
            ZooConfig::LeNet5 {} => Zoo::LeNet5(LeNet5Family::new(input, classes)?),
            ZooConfig::FedAvgCnn {} => Zoo::FedAvgCnn(FedAvgCnnFamily::new(input, classes)?),
            ZooConfig::ResNet { depth, norm, groups } => {
                let norm = norm.choice("resnet", groups, NormChoice::Batch)?;
                Zoo::ResNet(ResNetFamily::small(input, classes, depth, norm)?)
            }
            ZooConfig::ResNet18 { groups } => Zoo::ResNet(ResNetFamily::resnet18(input, classes, groups)?),
            ZooConfig::PreResNet20 { width, norm, groups } => {
                let norm = norm.choice("preresnet20", groups, NormChoice::BatchAtHand)?;
                Zoo::PreResNet(PreResNetFamily::new(input, classes, width, norm)?)
            }
            ZooConfig::SplitMix { nets, width, norm, groups } => {
                let norm = norm.choice("split_mix", groups, NormChoice::BatchAtHand)?;
                Zoo::SplitMix(SplitMixFamily::new(PreResNetFamily::new(input, classes, width, norm)?, nets)?)
            }
            ZooConfig::DepthFl { width, exits, prediction, norm, groups } => {
                let norm = norm.choice("depth_fl", groups, NormChoice::BatchAtHand)?;
                Zoo::DepthFl(DepthFlFamily::new(
                    PreResNetFamily::new(input, classes, width, norm)?,
                    &exits,
                    prediction,
                )?)
            }
            ZooConfig::Vit { patch, width, depth, heads } => {
                Zoo::Vit(VitFamily::new(input, classes, VitConfig { patch, width, depth, heads })?)
            }
            ZooConfig::CharLstm { hidden } => Zoo::CharLstm(CharLstmFamily::new(input, classes, hidden)?),
            ZooConfig::Projected { body, width } => {
                at_least("projected", "width", width, 1)?;
                let (name, mut zoo) = (format!("{body:?}"), body.build(input, classes)?);
                match zoo.features_mut().and_then(|features| Some((features.projected(width)?, features))) {
                    Some((projected, features)) => *features = projected,
                    None => return refuse("projected", "body", name, "a model with features, without a projection"),
                }
                zoo
            }
            ZooConfig::WithExits { body } => {
                let name = format!("{body:?}");
                match body.build(input, classes)? {
                    Zoo::PreResNet(family) => Zoo::PreResNet(family.with_exits()),
                    Zoo::Vit(family) => Zoo::Vit(family.with_exits()),
                    _ => return refuse("with_exits", "body", name, "preresnet20 or vit"),
                }
            }
        })
    }
}

/// A checked architecture: the [`ModelFamily`] of a configured run.
#[derive(Clone, Debug)]
pub enum Zoo {
    /// Softmax regression.
    Softmax(SoftmaxFamily),
    /// The FedAvg paper's perceptron.
    TwoNn(TwoNnFamily),
    /// LeNet-5.
    LeNet5(LeNet5Family),
    /// The FedAvg paper's convolutional net.
    FedAvgCnn(FedAvgCnnFamily),
    /// A residual net.
    ResNet(ResNetFamily),
    /// A pre-activation residual net.
    PreResNet(PreResNetFamily),
    /// Several pre-activation residual nets.
    SplitMix(SplitMixFamily),
    /// A pre-activation residual net with a classifier at several depths.
    DepthFl(DepthFlFamily),
    /// A vision transformer.
    Vit(VitFamily),
    /// The next-character model.
    CharLstm(CharLstmFamily),
}

impl Zoo {
    /// Length of what the head sees ([`Split::features`]); `None` for a model that is nothing but a head.
    pub fn features(&self) -> Option<usize> {
        features!(self).map(|features| features.len())
    }

    fn features_mut(&mut self) -> Option<&mut Features> {
        features!(self, mut)
    }
}

/// The [`Features`] of a [`Zoo`], behind a reference of the kind that the zoo is behind.
macro_rules! features {
    ($zoo:expr $(, $mut:tt)?) => {
        match $zoo {
            Zoo::Softmax(_) | Zoo::SplitMix(_) | Zoo::DepthFl(_) => None,
            Zoo::TwoNn(family) => Some(& $($mut)? family.features),
            Zoo::LeNet5(family) => Some(& $($mut)? family.features),
            Zoo::FedAvgCnn(family) => Some(& $($mut)? family.features),
            Zoo::ResNet(family) => Some(& $($mut)? family.features),
            Zoo::PreResNet(family) => Some(& $($mut)? family.features),
            Zoo::Vit(family) => Some(& $($mut)? family.features),
            Zoo::CharLstm(family) => Some(& $($mut)? family.features),
        }
    };
}
use features;

/// A model of any architecture of the zoo. Parameter paths do not name the variant.
#[derive(Module, Debug)]
#[allow(clippy::large_enum_variant)]
pub enum ZooModel<B: Backend> {
    /// Softmax regression.
    Softmax(Softmax<B>),
    /// The FedAvg paper's perceptron.
    TwoNn(TwoNn<B>),
    /// LeNet-5.
    LeNet5(LeNet5<B>),
    /// The FedAvg paper's convolutional net.
    FedAvgCnn(FedAvgCnn<B>),
    /// A residual net.
    ResNet(ResNet<B>),
    /// A pre-activation residual net.
    PreResNet(PreResNet<B>),
    /// Several pre-activation residual nets.
    SplitMix(SplitMix<B>),
    /// A pre-activation residual net with a classifier at several depths.
    DepthFl(DepthFl<B>),
    /// A vision transformer.
    Vit(Vit<B>),
    /// The next-character model.
    CharLstm(CharLstm<B>),
}

impl<B: Kernels> ModelFamily<B> for Zoo {
    type Model = ZooModel<B>;
    type TrainModel = ZooModel<Autodiff<B>>;

    fn init(&self, seed: Seed, device: &B::Device) -> ZooModel<B> {
        match self {
            Zoo::Softmax(family) => ZooModel::Softmax(family.init(seed, device)),
            Zoo::TwoNn(family) => ZooModel::TwoNn(family.init(seed, device)),
            Zoo::LeNet5(family) => ZooModel::LeNet5(family.init(seed, device)),
            Zoo::FedAvgCnn(family) => ZooModel::FedAvgCnn(family.init(seed, device)),
            Zoo::ResNet(family) => ZooModel::ResNet(family.init(seed, device)),
            Zoo::PreResNet(family) => ZooModel::PreResNet(family.init(seed, device)),
            Zoo::SplitMix(family) => ZooModel::SplitMix(family.init(seed, device)),
            Zoo::DepthFl(family) => ZooModel::DepthFl(family.init(seed, device)),
            Zoo::Vit(family) => ZooModel::Vit(family.init(seed, device)),
            Zoo::CharLstm(family) => ZooModel::CharLstm(family.init(seed, device)),
        }
    }

    fn slim(&self, share: f64) -> Option<Zoo> {
        match self {
            Zoo::TwoNn(family) => ModelFamily::<B>::slim(family, share).map(Zoo::TwoNn),
            Zoo::FedAvgCnn(family) => ModelFamily::<B>::slim(family, share).map(Zoo::FedAvgCnn),
            Zoo::PreResNet(family) => ModelFamily::<B>::slim(family, share).map(Zoo::PreResNet),
            _ => None,
        }
    }
}

impl<B: Kernels> Classifier<B> for ZooModel<B> {
    fn forward(&self, inputs: Tensor<B, 4>, mode: Mode) -> Tensor<B, 2> {
        match self {
            ZooModel::Softmax(model) => model.forward(inputs, mode),
            ZooModel::TwoNn(model) => model.forward(inputs, mode),
            ZooModel::LeNet5(model) => model.forward(inputs, mode),
            ZooModel::FedAvgCnn(model) => model.forward(inputs, mode),
            ZooModel::ResNet(model) => model.forward(inputs, mode),
            ZooModel::PreResNet(model) => model.forward(inputs, mode),
            ZooModel::SplitMix(model) => model.forward(inputs, mode),
            ZooModel::DepthFl(model) => model.forward(inputs, mode),
            ZooModel::Vit(model) => model.forward(inputs, mode),
            ZooModel::CharLstm(model) => model.forward(inputs, mode),
        }
    }

    fn split(&self) -> Option<&dyn Split<B>> {
        match self {
            ZooModel::Softmax(model) => model.split(),
            ZooModel::TwoNn(model) => model.split(),
            ZooModel::LeNet5(model) => model.split(),
            ZooModel::FedAvgCnn(model) => model.split(),
            ZooModel::ResNet(model) => model.split(),
            ZooModel::PreResNet(model) => model.split(),
            ZooModel::SplitMix(_) | ZooModel::DepthFl(_) => None,
            ZooModel::Vit(model) => model.split(),
            ZooModel::CharLstm(model) => model.split(),
        }
    }

    fn staged(&self) -> Option<&dyn Staged<B>> {
        match self {
            ZooModel::PreResNet(model) => model.staged(),
            ZooModel::Vit(model) => model.staged(),
            _ => None,
        }
    }

    fn ensemble(&self) -> Option<&dyn Ensemble<B>> {
        match self {
            ZooModel::SplitMix(model) => model.ensemble(),
            ZooModel::DepthFl(model) => model.ensemble(),
            _ => None,
        }
    }
}

fn two_nn_hidden() -> usize {
    200
}

fn groups() -> usize {
    2
}

fn preresnet_width() -> usize {
    16
}

fn groups_of_blocks() -> Vec<usize> {
    vec![3, 6, 9]
}

fn batch() -> NormKind {
    NormKind::Batch
}

fn vit_patch() -> usize {
    16
}

fn vit_width() -> usize {
    192
}

fn vit_depth() -> usize {
    12
}

fn vit_heads() -> usize {
    3
}

fn lstm_hidden() -> usize {
    256
}

fn projection_width() -> usize {
    256
}
