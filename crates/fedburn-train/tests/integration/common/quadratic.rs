//! A model that is nothing but its parameters, and quadratic losses on it, whose steps can be worked out by hand.

use burn::backend::Autodiff;
use burn::module::{Module, Param};
use burn::optim::GradientsParams;
use burn::tensor::{Tensor, backend::Backend};
use fedburn_core::{Classifier, ClientId, Mode, ParamVector, Split, TrainTask, flatten, load};
use fedburn_data::Batch;
use fedburn_train::{BatchGradients, GradientRule, LocalRun, LocalTraining};

use super::{task, toy_data};

/// Two weights and a bias; the logits of every example. The weights are its features.
#[derive(Module, Debug)]
pub struct Point<B: Backend> {
    pub weight: Param<Tensor<B, 1>>,
    pub bias: Param<Tensor<B, 1>>,
}

impl<B: Backend> Classifier<B> for Point<B> {
    fn forward(&self, inputs: Tensor<B, 4>, _mode: Mode) -> Tensor<B, 2> {
        self.values().unsqueeze::<2>().expand([inputs.dims()[0], 3])
    }

    fn split(&self) -> Option<&dyn Split<B>> {
        Some(self)
    }
}

impl<B: Backend> Split<B> for Point<B> {
    fn features(&self, inputs: Tensor<B, 4>, _mode: Mode) -> Tensor<B, 2> {
        self.weight.val().unsqueeze::<2>().expand([inputs.dims()[0], 2])
    }

    fn head(&self, features: Tensor<B, 2>) -> Tensor<B, 2> {
        let bias = self.bias.val().unsqueeze::<2>().expand([features.dims()[0], 1]);
        Tensor::cat(vec![features, bias], 1)
    }
}

impl<B: Backend> Point<B> {
    pub fn at(values: [f32; 3], device: &B::Device) -> Self {
        let [a, b, c] = values;
        Self {
            weight: Param::from_tensor(Tensor::from_floats([a, b], device)),
            bias: Param::from_tensor(Tensor::from_floats([c], device)),
        }
    }

    pub fn values(&self) -> Tensor<B, 1> {
        Tensor::cat(vec![self.weight.val(), self.bias.val()], 0)
    }

    pub fn host(&self) -> Vec<f32> {
        self.values().into_data().to_vec().unwrap()
    }
}

/// [`Point`] in training.
pub type TrainPoint<B> = Point<Autodiff<B>>;

/// The flat vector of these values.
pub fn vector<B: Backend>(values: [f32; 3], device: &B::Device) -> ParamVector<B> {
    flatten(&Point::<B>::at(values, device)).unwrap()
}

/// The training model at `params`.
pub fn train_model<B: Backend>(params: &ParamVector<B>) -> Point<Autodiff<B>> {
    let model = Point::<Autodiff<B>>::at([0.0; 3], &params.device());
    let values = Tensor::from_inner(params.values().clone());
    let model = load(model, &ParamVector::new(values, params.schema().clone()).unwrap()).unwrap();
    Point { weight: model.weight.set_require_grad(true), bias: model.bias.set_require_grad(true) }
}

/// `sum_i curvature_i (x_i - centre_i)^2 / 2`, whatever the batch.
#[derive(Clone, Copy, Debug)]
pub struct Quadratic {
    pub curvature: [f32; 3],
    pub centre: [f32; 3],
}

impl<B: Backend> GradientRule<B, Point<Autodiff<B>>> for Quadratic {
    fn gradients(&mut self, model: Point<Autodiff<B>>, batch: Batch<B>) -> BatchGradients<B, Point<Autodiff<B>>> {
        let device = batch.inputs.device();
        let away = model.values() - Tensor::from_floats(self.centre, &device);
        let loss = (away.clone() * away * Tensor::from_floats(self.curvature, &device)).sum().div_scalar(2.0);
        let gradients = GradientsParams::from_grads(loss.backward(), &model);
        BatchGradients { model, gradients, loss: loss.inner() }
    }
}

/// Runs `train` as the local run of one client on data that do not matter.
pub fn on_run<B: Backend, T>(
    task: &TrainTask<B>,
    training: &LocalTraining,
    train: impl FnOnce(Point<Autodiff<B>>, &LocalRun<'_, B>) -> T,
) -> T {
    let (data, device) = (toy_data(4, 0), task.global.device());
    let run = LocalRun { client: ClientId(3), task, data: &data, training, device: &device, memory: None };
    train(train_model(&task.global), &run)
}

/// A task that starts from these values.
pub fn task_at<B: Backend>(values: [f32; 3], device: &B::Device) -> TrainTask<B> {
    task(&vector(values, device), 0)
}
