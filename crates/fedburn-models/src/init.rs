//! Initial weights from the run's seed, drawn on the host: the same bits on every backend, in any thread, whatever the
//! state of burn's generator.

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{Tensor, TensorData, backend::Backend};
use fedburn_core::{Purpose, Seed};
use rand::RngExt;
use rand_distr::{Distribution, StandardNormal};

/// From which distribution weights are drawn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum InitScheme {
    /// PyTorch's defaults for every layer: uniform in `±1/sqrt(fan_in)`, see [`seeded`].
    #[default]
    PyTorch,
    /// The same, but convolution weights normal with standard deviation `sqrt(2 / fan_out)`, as usual for residual nets.
    ///
    /// Kaiming He, Xiangyu Zhang, Shaoqing Ren, Jian Sun: Delving Deep into Rectifiers, ICCV 2015, arXiv:1502.01852.
    HeNormal,
}

/// Gives every float tensor of `module` its initial value; burn's own initialisers never run if the module is fresh.
///
/// What a tensor gets follows from its layer and its name, for burn's layers and for own ones of like names:
///
/// | layer | tensor | value |
/// |---|---|---|
/// | any | `gamma`, `running_var` | 1 |
/// | any | `beta`, `running_mean` | 0 |
/// | `Embedding` | `weight` | normal, mean 0, standard deviation 1 |
/// | [`LstmCell`](crate::LstmCell), gates of burn's `Lstm` and `Gru` | all | uniform in `±1/sqrt(hidden)` |
/// | `Conv…` with [`InitScheme::HeNormal`] | `weight` | normal, standard deviation `sqrt(2/fan_out)` |
/// | any | two dimensions `[in, out]` | uniform in `±1/sqrt(in)` |
/// | any | more dimensions `[out, in, …kernel]` | uniform in `±1/sqrt(in · kernel)` |
/// | any | one dimension | uniform in the bounds of the tensor before it in the same layer, 0 without one |
///
/// The `i`-th float tensor in traversal order draws from `seed.purpose(Purpose::Initialisation).index(i)`, so that
/// changing a layer's size changes no other layer.
///
/// Build the module for this call and do not clone it before: clones share batch norm's running statistics, and burn
/// forgets on cloning that a parameter is trained. Layers that transpose on loading (`LinearLayout::Col`) are not
/// supported, here or in [`fedburn_core::flatten`].
///
/// # Examples
///
/// ```
/// use burn::nn::{Linear, LinearConfig};
/// use burn_flex::{Flex, FlexDevice};
/// use fedburn_core::Seed;
/// use fedburn_models::{InitScheme, seeded};
///
/// let layer: Linear<Flex> = seeded(LinearConfig::new(16, 4).init(&FlexDevice), Seed::new(1), InitScheme::PyTorch);
/// let weight = layer.weight.val().into_data().to_vec::<f32>().unwrap();
/// assert!(weight.iter().all(|w| w.abs() <= 0.25));
/// ```
pub fn seeded<B: Backend, M: Module<B>>(module: M, seed: Seed, scheme: InitScheme) -> M {
    let seed = seed.purpose(Purpose::Initialisation);
    module.map(&mut Seeder { seed, scheme, index: 0, place: Vec::new(), fan_in: None })
}

struct Seeder {
    seed: Seed,
    scheme: InitScheme,
    /// How many float tensors came before.
    index: u64,
    /// Name and container of each module entered, outermost first.
    place: Vec<(String, String)>,
    /// The last weight's layer and fan-in: what its bias goes by.
    fan_in: Option<(Vec<String>, usize)>,
}

/// A distribution of initial values.
enum Draw {
    Constant(f32),
    Uniform { bound: f64 },
    Normal { deviation: f64 },
}

