//! Peak memory of a simulated federation against the size of its population and of its cohorts.
//!
//! Every line is a process of its own: FedAvg of softmax regression on synthetic clients that are made when they are
//! sampled. Peak resident memory is what the kernel says (`VmHWM`), so this runs on Linux.
//!
//! ```sh
//! cargo run --release -p fedburn-benches --bin memory
//! ```

use std::error::Error;
use std::process::Command;
use std::sync::Arc;

use burn_flex::{Flex, FlexDevice};
use fedburn::core::TrainError;
use fedburn::data::datasets::{Synthetic, SyntheticConfig};
use fedburn::models::ZooConfig;
use fedburn::prelude::*;
use fedburn::runtime::{DiskStore, SamplerConfig};
use fedburn::train::{ClientDataSource, LocalData};
use fedburn_benches::peak_mib;

const EXAMPLES: u64 = 20;
const ROUNDS: u64 = 5;

/// Clients `0..n`, each with twenty examples made on demand.
struct OnDemand {
    clients: Arc<[ClientInfo]>,
    data: Synthetic,
}

impl ClientDataSource for OnDemand {
    fn clients(&self) -> Arc<[ClientInfo]> {
        self.clients.clone()
    }

    fn local_data(&self, id: ClientId) -> Result<LocalData, TrainError> {
        let unusable = |e: fedburn::data::DatasetError| TrainError::Unusable { client: id, reason: e.to_string() };
        let examples = self.data.client(id, EXAMPLES as usize, Some(0.5)).map_err(unusable)?;
        Ok(ClientData::all(Arc::new(examples)).into())
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    if let [_, population, per_round] = &std::env::args().collect::<Vec<_>>()[..] {
        return measure(population.parse()?, per_round.parse()?);
    }
    println!("{:>12} {:>12} {:>10} {:>12}", "population", "per round", "peak MiB", "s per round");
    for (population, per_round) in
        [(1_000, 10), (10_000, 10), (100_000, 10), (1_000_000, 10), (100_000, 100), (100_000, 1_000), (100_000, 10_000)]
    {
        let arguments = [population.to_string(), per_round.to_string()];
        let done = Command::new(std::env::current_exe()?).args(arguments).status()?;
        if !done.success() {
            return Err(format!("the measurement of {population} clients failed").into());
        }
    }
    Ok(())
}

fn measure(population: u64, per_round: usize) -> Result<(), Box<dyn Error>> {
    let (seed, device) = (Seed::new(0), FlexDevice);
    let clients: Arc<[ClientInfo]> =
        (0..population).map(|k| ClientInfo { id: ClientId(k), num_examples: EXAMPLES }).collect();
    let config = SyntheticConfig { shape: [1, 28, 28], classes: 10, ..SyntheticConfig::default() };
    let source = OnDemand { clients, data: Synthetic::new(config)? };
    let family = ZooConfig::Softmax {}.build([1, 28, 28], 10)?;
    let training = LocalTrainingConfig::sgd(1, 10, 0.05).build()?;
    let people = SupervisedPopulation::<Flex, _>::new(Arc::new(source), family.clone(), training, device);
    let state = tempfile::tempdir()?;
    let store = Arc::new(DiskStore::open(state.path(), RoundIndex(0))?);
    let transport = InProcess::new(Arc::new(people), Some(store), 2)?;
    let sampler = SamplerConfig::Uniform { per_round }.build(&transport.clients())?;
    let global = flatten(&ModelFamily::<Flex>::init(&family, seed, &device))?;
    let strategy = StrategyConfig::default().build()?;
    let mut server = Server::new(ServerConfig::new(ROUNDS), transport, strategy, sampler, global, seed)?;
    let summary = server.run(&mut [])?;
    let seconds = summary.totals.seconds / ROUNDS as f64;
    println!("{population:>12} {per_round:>12} {:>10.1} {seconds:>12.3}", peak_mib()?);
    Ok(())
}
