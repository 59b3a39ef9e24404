//! The pre-activation residual net of FeDepth.

use burn::module::Module;
use burn::nn::conv::Conv2d;
use burn::nn::{Linear, LinearConfig};
use burn::tensor::ops::PadMode;
use burn::tensor::{Tensor, backend::Backend};
use fedburn_core::{Classifier, Mode, Split, Stage, Staged, Stages};
use fedburn_ops::{Kernels, linear_workspace};

use crate::auxiliary_head::{AuxiliaryHead, exit_stages};
use crate::error::{at_least, check_shape, refuse};
use crate::family::{impl_family, scaled, share_of};
use crate::projection::{Features, project};
use crate::resnet::conv;
use crate::{InitScheme, ModelError, Norm, NormChoice, Projection, conv2d, conv2d_workspace, linear};

/// A normalised 3x3 convolution, three groups of three blocks that normalise before they convolve, of which the second
/// and the third group begin by halving the image and doubling the channels, and a linear layer on the mean over the
/// normalised image.
///
/// Kaiming He, Xiangyu Zhang, Shaoqing Ren, Jian Sun: Identity Mappings in Deep Residual Networks, ECCV 2016,
/// arXiv:1603.05027; 20 layers as in Kai Zhang, Yutong Dai, Hongyi Wang, Eric Xing, Xun Chen, Lichao Sun: Memory-adaptive
/// Depth-wise Heterogenous Federated Learning, 2023, arXiv:2303.04887, and its published code: a norm after the first
/// convolution, a 1x1 convolution without norm around a block that changes the shape, batch norm without running
/// statistics. With 16 channels in the first group and ten classes it has 272,314 parameters.
///
/// Around a block that keeps the shape its input is added as it is; the published code adds the normalised input.
#[derive(Module, Debug)]
pub struct PreResNet<B: Backend> {
    /// `[width, channels, 3, 3]`.
    pub stem: Conv2d<B>,
    /// Normalises the stem's output.
    pub norm: Norm<B>,
    /// All groups' blocks, one after another.
    pub blocks: Vec<PreActivationBlock<B>>,
    /// Normalises what the last block makes.
    pub head_norm: Norm<B>,
    /// Between features and head, where asked for.
    pub projection: Option<Projection<B>>,
    /// `[4 width, classes]`.
    pub head: Linear<B>,
    /// Each block's own classifier, where asked for.
    pub exits: Vec<AuxiliaryHead<B>>,
    /// Share of the whole net's channels.
    share: f64,
}

/// Two 3x3 convolutions, each of a normalised input, around which the input is added.
#[derive(Module, Debug)]
pub struct PreActivationBlock<B: Backend> {
    /// Before the first convolution.
    pub norm1: Norm<B>,
    /// `[outputs, inputs, 3, 3]`, strided where the group halves the image.
    pub conv1: Conv2d<B>,
    /// Before the second convolution.
    pub norm2: Norm<B>,
    /// `[outputs, outputs, 3, 3]`.
    pub conv2: Conv2d<B>,
    /// `[outputs, inputs, 1, 1]` of the normalised input, where input and output differ in shape.
    pub shortcut: Option<Conv2d<B>>,
    /// Share of the whole net's channels.
    share: f64,
}

/// Recipe of [`PreResNet`].
#[derive(Clone, Debug)]
pub struct PreResNetFamily {
    channels: usize,
    classes: usize,
    norm: NormChoice,
    width: usize,
    share: f64,
    exits: bool,
    pub(crate) features: Features,
}

/// Groups of blocks, and blocks in each.
const GROUPS: [usize; 3] = [3; 3];

impl PreResNetFamily {
    /// The net of 20 layers with `width` channels in the first group, for inputs `[channels, height, width]` of at least
    /// 4 on either side.
    ///
    /// # Errors
    /// [`ModelError`] for groups that do not divide `width`, a side shorter than 4, or a size that is zero or absurd.
    pub fn new(input: [usize; 3], classes: usize, width: usize, norm: NormChoice) -> Result<Self, ModelError> {
        const MODEL: &str = "preresnet20";
        check_shape(MODEL, input, 4, classes)?;
        at_least(MODEL, "width", width, 1)?;
        if let NormChoice::Group { groups } = norm
            && (groups == 0 || !width.is_multiple_of(groups))
        {
            return refuse(MODEL, "groups", groups, format!("a divisor of `width`, {width}"));
        }
        let features = Features::new(width << (GROUPS.len() - 1));
        Ok(Self { channels: input[0], classes, norm, width, share: 1.0, exits: false, features })
    }

    /// The same with a classifier of its own behind each block.
    pub(crate) fn with_exits(self) -> Self {
        Self { exits: true, ..self }
    }

    /// Blocks of the net.
    pub(crate) const BLOCKS: usize = GROUPS[0] + GROUPS[1] + GROUPS[2];

