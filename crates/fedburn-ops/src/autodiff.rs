//! Gradients of the kernels.

use std::fmt;
use std::sync::Arc;

use burn::backend::Autodiff;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::tensor::TensorMetadata;
use burn::tensor::backend::Backend;
use burn::tensor::ops::{ConvOptions, FloatTensor};

use crate::{GroupNormOptions, Kernels, PoolOptions, composed};

/// One step of the graph per kernel where `B` has its own, burn's steps where it has not.
impl<B: Kernels, C: CheckpointStrategy> Kernels for Autodiff<B, C> {
    fn conv2d(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: Option<FloatTensor<Self>>,
        options: ConvOptions<2>,
    ) -> FloatTensor<Self> {
        let Some(own) = B::own(&x.primitive) else { return composed::conv2d::<Self>(x, weight, bias, options) };
        let (inner, kernel) = (x.primitive.clone(), weight.primitive.clone());
        let y = own.conv2d(&inner, &kernel, bias.as_ref().map(|b| &b.primitive), &options);
        match bias {
            Some(bias) => record::<B, C, 3>([x, weight, bias], y, move |dy, needs| {
                own.conv2d_backward(&inner, &kernel, &dy, &options, needs)
            }),
            None => record::<B, C, 2>([x, weight], y, move |dy, [x, weight]| {
                let [dx, dw, _] = own.conv2d_backward(&inner, &kernel, &dy, &options, [x, weight, false]);
                [dx, dw]
            }),
        }
    }

    fn conv2d_workspace(x: [usize; 4], weight: &FloatTensor<Self>, options: &ConvOptions<2>) -> usize {
        <B as Kernels>::conv2d_workspace(x, &weight.primitive, options)
    }

    fn group_norm(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        options: GroupNormOptions,
    ) -> FloatTensor<Self> {
        let Some(own) = B::own(&x.primitive) else { return composed::group_norm::<Self>(x, gamma, beta, options) };
        let [input, scale, shift] = [&x, &gamma, &beta].map(|tensor| tensor.primitive.clone());
        let y = own.group_norm(&input, &scale, &shift, options);
        record::<B, C, 3>([x, gamma, beta], y, move |dy, _| {
            own.group_norm_backward([&input, &scale, &shift], &dy, options).map(Some)
        })
    }

    fn max_pool2d(x: FloatTensor<Self>, options: PoolOptions) -> FloatTensor<Self> {
        let Some(own) = B::own(&x.primitive).filter(|_| options.is_small()) else {
            return composed::max_pool2d::<Self>(x, options);
        };
        let shape = x.primitive.shape().dims();
        let (y, places) = own.max_pool2d(&x.primitive, &options);
        record::<B, C, 1>([x], y, move |dy, _| [Some(own.max_pool2d_backward(&dy, &places, shape, &options))])
    }

    fn linear(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: Option<FloatTensor<Self>>,
        relu: bool,
    ) -> FloatTensor<Self> {
        let Some(own) = B::own(&x.primitive) else { return composed::linear::<Self>(x, weight, bias, relu) };
        let (input, matrix) = (x.primitive.clone(), weight.primitive.clone());
        let y = own.linear(&input, &matrix, bias.as_ref().map(|b| &b.primitive), relu);
        let output = relu.then(|| y.clone());
        let gradients = move |dy: FloatTensor<B>, needs| {
            let dy = output.as_ref().map_or(dy.clone(), |y| own.relu_backward(y, &dy));
            own.linear_backward(&input, &matrix, &dy, needs)
        };
        match bias {
            Some(bias) => record::<B, C, 3>([x, weight, bias], y, gradients),
            None => record::<B, C, 2>([x, weight], y, move |dy, [x, weight]| {
                let [dx, dw, _] = gradients(dy, [x, weight, false]);
                [dx, dw]
            }),
        }
    }

    fn linear_workspace(batch: usize, weight: &FloatTensor<Self>) -> usize {
        <B as Kernels>::linear_workspace(batch, &weight.primitive)
    }

    fn add_relu(x: FloatTensor<Self>, y: FloatTensor<Self>) -> FloatTensor<Self> {
        let Some(own) = B::own(&x.primitive) else { return composed::add_relu::<Self>(x, y) };
        let sum = own.add_relu(&x.primitive, &y.primitive);
        let output = sum.clone();
        record::<B, C, 2>([x, y], sum, move |dy, _| {
            let gradient = own.relu_backward(&output, &dy);
            [Some(gradient.clone()), Some(gradient)]
        })
    }
}

/// The gradients of `N` parents from that of the output; the flags say which are asked for.
type Gradient<B, const N: usize> = dyn Fn(FloatTensor<B>, [bool; N]) -> [Option<FloatTensor<B>>; N] + Send + Sync;

/// Puts a step into the graph that makes `output` of `parents`.
fn record<B: Backend, C: CheckpointStrategy, const N: usize>(
    parents: [FloatTensor<Autodiff<B, C>>; N],
    output: FloatTensor<B>,
    gradient: impl Fn(FloatTensor<B>, [bool; N]) -> [Option<FloatTensor<B>>; N] + Send + Sync + 'static,
) -> FloatTensor<Autodiff<B, C>> {
    // As long as these live, a backward pass that another thread finishes meanwhile takes the parents for in use and
    // leaves their steps in the graph.
    let _in_use = parents.each_ref().map(|parent| parent.rc.clone());
    match Kernel.prepare::<C>(parents.map(|parent| parent.node)).compute_bound().stateful() {
        OpsKind::Tracked(step) => step.finish(State(Arc::new(gradient)), output),
        OpsKind::UnTracked(step) => step.finish(output),
    }
}

/// What a step keeps for its backward pass: the kernel's inputs, inside the function.
struct State<B: Backend, const N: usize>(Arc<Gradient<B, N>>);

impl<B: Backend, const N: usize> Clone for State<B, N> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<B: Backend, const N: usize> fmt::Debug for State<B, N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("State")
    }
}

#[derive(Debug)]
struct Kernel;

impl<B: Backend, const N: usize> Backward<B, N> for Kernel {
    type State = State<B, N>;

    fn backward(self, ops: Ops<Self::State, N>, gradients: &mut Gradients, _: &mut Checkpointer) {
        let dy = gradients.consume::<B>(&ops.node);
        let needs = ops.parents.each_ref().map(Option::is_some);
        for (parent, gradient) in ops.parents.into_iter().zip((ops.state.0)(dy, needs)) {
            if let (Some(parent), Some(gradient)) = (parent, gradient) {
                gradients.register::<B>(parent.id, gradient);
            }
        }
    }
}
