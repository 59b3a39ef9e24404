//! DepthFL's net with a classifier at several depths.

use burn::module::Module;
use burn::nn::conv::Conv2d;
use burn::nn::{Linear, LinearConfig};
use burn::tensor::{Tensor, backend::Backend};
use fedburn_core::{Classifier, Ensemble, Mode, Stage, Staged, Stages};
use fedburn_ops::Kernels;
use serde::{Deserialize, Serialize};

use crate::error::refuse;
use crate::family::{impl_family, mean};
use crate::resnet::conv;
use crate::{InitScheme, ModelError, Norm, PreResNet, PreResNetFamily, conv2d, linear};

/// A [`PreResNet`] that also classifies what earlier blocks make. The scores of all classifiers are averaged, unless the
/// last alone is asked for.
///
/// Minjae Kim, Sangyoon Yu, Suhyun Kim, Soo-Mook Moon: DepthFL: Depthwise Federated Learning for Heterogeneous Clients,
/// ICLR 2023. There each classifier but the last has an attention and separable convolutions that bring maps to the
/// channels of the last stage; here a strided 1x1 convolution does.
#[derive(Module, Debug)]
pub struct DepthFl<B: Backend> {
    /// The net; its head is the last classifier.
    pub body: PreResNet<B>,
    /// The classifiers before the last.
    pub exits: Vec<Exit<B>>,
    /// Whether the last classifier alone predicts.
    last_alone: bool,
}

/// A classifier of what a block makes, of the shape of the last one.
#[derive(Module, Debug)]
pub struct Exit<B: Backend> {
    /// `[outputs, inputs, 1, 1]`, strided.
    pub bottleneck: Conv2d<B>,
    /// Normalises its output.
    pub norm: Norm<B>,
    /// `[outputs, classes]`.
    pub head: Linear<B>,
    /// Number of blocks before it.
    depth: usize,
}

/// Whose scores are those of a [`DepthFl`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Prediction {
    /// The mean of those of all classifiers.
    #[default]
    Mean,
    /// Those of the last one.
    Last,
}

/// Recipe of [`DepthFl`].
#[derive(Clone, Debug)]
pub struct DepthFlFamily {
    body: PreResNetFamily,
    /// Numbers of blocks before each classifier but the last.
    depths: Vec<usize>,
    prediction: Prediction,
}

impl DepthFlFamily {
    /// A classifier after each of these numbers of blocks, ascending, the last of which is all of them.
    ///
    /// # Errors
    /// [`ModelError`] for numbers that do not ascend to the number of blocks.
    pub fn new(body: PreResNetFamily, exits: &[usize], prediction: Prediction) -> Result<Self, ModelError> {
        let ascend = exits.first().is_some_and(|&first| first > 0) && exits.windows(2).all(|pair| pair[0] < pair[1]);
        match exits.split_last() {
            Some((&last, depths)) if ascend && last == PreResNetFamily::BLOCKS => {
                Ok(Self { body, depths: depths.to_vec(), prediction })
            }
            _ => {
                let expected =
                    format!("ascending numbers of blocks from 1, the last of them {}", PreResNetFamily::BLOCKS);
                refuse("depth_fl", "exits", format!("{exits:?}"), expected)
            }
        }
    }

    fn build<B: Backend>(&self, device: &B::Device) -> DepthFl<B> {
        let exits = self.depths.iter().map(|&depth| self.exit(depth, device)).collect();
        DepthFl { body: self.body.build(device), exits, last_alone: self.prediction == Prediction::Last }
    }

    fn exit<B: Backend>(&self, depth: usize, device: &B::Device) -> Exit<B> {
        let ([inputs, outputs], stride) = self.body.to_last(depth);
        Exit {
            bottleneck: conv(inputs, outputs, 1, stride, device),
            norm: self.body.norm(outputs, device),
            head: LinearConfig::new(outputs, self.body.classes()).init(device),
            depth,
        }
    }
}

impl_family!(DepthFlFamily, DepthFl, InitScheme::HeNormal);

