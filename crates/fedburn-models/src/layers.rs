//! burn's layers as holders of parameters, run by [`fedburn_ops`]'s kernels.

use burn::nn::conv::Conv2d;
use burn::nn::{Linear, PaddingConfig2d};
use burn::tensor::Tensor;
use burn::tensor::ops::PadMode;
use fedburn_ops::{ConvOptions, Kernels};

/// A convolution layer's forward pass by [`fedburn_ops::conv2d`], with the padding the layer asks for.
///
/// # Shapes
/// `x` `[batch, channels_in, height, width]`, the result `[batch, channels_out, height_out, width_out]`.
///
/// # Panics
/// Where `x` has other channels than the layer or is smaller than its kernel.
pub fn conv2d<B: Kernels>(layer: &Conv2d<B>, x: Tensor<B, 4>) -> Tensor<B, 4> {
    let [_, _, height, width] = x.dims();
    let [top, left, bottom, right] = padding(layer, [height, width]);
    let (x, padding) = if top == bottom && left == right {
        (x, [top, left])
    } else {
        (x.pad((left, right, top, bottom), PadMode::Constant(0.0)), [0, 0])
    };
    let options = ConvOptions::new(layer.stride, padding, layer.dilation, layer.groups);
    fedburn_ops::conv2d(x, layer.weight.val(), layer.bias.as_ref().map(|b| b.val()), options)
}

/// Numbers that the backend works on for itself in [`conv2d`] of inputs of shape `x` and in its gradients, as
/// [`fedburn_ops::conv2d_workspace`] tells.
///
/// # Panics
/// As [`conv2d`] does.
pub fn conv2d_workspace<B: Kernels>(layer: &Conv2d<B>, [batch, channels, height, width]: [usize; 4]) -> usize {
    let [top, left, bottom, right] = padding(layer, [height, width]);
    let padded = [batch, channels, height + top + bottom, width + left + right];
    let options = ConvOptions::new(layer.stride, [0, 0], layer.dilation, layer.groups);
    fedburn_ops::conv2d_workspace(padded, &layer.weight.val(), &options)
}

/// Rows and columns of zeros on top, left, bottom and right of an image that the layer asks for.
fn padding<B: Kernels>(layer: &Conv2d<B>, image: [usize; 2]) -> [usize; 4] {
    match layer.padding {
        PaddingConfig2d::Valid => [0; 4],
        PaddingConfig2d::Explicit(top, left, bottom, right) => [top, left, bottom, right],
        PaddingConfig2d::Same => {
            let [rows, columns] = [0, 1].map(|axis| {
                let (size, stride) = (image[axis], layer.stride[axis]);
                let reach = layer.dilation[axis] * (layer.kernel_size[axis] - 1) + 1;
                (size.div_ceil(stride) * stride + reach).saturating_sub(size + stride)
            });
            [rows / 2, columns / 2, rows - rows / 2, columns - columns / 2]
        }
    }
}

/// ReLU, then height and width halved, rounding down: the largest value of each 2 by 2 window.
pub fn relu_max_pool2d<B: Kernels>(x: Tensor<B, 4>) -> Tensor<B, 4> {
    fedburn_ops::relu_max_pool2d(x, [2, 2], [2, 2], [0, 0])
}

/// A linear layer's forward pass by [`fedburn_ops::linear`].
///
/// # Shapes
/// `x` `[batch, inputs]`, the result `[batch, outputs]`.
///
/// # Panics
/// Where `x` has other inputs than the layer.
pub fn linear<B: Kernels>(layer: &Linear<B>, x: Tensor<B, 2>) -> Tensor<B, 2> {
    fedburn_ops::linear(x, layer.weight.val(), layer.bias.as_ref().map(|b| b.val()))
}

/// ReLU of [`linear`].
pub fn linear_relu<B: Kernels>(layer: &Linear<B>, x: Tensor<B, 2>) -> Tensor<B, 2> {
    fedburn_ops::linear_relu(x, layer.weight.val(), layer.bias.as_ref().map(|b| b.val()))
}

#[cfg(test)]
mod tests {
    use burn::nn::conv::Conv2dConfig;
    use burn_flex::{Flex, FlexDevice};
    use fedburn_core::Seed;

    use super::*;
    use crate::{InitScheme, seeded};

    #[test]
    fn every_kind_of_padding_is_burns() {
        let paddings = [
            PaddingConfig2d::Valid,
            PaddingConfig2d::Same,
            PaddingConfig2d::Explicit(2, 1, 2, 1),
            PaddingConfig2d::Explicit(0, 1, 2, 3),
        ];
        let x = Tensor::<Flex, 1, burn::tensor::Int>::arange(0..140, &FlexDevice).float().reshape([1, 2, 7, 10]);
        for padding in paddings {
            for (kernel, stride, dilation) in
                [([3, 2], [1, 1], [1, 1]), ([3, 3], [1, 1], [2, 1]), ([1, 3], [2, 3], [1, 1])]
            {
                // burn forgets dilation when it keeps the size; here the size is kept.
                if padding == PaddingConfig2d::Same && dilation != [1, 1] {
                    continue;
                }
                let config = Conv2dConfig::new([2, 3], kernel)
                    .with_stride(stride)
                    .with_dilation(dilation)
                    .with_padding(padding.clone());
                let layer = seeded(config.init::<Flex>(&FlexDevice), Seed::new(1), InitScheme::PyTorch);
                let (found, expected) = (conv2d(&layer, x.clone()), layer.forward(x.clone()));
                assert_eq!(found.dims(), expected.dims(), "{config}");
                let difference = (found - expected).abs().max().into_scalar();
                assert!(difference < 1e-3, "{config}: {difference}");
            }
        }
    }
}