    /// Channels after `depth` blocks and after the last, and by how much maps are larger there than at the end.
    pub(crate) fn to_last(&self, depth: usize) -> ([usize; 2], usize) {
        let (mut group, mut end) = (0, GROUPS[0]);
        while end < depth && group + 1 < GROUPS.len() {
            group += 1;
            end += GROUPS[group];
        }
        let last = GROUPS.len() - 1;
        ([group, last].map(|group| self.channels_of(group)), 1 << (last - group))
    }

    /// A normalisation of so many channels.
    pub(crate) fn norm<B: Backend>(&self, channels: usize, device: &B::Device) -> Norm<B> {
        self.norm.build(channels, device)
    }

    /// Number of classes.
    pub(crate) fn classes(&self) -> usize {
        self.classes
    }

    pub(crate) fn build<B: Backend>(&self, device: &B::Device) -> PreResNet<B> {
        let (mut blocks, mut exits) = (Vec::new(), Vec::new());
        let width = self.channels_of(0);
        let mut inputs = width;
        for (group, &count) in GROUPS.iter().enumerate() {
            let outputs = self.channels_of(group);
            for index in 0..count {
                let stride = if group > 0 && index == 0 { 2 } else { 1 };
                blocks.push(self.block([inputs, outputs], stride, device));
                if self.exits {
                    exits.push(AuxiliaryHead::new(self.norm, outputs, self.classes, device));
                }
                inputs = outputs;
            }
        }
        PreResNet {
            stem: conv(self.channels, width, 3, 1, device),
            norm: self.norm.build(width, device),
            blocks,
            head_norm: self.norm.build(inputs, device),
            projection: self.features.build(device),
            head: LinearConfig::new(self.features.len(), self.classes).init(device),
            exits,
            share: self.share,
        }
    }

    /// Channels of a group.
    fn channels_of(&self, group: usize) -> usize {
        share_of(self.width << group, self.share)
    }

    fn slimmed(&self, share: f64) -> Option<Self> {
        let slim = Self { share: self.share * share, ..*self };
        let width = slim.channels_of(GROUPS.len() - 1);
        let divides = |groups: usize| (0..GROUPS.len()).all(|group| slim.channels_of(group).is_multiple_of(groups));
        match self.norm {
            NormChoice::Group { groups } if !divides(groups) => None,
            _ => Some(Self { features: self.features.of(width), ..slim }),
        }
    }

    fn block<B: Backend>(
        &self,
        [inputs, outputs]: [usize; 2],
        stride: usize,
        device: &B::Device,
    ) -> PreActivationBlock<B> {
        PreActivationBlock {
            norm1: self.norm.build(inputs, device),
            conv1: conv(inputs, outputs, 3, stride, device),
            norm2: self.norm.build(outputs, device),
            conv2: conv(outputs, outputs, 3, 1, device),
            shortcut: (stride > 1).then(|| conv(inputs, outputs, 1, stride, device)),
            share: self.share,
        }
    }
}

impl_family!(PreResNetFamily, PreResNet, InitScheme::HeNormal, slim);

impl<B: Kernels> PreResNet<B> {
    /// Channels of what the last block makes.
    fn width(&self) -> usize {
        self.blocks.last().map_or(self.stem.weight.dims()[0], |block| block.conv2.weight.dims()[0])
    }

    /// The features of what any block makes.
    fn pooled(&self, hidden: Tensor<B, 4>, mode: Mode) -> Tensor<B, 2> {
        let hidden = scaled(to_width(hidden, self.width()), self.share, mode);
        let maps = self.head_norm.forward_relu(hidden, mode);
        project(&self.projection, maps.mean_dim(3).mean_dim(2).flatten::<2>(1, 3))
    }

    /// What the last block makes.
    fn hidden(&self, inputs: Tensor<B, 4>, mode: Mode) -> Tensor<B, 4> {
        self.blocks.iter().fold(self.stem(inputs, mode), |x, block| block.forward(x, mode))
    }
}

/// `x` as if it were of `width` channels: every `s`-th pixel, where it has an `s`-th of them, between channels of zeros,
/// as many on either side.
fn to_width<B: Backend>(x: Tensor<B, 4>, width: usize) -> Tensor<B, 4> {
    let [_, channels, height, columns] = x.dims();
    if channels == width {
        return x;
    }
    // A slim net's channels do not divide one another.
    let stride = width.div_ceil(channels);
    let every = |side: usize| {
        let places = (0..side).step_by(stride).map(|place| place as i64);
        Tensor::<B, 1, burn::tensor::Int>::from_data(
            burn::tensor::TensorData::from(places.collect::<Vec<_>>().as_slice()),
            &x.device(),
        )
    };
    let (rows, places) = (every(height), every(columns));
    let small = x.select(2, rows).select(3, places);
    let missing = width - channels;
    small.pad([(0, 0), (missing / 2, missing - missing / 2), (0, 0), (0, 0)], PadMode::Constant(0.0))
}

impl<B: Kernels> Split<B> for PreResNet<B> {
    fn features(&self, inputs: Tensor<B, 4>, mode: Mode) -> Tensor<B, 2> {
        self.pooled(self.hidden(inputs, mode), mode)
    }