impl<B: Kernels> DepthFl<B> {
    /// What of the net clients hold that train the first `members` classifiers, as stages of which the head is these
    /// classifiers together, for inputs `[batch, channels, height, width]`.
    pub fn stages(&self, members: usize, inputs: [usize; 4]) -> Stages {
        let whole = self.body.stages(inputs);
        let below =
            |stage: Stage| Stage { paths: stage.paths.iter().map(|path| format!("body.{path}")).collect(), ..stage };
        let mut blocks: Vec<Stage> = whole.blocks.into_iter().map(below).collect();
        let last = blocks.last().and_then(|block| block.kept.last()).cloned().unwrap_or_default();
        // On the way through a classifier, and what those before it have made.
        let in_hand = vec![last.clone(); 2];
        let mut head = Stage { paths: Vec::new(), kept: Vec::new(), in_hand, keeps_shape: false };
        for (index, exit) in self.exits.iter().enumerate().take(members) {
            head.paths.push(format!("exits.{index}"));
            // What the bottleneck sees, if no block after it leaves that too, what it makes, normalised, and the means.
            let seen = blocks.get(exit.depth.saturating_sub(1)).and_then(|block| block.kept.last());
            let seen = seen.filter(|_| index + 1 == members).cloned();
            head.kept.extend(seen.into_iter().chain([last.clone(), last.clone(), last[..1].to_vec()]));
        }
        match self.exits.get(members.saturating_sub(1)) {
            Some(exit) => blocks.truncate(exit.depth),
            None => {
                let own = below(whole.head);
                head.paths.extend(own.paths);
                head.kept.extend(own.kept);
            }
        }
        Stages { stem: below(whole.stem), blocks, head, exits: Vec::new(), workspace: whole.workspace }
    }

    /// The blocks up to which each member needs the net.
    fn depths(&self) -> impl Iterator<Item = usize> {
        self.exits.iter().map(|exit| exit.depth).chain([self.body.blocks.len()])
    }
}

impl<B: Kernels> Exit<B> {
    /// Class scores `[batch, classes]` of what a block makes.
    fn forward(&self, hidden: Tensor<B, 4>, mode: Mode) -> Tensor<B, 2> {
        let maps = self.norm.forward_relu(conv2d(&self.bottleneck, hidden), mode);
        linear(&self.head, maps.mean_dim(3).mean_dim(2).flatten::<2>(1, 3))
    }
}

impl<B: Kernels> Ensemble<B> for DepthFl<B> {
    fn members(&self) -> Vec<Vec<String>> {
        let mut begin = 0;
        let members = self.depths().enumerate().map(|(index, depth)| {
            let stem = ["body.stem", "body.norm"].into_iter().filter(|_| index == 0).map(str::to_owned);
            let blocks = (begin..depth).map(|block| format!("body.blocks.{block}"));
            begin = depth;
            stem.chain(blocks).chain(self.own(index)).collect()
        });
        members.collect()
    }

    fn own(&self, member: usize) -> Vec<String> {
        match self.exits.get(member) {
            Some(_) => vec![format!("exits.{member}")],
            None => ["head_norm", "projection", "head"].map(|layer| format!("body.{layer}")).into(),
        }
    }

    fn nested(&self) -> bool {
        true
    }

    fn logits(&self, members: &[usize], inputs: Tensor<B, 4>, mode: Mode) -> Vec<Tensor<B, 2>> {
        let depths: Vec<usize> = self.depths().collect();
        let (mut hidden, mut done) = (self.body.stem(inputs, mode), 0);
        let mut scores = |&member: &usize| {
            let depth = depths[member];
            hidden = (done..depth).fold(hidden.clone(), |hidden, block| self.body.block(block, hidden, mode));
            done = depth;
            match self.exits.get(member) {
                Some(exit) => exit.forward(hidden.clone(), mode),
                None => Staged::logits(&self.body, hidden.clone(), mode),
            }
        };
        members.iter().map(&mut scores).collect()
    }
}

impl<B: Kernels> Classifier<B> for DepthFl<B> {
    fn forward(&self, inputs: Tensor<B, 4>, mode: Mode) -> Tensor<B, 2> {
        if self.last_alone {
            return self.body.forward(inputs, mode);
        }
        let all: Vec<usize> = (0..=self.exits.len()).collect();
        let mut logits = self.logits(&all, inputs, mode).into_iter();
        let first = logits.next().expect("the last classifier is always there");
        mean(first, logits)
    }

    fn ensemble(&self) -> Option<&dyn Ensemble<B>> {
        Some(self)
    }
}
