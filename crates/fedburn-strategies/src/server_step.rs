//! What rules that take a step of their own from the round's mean share.

use std::array;

use burn::tensor::{Tensor, backend::Backend};
use fedburn_core::{Aggregate, AggregateError, Mean, Metrics, ParamVector, Round, RoundMean};

/// Norm of the mean of what clients moved, `|Dbar|`, over weights.
pub(crate) const UPDATE_NORM: &str = "update_norm";

/// Values of a piece: 256 KiB, so that a rule's temporaries stay in a core's own cache.
const PIECE: usize = 1 << 16;

/// Largest size of an averaged update in rules that square it, so that squares stay finite.
pub(crate) const LARGEST_STEP: f64 = 1e18;

/// An element-wise rule from `N` vectors of one length to `M` such vectors, piece by piece along the flat axis.
pub(crate) fn in_pieces<B: Backend, const N: usize, const M: usize>(
    inputs: [&Tensor<B, 1>; N],
    rule: impl Fn([Tensor<B, 1>; N]) -> [Tensor<B, 1>; M],
) -> [Tensor<B, 1>; M] {
    let [len] = inputs[0].dims();
    if len <= PIECE {
        return rule(inputs.map(Tensor::clone));
    }
    let mut outputs: [Vec<Tensor<B, 1>>; M] = array::from_fn(|_| Vec::with_capacity(len.div_ceil(PIECE)));
    for start in (0..len).step_by(PIECE) {
        let range = start..len.min(start + PIECE);
        let pieces = rule(inputs.map(|input| input.clone().slice([range.clone()])));
        outputs.iter_mut().zip(pieces).for_each(|(output, piece)| output.push(piece));
    }
    outputs.map(|pieces| Tensor::cat(pieces, 0))
}

/// `x_t + eta_g (mean - x_t)`, `[num_values]`: for a rate of 1 the mean itself, bit for bit.
pub(crate) fn relaxed<B: Backend>(round: &Round<'_, B>, mean: &RoundMean<B>, server_lr: f64) -> Tensor<B, 1> {
    let (x, mean) = (round.global.values(), mean.params.values());
    if server_lr == 1.0 {
        return mean.clone();
    }
    let [next] = in_pieces([x, mean], |[x, mean]| [x.clone() + (mean - x) * server_lr]);
    next
}

/// The round's answer: weights `next` `[num_values]`, running statistics of the mean, and the norm of the mean update.
pub(crate) fn answer<B: Backend>(
    round: &Round<'_, B>,
    mean: &RoundMean<B>,
    next: Tensor<B, 1>,
) -> Result<Aggregate<B>, AggregateError> {
    let schema = |source| AggregateError::Schema { round: round.index, source };
    let next = mean.params.with_values(next).and_then(|next| next.with_buffers_of(&mean.params)).map_err(schema)?;
    let update = mean.params.minus(round.global).map_err(schema)?;
    let metrics = Metrics::new().with(UPDATE_NORM, norm(&update));
    Ok(Aggregate { metrics, ..next.into() })
}

/// Euclidean norm over weights, summed in `f64`, as a metric.
pub(crate) fn norm<B: Backend>(vector: &ParamVector<B>) -> Mean {
    let squares = vector.weight_values().into_data().iter::<f32>().map(|v| f64::from(v).powi(2)).sum::<f64>();
    Mean::new(squares.sqrt(), 1.0)
}

#[cfg(test)]
mod tests {
    use burn::tensor::Tolerance;
    use burn_flex::{Flex, FlexDevice};

    use super::*;

    #[test]
    fn pieces_make_the_whole() {
        for len in [1, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE + 7] {
            let a = Tensor::<Flex, 1, burn::tensor::Int>::arange(0..len as i64, &FlexDevice).float();
            let b = a.clone().sqrt();
            let rule = |[a, b]: [Tensor<Flex, 1>; 2]| [a.clone() + b.clone(), a * b];
            let [sum, product] = in_pieces([&a, &b], rule);
            let [whole_sum, whole_product] = rule([a, b]);
            sum.into_data().assert_approx_eq::<f32>(&whole_sum.into_data(), Tolerance::absolute(0.0));
            product.into_data().assert_approx_eq::<f32>(&whole_product.into_data(), Tolerance::absolute(0.0));
        }
    }
}
