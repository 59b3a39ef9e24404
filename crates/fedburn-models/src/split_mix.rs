//! SplitMix's ensemble of narrow nets.

use burn::module::Module;
use burn::tensor::{Tensor, backend::Backend};
use fedburn_core::{Classifier, Ensemble, Mode};
use fedburn_ops::Kernels;

use crate::error::refuse;
use crate::family::{impl_family, mean};
use crate::{InitScheme, ModelError, PreResNet, PreResNetFamily};

/// Narrow nets, each with all layers, whose scores are averaged.
///
/// Junyuan Hong, Haotao Wang, Zhangyang Wang, Jiayu Zhou: Efficient Split-Mix Federated Learning for On-Demand and In-Situ
/// Customization, ICLR 2022, arXiv:2203.09747: a net of which as many are as wide as the whole one. Here the nets are
/// [`PreResNet`]s, each with initial weights of its own that suit its width; what the published code divides layers'
/// outputs by, the norms after them divide out again.
#[derive(Module, Debug)]
pub struct SplitMix<B: Backend> {
    /// At least one.
    pub nets: Vec<PreResNet<B>>,
}

/// Recipe of [`SplitMix`].
#[derive(Clone, Debug)]
pub struct SplitMixFamily {
    net: PreResNetFamily,
    nets: usize,
}

impl SplitMixFamily {
    /// So many nets of one recipe.
    ///
    /// # Errors
    /// [`ModelError`] where there is none, or more than 1,024.
    pub fn new(net: PreResNetFamily, nets: usize) -> Result<Self, ModelError> {
        match nets {
            1..=MOST_NETS => Ok(Self { net, nets }),
            _ => refuse("split_mix", "nets", nets, format!("1 to {MOST_NETS}")),
        }
    }

    fn build<B: Backend>(&self, device: &B::Device) -> SplitMix<B> {
        SplitMix { nets: (0..self.nets).map(|_| self.net.build(device)).collect() }
    }
}

/// More would be too narrow to be of any use.
const MOST_NETS: usize = 1024;

impl_family!(SplitMixFamily, SplitMix, InitScheme::HeNormal);

impl<B: Kernels> Ensemble<B> for SplitMix<B> {
    fn members(&self) -> Vec<Vec<String>> {
        (0..self.nets.len()).map(|net| vec![format!("nets.{net}")]).collect()
    }

    fn own(&self, member: usize) -> Vec<String> {
        vec![format!("nets.{member}")]
    }

    fn nested(&self) -> bool {
        false
    }

    fn logits(&self, members: &[usize], inputs: Tensor<B, 4>, mode: Mode) -> Vec<Tensor<B, 2>> {
        members.iter().map(|&net| self.nets[net].forward(inputs.clone(), mode)).collect()
    }
}

impl<B: Kernels> Classifier<B> for SplitMix<B> {
    fn forward(&self, inputs: Tensor<B, 4>, mode: Mode) -> Tensor<B, 2> {
        let (first, others) = (self.nets[0].forward(inputs.clone(), mode), &self.nets[1..]);
        mean(first, others.iter().map(|net| net.forward(inputs.clone(), mode)))
    }

    fn ensemble(&self) -> Option<&dyn Ensemble<B>> {
        Some(self)
    }
}
