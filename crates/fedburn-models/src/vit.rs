//! The vision transformer.

use burn::module::{Initializer, Module, Param};
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::{Linear, LinearConfig};
use burn::tensor::activation::{gelu, softmax};
use burn::tensor::{Tensor, backend::Backend};
use fedburn_core::{Classifier, Mode, Split, Stage, Staged, Stages};
use fedburn_ops::{Kernels, linear_workspace};

use crate::auxiliary_head::{AuxiliaryHead, exit_stages};
use crate::error::{at_least, check_shape, refuse};
use crate::family::impl_family;
use crate::projection::{Features, project};
use crate::{InitScheme, ModelError, Norm, NormChoice, Projection, conv2d, conv2d_workspace, linear};

/// Patches of the image as tokens beside a class token, layers of self-attention, and a linear layer on the class token.
///
/// Alexey Dosovitskiy and others: An Image is Worth 16x16 Words, ICLR 2021, arXiv:2010.11929; the sizes of ViT-Ti are those
/// of Hugo Touvron and others: Training data-efficient image transformers & distillation through attention, ICML 2021,
/// arXiv:2012.12877. ViT-Ti/16 for 224 by 224 pixels and 1000 classes has 5,717,416 parameters. No dropout.
#[derive(Module, Debug)]
pub struct Vit<B: Backend> {
    /// `[width, channels, patch, patch]`, with a stride of `patch`.
    pub patches: Conv2d<B>,
    /// `[1, 1, width]`.
    pub class_token: Param<Tensor<B, 3>>,
    /// `[1, tokens, width]`, added to the tokens, the class token first.
    pub position: Param<Tensor<B, 3>>,
    /// From input to output.
    pub blocks: Vec<EncoderLayer<B>>,
    /// Normalises the class token.
    pub norm: Norm<B>,
    /// Between features and head, where asked for.
    pub projection: Option<Projection<B>>,
    /// `[width, classes]`.
    pub head: Linear<B>,
    /// Each layer's own classifier of the class token, where asked for.
    pub exits: Vec<AuxiliaryHead<B>>,
}

/// Self-attention and two linear layers with GELU between them, each of normalised tokens and added to them.
#[derive(Module, Debug)]
pub struct EncoderLayer<B: Backend> {
    /// Before attention.
    pub norm1: Norm<B>,
    /// `[width, 3 width]`: queries, keys and values.
    pub qkv: Linear<B>,
    /// `[width, width]`, after attention.
    pub output: Linear<B>,
    /// Before the two layers.
    pub norm2: Norm<B>,
    /// `[width, 4 width]`.
    pub hidden: Linear<B>,
    /// `[4 width, width]`.
    pub back: Linear<B>,
    heads: usize,
}

/// Sizes of a [`Vit`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VitConfig {
    /// Side of a patch.
    pub patch: usize,
    /// Numbers of a token.
    pub width: usize,
    /// Number of layers.
    pub depth: usize,
    /// Heads of attention; divides `width`.
    pub heads: usize,
}

/// Recipe of [`Vit`].
#[derive(Clone, Debug)]
pub struct VitFamily {
    input: [usize; 3],
    classes: usize,
    config: VitConfig,
    exits: bool,
    pub(crate) features: Features,
}

/// Width of the layer between the two of a block, in widths of a token.
const WIDER: usize = 4;

impl VitFamily {
    /// The transformer for inputs `[channels, height, width]` whose sides are multiples of the patch's.
    ///
    /// # Errors
    /// [`ModelError`] for sides that are not, heads that do not divide the width, or a size that is zero or absurd.
    pub fn new(input: [usize; 3], classes: usize, config: VitConfig) -> Result<Self, ModelError> {
        const MODEL: &str = "vit";
        let VitConfig { patch, width, depth, heads } = config;
        for (field, found) in [("patch", patch), ("width", width), ("depth", depth), ("heads", heads)] {
            at_least(MODEL, field, found, 1)?;
        }
        check_shape(MODEL, input, patch, classes)?;
        for (field, side) in [("input height", input[1]), ("input width", input[2])] {
            if !side.is_multiple_of(patch) {
                return refuse(MODEL, field, side, format!("a multiple of `patch`, {patch}"));
            }
        }
        if !width.is_multiple_of(heads) {
            return refuse(MODEL, "heads", heads, format!("a divisor of `width`, {width}"));
        }
        Ok(Self { input, classes, config, exits: false, features: Features::new(width) })
    }

