//! Federated averaging on embedded digits: twenty clients with skewed labels, ten a round.
//!
//! ```sh
//! cargo run --release -p fedburn-examples --bin quickstart
//! ```

use std::error::Error;
use std::path::Path;
use std::sync::Arc;

use burn_flex::{Flex, FlexDevice};
use fedburn::data::datasets::{DatasetConfig, load};
use fedburn::data::partition::{Dirichlet, Partitioner};
use fedburn::models::ZooConfig;
use fedburn::prelude::*;
use fedburn::runtime::{Console, ConsoleMode, SamplerConfig};

fn main() -> Result<(), Box<dyn Error>> {
    let (seed, device) = (Seed::new(0), FlexDevice);
    let digits = load(&DatasetConfig::Digits {}, Path::new("data"))?;

    // Twenty clients with skewed labels, at least ten examples each.
    let split = Dirichlet::new(0.3, 10)?.partition(digits.train.labels(), 20, seed.purpose(Purpose::Partition))?;
    let clients: ClientList = split.client_data(&digits.train)?.into_iter().collect();

    // One model, one way of training it.
    let family = ZooConfig::TwoNn { hidden: 64 }.build(digits.train.shape(), digits.train.num_classes())?;
    let training = LocalTrainingConfig::sgd(2, 16, 0.1).build()?;
    let population = SupervisedPopulation::<Flex, _>::new(Arc::new(clients), family.clone(), training, device);

    // Two workers play the ten clients of each round; the server combines what they send.
    let transport = InProcess::new(Arc::new(population), None, 2)?;
    let sampler = SamplerConfig::Uniform { per_round: 10 }.build(&transport.clients())?;
    let global = flatten(&ModelFamily::<Flex>::init(&family, seed.purpose(Purpose::Initialisation), &device))?;
    let mut server =
        Server::new(ServerConfig::new(20), transport, StrategyConfig::default().build()?, sampler, global, seed)?
            .with_evaluator(ClassifierEvaluator::new(family, ClientData::all(digits.test), device));

    let mut console = Console::new(ConsoleMode::Plain);
    let summary = server.run(&mut [&mut console])?;
    println!(
        "{} parameters after round {}, {} updates",
        summary.deployed.num_values(),
        summary.round,
        summary.totals.updates
    );
    Ok(())
}
