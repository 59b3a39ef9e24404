//! A model of one's own: two linear layers, trained by one client on points inside and outside a circle.

use std::sync::Arc;

use burn::backend::Autodiff;
use burn::module::Module;
use burn::nn::{Linear, LinearConfig};
use burn::tensor::{Tensor, activation::relu, backend::Backend};
use burn_flex::{Flex, FlexDevice};
use fedburn::core::{
    ClassId, Classifier, Client, ClientId, Metrics, Mode, ModelFamily, ParamVector, Purpose, Reports, RoundIndex,
    SchemaError, Seed, SideInfo, TrainTask, flatten, load, schema_of,
};
use fedburn::data::{ClientData, Examples, Inputs};
use fedburn::train::{LocalTrainingConfig, ResidentModel, SupervisedClient};
use rand_distr::{Distribution, StandardUniform, Uniform};

/// The model. Its flat vector holds the tensors in the order of the fields.
#[derive(Module, Debug)]
struct TwoLayers<B: Backend> {
    hidden: Linear<B>,
    output: Linear<B>,
}

impl<B: Backend> Classifier<B> for TwoLayers<B> {
    /// Nothing here behaves differently in training, so that the mode does not matter.
    fn forward(&self, inputs: Tensor<B, 4>, _mode: Mode) -> Tensor<B, 2> {
        self.output.forward(relu(self.hidden.forward(inputs.flatten(1, 3))))
    }
}

/// The recipe.
#[derive(Clone, Debug)]
struct TwoLayersFamily {
    /// Values of one input.
    inputs: usize,
    /// Width of the hidden layer.
    hidden: usize,
    /// Number of classes.
    classes: usize,
}

impl<B: Backend> ModelFamily<B> for TwoLayersFamily {
    type Model = TwoLayers<B>;
    type TrainModel = TwoLayers<Autodiff<B>>;

    fn init(&self, seed: Seed, device: &B::Device) -> TwoLayers<B> {
        let model = TwoLayers {
            hidden: LinearConfig::new(self.inputs, self.hidden).init(device),
            output: LinearConfig::new(self.hidden, self.classes).init(device),
        };
        with_weights(model, seed, device).expect("weights drawn for the model's own schema")
    }
}

/// The model with weights drawn on the host: every tensor from a seed of its own, within `1 / sqrt(inputs)` of zero,
/// biases zero. burn's own initialisers do not run.
fn with_weights<B: Backend, M: Module<B>>(model: M, seed: Seed, device: &B::Device) -> Result<M, SchemaError> {
    let schema = Arc::new(schema_of(&model)?);
    let mut values = Vec::with_capacity(schema.num_values());
    for (index, entry) in (0..).zip(schema.entries()) {
        let bound = match entry.shape[..] {
            [inputs, _] => 1.0 / (inputs as f32).sqrt(),
            _ => 0.0,
        };
        let draws = StandardUniform.sample_iter(seed.index(index).rng());
        values.extend(draws.take(entry.range().len()).map(|draw: f32| (2.0 * draw - 1.0) * bound));
    }
    load(model, &ParamVector::from_host(values, schema, device)?)
}

/// Points of the square from -1 to 1; class 1 is inside the circle that covers half of it.
fn points(count: usize, seed: Seed) -> Result<ClientData, Box<dyn std::error::Error>> {
    let values: Vec<f32> = Uniform::new(-1.0, 1.0)?.sample_iter(seed.rng()).take(2 * count).collect();
    let inside = |point: &[f32]| point.iter().map(|v| v * v).sum::<f32>() < 2.0 / std::f32::consts::PI;
    let labels = values.chunks_exact(2).map(|point| ClassId(inside(point).into())).collect();
    Ok(ClientData::all(Arc::new(Examples::new(Inputs::F32(values), [1, 1, 2], labels, 2)?)))
}

/// Accuracy on the client's own points before and after its training.
fn train() -> Result<[Option<f64>; 2], Box<dyn std::error::Error>> {
    let seed = Seed::new(0);
    let family = TwoLayersFamily { inputs: 2, hidden: 32, classes: 2 };
    let global = flatten::<Flex, _>(&family.init(seed.purpose(Purpose::Initialisation), &FlexDevice))?;
    let resident = ResidentModel::<Flex, _>::new(family, FlexDevice);
    let training = LocalTrainingConfig::sgd(30, 16, 0.2).build()?;
    let data = points(500, seed.purpose(Purpose::Data))?;
    let mut client = SupervisedClient::new(ClientId(0), data.into(), Arc::new(training), resident);
    let before = client.evaluate(&global)?.get(Metrics::ACCURACY);
    let task = TrainTask {
        round: RoundIndex(1),
        global,
        slice: Vec::new(),
        seed: seed.purpose(Purpose::Training),
        side: SideInfo::default(),
        reports: Reports::default(),
        compression: Default::default(),
    };
    let update = client.train(&task)?;
    Ok([before, client.evaluate(&update.params)?.get(Metrics::ACCURACY)])
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    if let [Some(before), Some(after)] = train()? {
        println!("accuracy before training {:.1} %, after it {:.1} %", 100.0 * before, 100.0 * after);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use burn_flex::Flex;

    use super::*;

    const FAMILY: TwoLayersFamily = TwoLayersFamily { inputs: 2, hidden: 3, classes: 2 };

    fn init(seed: u64) -> Vec<f32> {
        flatten::<Flex, _>(&FAMILY.init(Seed::new(seed), &FlexDevice)).map(|v| v.to_host()).unwrap_or_default()
    }

    #[test]
    fn weights_are_a_function_of_the_seed() {
        assert_eq!(init(1).len(), 2 * 3 + 3 + 3 * 2 + 2);
        assert_eq!(init(1), init(1));
        assert_ne!(init(1), init(2));
    }

    #[test]
    fn it_learns_the_circle() -> Result<(), Box<dyn std::error::Error>> {
        let [before, after] = train()?;
        assert!(after > Some(0.9) && after > before, "{before:?} {after:?}");
        Ok(())
    }
}
