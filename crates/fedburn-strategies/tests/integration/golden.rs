//! Golden vectors of the algorithm specification, through the strategies' public interface, on both CPU backends.

use burn::tensor::backend::Backend;
use burn_flex::Flex;
use burn_ndarray::NdArray;
use fedburn_core::{RoundIndex, Weighting};
use fedburn_strategies::{FedAvgConfig, StrategyConfig};
use fedburn_testkit::{base_case, combine};

fn first_round<B: Backend>(config: StrategyConfig) -> Vec<f32> {
    let (global, updates) = base_case::<B>(&Default::default());
    combine(&mut config.build().unwrap(), RoundIndex(1), &global, &updates).unwrap().global.to_host()
}

fn expect(config: FedAvgConfig, expected: [f32; 3]) {
    for found in [
        first_round::<Flex>(StrategyConfig::FedAvg(config.clone())),
        first_round::<NdArray>(StrategyConfig::FedAvg(config.clone())),
    ] {
        let close = found.iter().zip(expected).all(|(x, y)| (x - y).abs() < 1e-5);
        assert!(close, "{config:?}: {found:?}, expected {expected:?}");
    }
}

/// Section B1: x = [0.75, 2.25, 3.45].
#[test]
fn fedavg_base() {
    expect(FedAvgConfig::default(), [0.75, 2.25, 3.45]);
}

/// By hand: the plain mean of [1.2, 1.8, 3.0] and [0.6, 2.4, 3.6].
#[test]
fn fedavg_uniform() {
    expect(FedAvgConfig { weighting: Weighting::Uniform, ..Default::default() }, [0.9, 2.1, 3.3]);
}

/// By hand: x + 0.5 * [-0.25, 0.25, 0.45].
#[test]
fn fedavg_server_rate() {
    expect(FedAvgConfig { server_lr: 0.5, ..Default::default() }, [0.875, 2.125, 3.225]);
}