impl Seeder {
    /// The distribution for the tensor at the current place.
    fn draw(&mut self, shape: &[usize]) -> Draw {
        let layer_at = |depth: usize| match self.place.len().checked_sub(depth).map(|i| self.place[i].1.as_str()) {
            Some(container) => container.strip_prefix("Struct:").unwrap_or(container),
            None => "",
        };
        let (name, layer, outer) = (self.place.last().map_or("", |p| p.0.as_str()), layer_at(1), layer_at(2));
        let uniform = |fan_in: usize| Draw::Uniform { bound: 1.0 / (fan_in.max(1) as f64).sqrt() };
        match (layer, name, shape) {
            (_, "gamma" | "running_var", _) => Draw::Constant(1.0),
            (_, "beta" | "running_mean", _) => Draw::Constant(0.0),
            ("Embedding", _, _) => Draw::Normal { deviation: 1.0 },
            ("LstmCell", _, [.., gates]) => uniform(gates / 4),
            (_, _, [.., hidden]) if outer == "GateController" => uniform(*hidden),
            (_, _, [outputs, _, kernel @ ..])
                if self.scheme == InitScheme::HeNormal && layer.starts_with("Conv") && shape.len() > 2 =>
            {
                let fan_out = outputs * kernel.iter().product::<usize>();
                Draw::Normal { deviation: (2.0 / fan_out.max(1) as f64).sqrt() }
            }
            (_, _, [first, rest @ ..]) if !rest.is_empty() => {
                let fan_in = if rest.len() == 1 { *first } else { rest.iter().product() };
                self.fan_in = Some((self.parent(), fan_in));
                uniform(fan_in)
            }
            _ => match &self.fan_in {
                Some((parent, fan_in)) if *parent == self.parent() => uniform(*fan_in),
                _ => Draw::Constant(0.0),
            },
        }
    }

    /// The names above the current tensor: the layer it belongs to.
    fn parent(&self) -> Vec<String> {
        self.place.split_last().map_or(Vec::new(), |(_, above)| above.iter().map(|p| p.0.clone()).collect())
    }

    fn values(&mut self, shape: &[usize]) -> Vec<f32> {
        let len = shape.iter().product();
        let mut rng = self.seed.index(self.index).rng();
        self.index += 1;
        match self.draw(shape) {
            Draw::Constant(value) => vec![value; len],
            Draw::Uniform { bound } => {
                (0..len).map(|_| (rng.random::<f64>().mul_add(2.0, -1.0) * bound) as f32).collect()
            }
            Draw::Normal { deviation } => (0..len)
                .map(|_| {
                    let value: f64 = StandardNormal.sample(&mut rng);
                    (value * deviation) as f32
                })
                .collect(),
        }
    }
}

impl<B: Backend> ModuleMapper<B> for Seeder {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.place.push((name.to_owned(), container.to_owned()));
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.place.pop();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        let (id, shape, device) = (param.id, param.lazy_shape(), param.lazy_device());
        let data = TensorData::new(self.values(&shape.to_vec()), shape.clone());
        if param.is_initialized() {
            return param.transform_for_load(Tensor::from_data(data, &device), id);
        }
        // A fresh parameter is trained. Off autodiff a tensor cannot say so, and a parameter made from one would make
        // a training model without gradients; only a lazy parameter keeps the wish.
        let draw = move |device: &B::Device, trained| Tensor::from_data(data.clone(), device).set_require_grad(trained);
        let param = Param::uninitialized(id, draw, device, true, shape);
        param.val();
        param
    }
}

#[cfg(test)]
mod tests {
    use burn::backend::Autodiff;
    use burn::module::AutodiffModule;
    use burn::nn::conv::Conv2dConfig;
    use burn::nn::{BatchNormConfig, EmbeddingConfig, GroupNormConfig, Linear, LinearConfig, LstmConfig};
    use burn_flex::{Flex, FlexDevice};
    use burn_ndarray::NdArray;
    use fedburn_core::{ParamVector, flatten};

    use super::*;

    fn drawn<M: Module<Flex>>(module: M, scheme: InitScheme) -> ParamVector<Flex> {
        flatten(&seeded::<Flex, M>(module, Seed::new(3), scheme)).unwrap()
    }

    fn values(params: &ParamVector<Flex>, path: &str) -> Vec<f32> {
        params.to_host()[params.schema().entry(path).unwrap().range()].to_vec()
    }