    /// The same with a classifier of its own behind each layer.
    pub(crate) fn with_exits(self) -> Self {
        Self { exits: true, ..self }
    }

    fn build<B: Backend>(&self, device: &B::Device) -> Vit<B> {
        let ([channels, height, columns], VitConfig { patch, width, depth, .. }) = (self.input, self.config);
        let tokens = 1 + (height / patch) * (columns / patch);
        // The weights are drawn by `seeded`; these would be.
        let drawn = |shape: [usize; 3]| Initializer::Zeros.init(shape, device);
        Vit {
            patches: Conv2dConfig::new([channels, width], [patch; 2]).with_stride([patch; 2]).init(device),
            class_token: drawn([1, 1, width]),
            position: drawn([1, tokens, width]),
            blocks: (0..depth).map(|_| self.layer(device)).collect(),
            norm: LAYER_NORM.build(width, device),
            projection: self.features.build(device),
            head: LinearConfig::new(self.features.len(), self.classes).init(device),
            exits: (0..if self.exits { depth } else { 0 })
                .map(|_| AuxiliaryHead::new(LAYER_NORM, width, self.classes, device))
                .collect(),
        }
    }

    fn layer<B: Backend>(&self, device: &B::Device) -> EncoderLayer<B> {
        let VitConfig { width, heads, .. } = self.config;
        let linear = |from, to| LinearConfig::new(from, to).init(device);
        EncoderLayer {
            norm1: LAYER_NORM.build(width, device),
            qkv: linear(width, 3 * width),
            output: linear(width, width),
            norm2: LAYER_NORM.build(width, device),
            hidden: linear(width, WIDER * width),
            back: linear(WIDER * width, width),
            heads,
        }
    }
}

impl_family!(VitFamily, Vit, InitScheme::PyTorch);

/// Layer norm is group norm with one group, each token an image of one pixel.
const LAYER_NORM: NormChoice = NormChoice::Group { groups: 1 };

/// Layer norm of `tokens` `[tokens, width]`.
fn layer_norm<B: Kernels>(norm: &Norm<B>, tokens: Tensor<B, 2>, mode: Mode) -> Tensor<B, 2> {
    let [count, width] = tokens.dims();
    norm.forward(tokens.reshape([count, width, 1, 1]), mode).reshape([count, width])
}

impl<B: Kernels> Vit<B> {
    /// The features of what any layer makes.
    fn class(&self, hidden: Tensor<B, 4>, mode: Mode) -> Tensor<B, 2> {
        let [batch, _, _, width] = hidden.dims();
        let class = hidden.narrow(2, 0, 1).reshape([batch, width]);
        project(&self.projection, layer_norm(&self.norm, class, mode))
    }
}

impl<B: Kernels> Split<B> for Vit<B> {
    fn features(&self, inputs: Tensor<B, 4>, mode: Mode) -> Tensor<B, 2> {
        let tokens = self.blocks.iter().fold(self.stem(inputs, mode), |tokens, layer| layer.forward(tokens, mode));
        self.class(tokens, mode)
    }

    fn head(&self, features: Tensor<B, 2>) -> Tensor<B, 2> {
        linear(&self.head, features)
    }
}

