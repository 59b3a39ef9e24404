//! A classifier of a block's own.

use burn::module::Module;
use burn::nn::{Linear, LinearConfig};
use burn::tensor::{Tensor, backend::Backend};
use fedburn_core::{Mode, Stage};
use fedburn_ops::Kernels;

use crate::{Norm, NormChoice, linear};

/// What is trained in place of a model's head while the blocks before it are: a normalisation, the mean over each map, a
/// linear layer.
///
/// The auxiliary head of m-FeDepth: Kai Zhang, Yutong Dai, Hongyi Wang, Eric Xing, Xun Chen, Lichao Sun, Memory-adaptive
/// Depth-wise Heterogenous Federated Learning, 2023, arXiv:2303.04887, and its published code.
#[derive(Module, Debug)]
pub struct AuxiliaryHead<B: Backend> {
    /// Normalises what the block makes.
    pub norm: Norm<B>,
    /// `[channels, classes]`.
    pub head: Linear<B>,
}

impl<B: Backend> AuxiliaryHead<B> {
    pub(crate) fn new(norm: NormChoice, channels: usize, classes: usize, device: &B::Device) -> Self {
        Self { norm: norm.build(channels, device), head: LinearConfig::new(channels, classes).init(device) }
    }
}

impl<B: Kernels> AuxiliaryHead<B> {
    /// Class scores `[batch, classes]` of `maps` `[batch, channels, height, width]`.
    pub fn forward(&self, maps: Tensor<B, 4>, mode: Mode) -> Tensor<B, 2> {
        linear(&self.head, self.norm.forward(maps, mode).mean_dim(3).mean_dim(2).flatten::<2>(1, 3))
    }
}

/// The stages of heads `exits.0` and on, which see maps of these shapes.
pub(crate) fn exit_stages(maps: impl Iterator<Item = Vec<usize>>) -> Vec<Stage> {
    let stage = |(index, map): (usize, Vec<usize>)| Stage {
        paths: vec![format!("exits.{index}")],
        kept: vec![map.clone(), map.clone(), vec![map[0]]],
        in_hand: vec![map; 2],
        keeps_shape: false,
    };
    maps.enumerate().map(stage).collect()
}
