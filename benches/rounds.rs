//! Rounds of a coordinator that is handed answers: 10 clients, 10 million parameters.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use burn_flex::{Flex, FlexDevice};
use fedburn::core::{
    ClientReport, LocalUpdate, Metrics, Outcome, ParamEntry, ParamKind, ParamSchema, Reply, SchemaError, SideInfo,
};
use fedburn::prelude::*;
use fedburn::runtime::{All, Coordinator, Effect, Input};
use fedburn::strategies::StrategyConfig;
use rand::RngExt;

/// Clients of a round.
pub const CLIENTS: u64 = 10;
/// Parameters of the model.
pub const VALUES: usize = 10_000_000;

/// A coordinator and its clients.
pub struct Rounds {
    coordinator: Coordinator<Flex>,
    schema: Arc<ParamSchema>,
    clients: Vec<ClientInfo>,
}

impl Rounds {
    /// Rounds of the strategy of a `[strategy]` table, aggregated on up to so many threads.
    ///
    /// # Errors
    /// Where the table is none of the catalogue.
    pub fn of(table: &str, threads: usize) -> Result<Self, Box<dyn Error>> {
        let schema = Arc::new(ParamSchema::new(vec![ParamEntry::new("weight", vec![VALUES], ParamKind::Weight)])?);
        let strategy = toml::from_str::<StrategyConfig>(table)?.build()?;
        let global = ParamVector::zeros(schema.clone(), &FlexDevice);
        let coordinator = Coordinator::new(strategy, Box::new(All), global, Seed::new(0), 1).with_threads(threads);
        let clients = (0..CLIENTS).map(|k| ClientInfo { id: ClientId(k), num_examples: 100 + 31 * k }).collect();
        Ok(Self { coordinator, schema, clients })
    }

    /// Who is asked.
    pub fn clients(&self) -> Vec<ClientInfo> {
        self.clients.clone()
    }

    /// [`VALUES`] values as a vector.
    ///
    /// # Errors
    /// Where there are more or fewer.
    pub fn vector(&self, values: Vec<f32>) -> Result<ParamVector<Flex>, SchemaError> {
        ParamVector::from_host(values, self.schema.clone(), &FlexDevice)
    }

    /// Begins a round.
    ///
    /// # Errors
    /// As [`Coordinator::step`].
    pub fn begin(&mut self) -> Result<(), Box<dyn Error>> {
        self.coordinator.step(Input::Begin(&self.clients), Duration::ZERO)?;
        Ok(())
    }

    /// Hands one client's answer in; the last one ends the round.
    ///
    /// # Errors
    /// As [`Coordinator::step`], and where an answer was refused.
    pub fn answer(
        &mut self,
        client: ClientInfo,
        params: ParamVector<Flex>,
        side: SideInfo<Flex>,
    ) -> Result<(), Box<dyn Error>> {
        let report = ClientReport { accumulation: Some(20.0), steps: Some(20), class_counts: None };
        let update = LocalUpdate { params, num_examples: client.num_examples, side, report, metrics: Metrics::new() };
        let outcome = Outcome { client: client.id, reply: Ok(Reply::Trained(update)) };
        for effect in self.coordinator.step(Input::Outcome(outcome), Duration::ZERO)? {
            match effect {
                Effect::Close { round, included } if included.len() == self.clients.len() => {
                    self.coordinator.memory().commit(round, &included)?;
                    self.coordinator.memory().checkpointed(round)?;
                }
                Effect::Close { .. } => return Err("an answer was refused".into()),
                _ => {}
            }
        }
        Ok(())
    }
}

/// [`VALUES`] numbers between -1 and 1 from a seed.
pub fn numbers(seed: u64) -> Vec<f32> {
    let mut rng = Seed::new(seed).rng();
    (0..VALUES).map(|_| rng.random_range(-1.0f32..1.0)).collect()
}