impl<B: Kernels> Staged<B> for Vit<B> {
    fn stages(&self, inputs @ [batch, image @ ..]: [usize; 4]) -> Stages {
        let paths = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
        let [_, tokens, width] = self.position.dims();
        let layer = |(index, layer): (usize, &EncoderLayer<B>)| {
            let token = |wider: usize| vec![tokens, wider * width];
            let weights = vec![layer.heads, tokens, tokens];
            let kept = vec![
                token(1),        // the input, for the first norm
                token(1),        // normalised, for queries, keys and values
                token(3),        // these, for attention
                weights.clone(), // logarithms of the weights of attention, their exponentials, and themselves
                weights.clone(),
                weights,
                token(1),     // what attention makes, for the layer after it
                token(1),     // the sum, for the second norm
                token(1),     // normalised, for the first layer
                token(WIDER), // before GELU
                token(WIDER), // after it, for the second layer
            ];
            // Gradients: of the layer's output, of what GELU made, and the latter once more by columns.
            let in_hand = vec![token(1), token(WIDER), token(WIDER)];
            Stage { paths: vec![format!("blocks.{index}")], kept, in_hand, keeps_shape: true }
        };
        let linear_layers =
            self.blocks.iter().flat_map(|layer| [&layer.qkv, &layer.output, &layer.hidden, &layer.back]);
        let linear_layers = linear_layers.map(|layer| linear_workspace(batch * tokens, &layer.weight.val()));
        Stages {
            stem: Stage {
                paths: paths(&["patches", "class_token", "position"]),
                kept: vec![image.to_vec()],
                in_hand: vec![vec![tokens, width]; 3],
                keeps_shape: false,
            },
            blocks: self.blocks.iter().enumerate().map(layer).collect(),
            head: Stage {
                paths: paths(&["norm", "projection", "head"]),
                kept: vec![vec![width], vec![width]],
                in_hand: vec![vec![tokens, width]; 2],
                keeps_shape: false,
            },
            exits: exit_stages(self.exits.iter().map(|_| vec![width, 1, 1])),
            workspace: conv2d_workspace(&self.patches, inputs) + linear_layers.max().unwrap_or(0),
        }
    }

    fn stem(&self, inputs: Tensor<B, 4>, _mode: Mode) -> Tensor<B, 4> {
        let patches = conv2d(&self.patches, inputs).flatten::<3>(2, 3).swap_dims(1, 2);
        let [batch, _, width] = patches.dims();
        let class = self.class_token.val().expand([batch, 1, width]);
        (Tensor::cat(vec![class, patches], 1) + self.position.val()).unsqueeze_dim(1)
    }

    fn block(&self, index: usize, hidden: Tensor<B, 4>, mode: Mode) -> Tensor<B, 4> {
        self.blocks[index].forward(hidden, mode)
    }

    fn logits(&self, hidden: Tensor<B, 4>, mode: Mode) -> Tensor<B, 2> {
        self.head(self.class(hidden, mode))
    }

    fn exit(&self, index: usize, hidden: Tensor<B, 4>, mode: Mode) -> Option<Tensor<B, 2>> {
        let [batch, _, _, width] = hidden.dims();
        let class = hidden.narrow(2, 0, 1).reshape([batch, width, 1, 1]);
        Some(self.exits.get(index)?.forward(class, mode))
    }
}

impl<B: Kernels> Classifier<B> for Vit<B> {
    fn forward(&self, inputs: Tensor<B, 4>, mode: Mode) -> Tensor<B, 2> {
        self.head(self.features(inputs, mode))
    }

    fn split(&self) -> Option<&dyn Split<B>> {
        Some(self)
    }

    fn staged(&self) -> Option<&dyn Staged<B>> {
        Some(self)
    }
}

impl<B: Kernels> EncoderLayer<B> {
    /// Tokens `[batch, 1, tokens, width]` to tokens of the same shape.
    pub fn forward(&self, hidden: Tensor<B, 4>, mode: Mode) -> Tensor<B, 4> {
        let shape @ [batch, _, tokens, width] = hidden.dims();
        let x = hidden.reshape([batch * tokens, width]);
        let mixed = self.attend(layer_norm(&self.norm1, x.clone(), mode), batch);
        let x = x + linear(&self.output, mixed);
        let wide = gelu(linear(&self.hidden, layer_norm(&self.norm2, x.clone(), mode)));
        (x + linear(&self.back, wide)).reshape(shape)
    }

    /// What each token takes of all tokens of its image, `[batch tokens, width]` to the same shape.
    fn attend(&self, x: Tensor<B, 2>, batch: usize) -> Tensor<B, 2> {
        let [rows, width] = x.dims();
        let (tokens, size) = (rows / batch, width / self.heads);
        let all = linear(&self.qkv, x).reshape([batch, tokens, 3, self.heads, size]).permute([2, 0, 3, 1, 4]);
        let part = |index: usize| all.clone().narrow(0, index, 1).reshape([batch, self.heads, tokens, size]);
        let [queries, keys, values] = [0, 1, 2].map(part);
        let weights = softmax(queries.div_scalar((size as f64).sqrt()).matmul(keys.swap_dims(2, 3)), 3);
        weights.matmul(values).swap_dims(1, 2).reshape([rows, width])
    }
}