    fn head(&self, features: Tensor<B, 2>) -> Tensor<B, 2> {
        linear(&self.head, features)
    }
}

impl<B: Kernels> Staged<B> for PreResNet<B> {
    fn stages(&self, inputs: [usize; 4]) -> Stages {
        let [batch, _, mut height, mut width] = inputs;
        let paths = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
        let mut map = vec![self.stem.weight.dims()[0], height, width];
        let stem = Stage {
            paths: paths(&["stem", "norm"]),
            kept: vec![map.clone()],
            in_hand: vec![map.clone(); 3],
            keeps_shape: false,
        };
        let mut workspace = conv2d_workspace(&self.stem, inputs);
        let mut blocks = Vec::new();
        for (index, block) in self.blocks.iter().enumerate() {
            let [outputs, inputs, ..] = block.conv1.weight.dims();
            let [down, across] = block.conv1.stride;
            [height, width] = [height.div_ceil(down), width.div_ceil(across)];
            let made = vec![outputs, height, width];
            // Its input, which the first norm and the sum share, the input of either convolution, that of the second norm.
            let kept = vec![map.clone(), map.clone(), made.clone(), made.clone()];
            // What the sum waits for, two maps on their way from one layer to the next, a channel in a norm's gradient.
            let in_hand = vec![map.clone(), made.clone(), made.clone(), vec![1, map[1], map[2]]];
            let paths = vec![format!("blocks.{index}")];
            blocks.push(Stage { paths, kept, in_hand, keeps_shape: map == made });
            workspace = workspace
                .max(conv2d_workspace(&block.conv1, [batch, inputs, map[1], map[2]]))
                .max(conv2d_workspace(&block.conv2, [batch, outputs, height, width]));
            map = made;
        }
        let head = Stage {
            paths: paths(&["head_norm", "projection", "head"]),
            kept: vec![map.clone(), map.clone(), vec![map[0]]],
            in_hand: vec![map.clone(); 2],
            keeps_shape: false,
        };
        workspace += linear_workspace(batch, &self.head.weight.val());
        let made = blocks.iter().filter_map(|block: &Stage| block.kept.last().cloned());
        let exits = exit_stages(made.take(self.exits.len()));
        Stages { stem, blocks, head, exits, workspace }
    }

    fn stem(&self, inputs: Tensor<B, 4>, mode: Mode) -> Tensor<B, 4> {
        self.norm.forward(scaled(conv2d(&self.stem, inputs), self.share, mode), mode)
    }

    fn block(&self, index: usize, hidden: Tensor<B, 4>, mode: Mode) -> Tensor<B, 4> {
        self.blocks[index].forward(hidden, mode)
    }

    fn logits(&self, hidden: Tensor<B, 4>, mode: Mode) -> Tensor<B, 2> {
        self.head(self.pooled(hidden, mode))
    }

    fn exit(&self, index: usize, hidden: Tensor<B, 4>, mode: Mode) -> Option<Tensor<B, 2>> {
        Some(self.exits.get(index)?.forward(hidden, mode))
    }
}

impl<B: Kernels> Classifier<B> for PreResNet<B> {
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

impl<B: Kernels> PreActivationBlock<B> {
    /// `[batch, inputs, height, width]` to `[batch, outputs, height / stride, width / stride]`, rounded up.
    pub fn forward(&self, x: Tensor<B, 4>, mode: Mode) -> Tensor<B, 4> {
        let active = self.norm1.forward_relu(scaled(x.clone(), self.share, mode), mode);
        let past = match &self.shortcut {
            Some(shortcut) => {
                drop(x);
                conv2d(shortcut, active.clone())
            }
            None => x,
        };
        let y = self.norm2.forward_relu(scaled(conv2d(&self.conv1, active), self.share, mode), mode);
        conv2d(&self.conv2, y) + past
    }
}

#[cfg(test)]
mod tests {
    use burn_flex::{Flex, FlexDevice};

    use super::*;

    #[test]
    fn what_an_early_block_makes_is_thinned_out_and_put_in_the_middle() {
        let value = |channel: usize, row: usize, column: usize| (channel * 1024 + row * 32 + column) as f32;
        let x =
            Tensor::<Flex, 1, burn::tensor::Int>::arange(0..16 * 1024, &FlexDevice).float().reshape([1, 16, 32, 32]);
        let y = to_width(x.clone(), 64);
        assert_eq!(y.dims(), [1, 64, 8, 8]);
        let y: Vec<f32> = y.into_data().iter().collect();
        for (place, found) in y.into_iter().enumerate() {
            let (channel, row, column) = (place / 64, place / 8 % 8, place % 8);
            let expected = match channel {
                24..40 => value(channel - 24, 4 * row, 4 * column),
                _ => 0.0,
            };
            assert_eq!(found, expected, "channel {channel}, row {row}, column {column}");
        }
        assert_eq!(to_width(x.clone(), 32).dims(), [1, 32, 16, 16]);
        assert_eq!(to_width(x.clone(), 16).into_data(), x.into_data());
    }
}