    /// Largest magnitude close to the bound and mean close to 0: uniform in `±bound`.
    #[track_caller]
    fn assert_uniform(values: &[f32], bound: f32) {
        let largest = values.iter().fold(0.0f32, |a, v| a.max(v.abs()));
        assert!(largest <= bound && largest > 0.8 * bound, "largest {largest}, bound {bound}");
        let mean = values.iter().sum::<f32>() / values.len() as f32;
        assert!(mean.abs() < 3.0 * bound / (3.0 * values.len() as f32).sqrt(), "mean {mean}");
    }

    #[track_caller]
    fn assert_normal(values: &[f32], deviation: f32) {
        let square = values.iter().map(|v| v * v).sum::<f32>() / values.len() as f32;
        assert!((square.sqrt() / deviation - 1.0).abs() < 0.1, "deviation {}, expected {deviation}", square.sqrt());
        let far = values.iter().filter(|v| v.abs() > deviation).count() as f32 / values.len() as f32;
        assert!((far - 0.317).abs() < 0.06, "{far} of the values lie beyond one deviation");
    }

    #[test]
    fn each_layer_gets_pytorchs_distribution() {
        let device = FlexDevice;
        let linear = drawn(LinearConfig::new(25, 64).init::<Flex>(&device), InitScheme::PyTorch);
        assert_uniform(&values(&linear, "weight"), 0.2);
        assert_uniform(&values(&linear, "bias"), 0.2);

        let conv = || Conv2dConfig::new([4, 32], [5, 5]).init::<Flex>(&device);
        let uniform = drawn(conv(), InitScheme::PyTorch);
        assert_uniform(&values(&uniform, "weight"), 0.1);
        assert_uniform(&values(&uniform, "bias"), 0.1);
        assert_normal(&values(&drawn(conv(), InitScheme::HeNormal), "weight"), (2.0f32 / 800.0).sqrt());

        let embedding = drawn(EmbeddingConfig::new(80, 8).init::<Flex>(&device), InitScheme::PyTorch);
        assert_normal(&values(&embedding, "weight"), 1.0);

        let lstm = drawn(LstmConfig::new(3, 25, true).init::<Flex>(&device), InitScheme::PyTorch);
        assert_uniform(&values(&lstm, "input_gate.input_transform.weight"), 0.2);

        let batch_norm = drawn(BatchNormConfig::new(2).init::<Flex>(&device), InitScheme::HeNormal);
        assert_eq!(batch_norm.to_host(), [1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0]);
        let group_norm = drawn(GroupNormConfig::new(1, 2).init::<Flex>(&device), InitScheme::PyTorch);
        assert_eq!(group_norm.to_host(), [1.0, 1.0, 0.0, 0.0]);
    }

    #[test]
    fn drawn_weights_are_pinned() {
        let layer = LinearConfig::new(2, 2).init::<Flex>(&FlexDevice);
        let found: Vec<u32> = drawn(layer, InitScheme::PyTorch).to_host().iter().map(|v| v.to_bits()).collect();
        assert_eq!(found, PINNED, "initial weights are part of every published result: {found:#010x?}");
    }

    const PINNED: [u32; 6] = [0x3d7f_9684, 0xbe9d_9230, 0xbcec_079b, 0xbdef_c7a9, 0x3e3f_8b90, 0xbf15_29fe];

    #[test]
    fn a_model_seeded_off_autodiff_still_learns() {
        let layer: Linear<Flex> = seeded(LinearConfig::new(2, 1).init(&FlexDevice), Seed::new(1), InitScheme::PyTorch);
        let layer = Linear::<Autodiff<Flex>>::from_inner(layer);
        assert!(layer.weight.val().is_require_grad());
    }

    #[test]
    fn burns_generator_is_neither_asked_nor_moved() {
        type Nd = NdArray;
        let device = Default::default();
        let draw = || Tensor::<Nd, 1>::random([8], burn::tensor::Distribution::Default, &device).into_data();
        let init = || {
            let layer = LinearConfig::new(3, 3).init::<Nd>(&device);
            seeded::<Nd, _>(layer, Seed::new(1), InitScheme::PyTorch).weight.val().into_data()
        };
        Nd::seed(&device, 5);
        let (first, expected) = (init(), draw());
        Nd::seed(&device, 5);
        assert_eq!(draw(), expected, "the initialisation moved the generator");
        Nd::seed(&device, 6);
        assert_eq!(init(), first, "the initialisation asked the generator");
    }
}
