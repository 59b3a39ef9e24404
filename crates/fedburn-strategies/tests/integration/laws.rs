//! Every strategy of the catalogue keeps the laws, on both CPU backends.

use burn::tensor::backend::Backend;
use burn_flex::Flex;
use burn_ndarray::NdArray;
use fedburn_core::Weighting;
use fedburn_strategies::{FedAvgConfig, StrategyConfig};
use fedburn_testkit::{Convexity, strategy_laws};

fn check<B: Backend>(config: &StrategyConfig, convexity: Convexity) {
    strategy_laws::<B>(|| config.clone().build().unwrap(), convexity, &Default::default());
}

fn both(config: StrategyConfig, convexity: Convexity) {
    check::<Flex>(&config, convexity);
    check::<NdArray>(&config, convexity);
}

#[test]
fn fedavg() {
    both(StrategyConfig::default(), Convexity::Convex);
}

#[test]
fn fedavg_uniform() {
    both(
        StrategyConfig::FedAvg(FedAvgConfig { weighting: Weighting::Uniform, ..Default::default() }),
        Convexity::Convex,
    );
}

#[test]
fn fedavg_with_a_server_rate() {
    both(StrategyConfig::FedAvg(FedAvgConfig { server_lr: 0.5, ..Default::default() }), Convexity::Free);
}
