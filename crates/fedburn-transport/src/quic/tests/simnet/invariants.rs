//! What must hold whatever happened: the model that a server published is what its included updates give, without a
//! network, a fault or a restart in between.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use burn_flex::{Flex, FlexDevice};
use fedburn_core::{
    Aggregate, AggregateError, Answered, Answerer, ClientId, ClientInfo, MeanStrategy, Outcome, ParamSchema, Round,
    RoundIndex, RoundMean, Seed, Strategy,
};
use fedburn_runtime::{All, Coordinator, Effect, Input};
use fedburn_testkit::{EchoPopulation, vector};

use super::faults::Script;

/// The mean itself.
struct Plain;

impl MeanStrategy<Flex> for Plain {
    fn name(&self) -> &'static str {
        "plain"
    }

    fn step(&mut self, _: &Round<'_, Flex>, mean: &RoundMean<Flex>) -> Result<Aggregate<Flex>, AggregateError> {
        Ok(mean.params.clone().into())
    }
}

/// The federation before its first round.
pub(super) fn coordinator(schema: &Arc<ParamSchema>, script: &Script) -> Coordinator<Flex> {
    let global = vector(&vec![0.0; schema.num_values()], schema, &FlexDevice);
    let strategy = Strategy::Mean(Box::new(Plain));
    Coordinator::new(strategy, Box::new(All), global, Seed::new(9), script.min_updates)
        .with_compression(script.compression)
}

/// The rounds that count, each as the server that closed it saw it.
#[derive(Default)]
pub(super) struct Published(BTreeMap<u64, Closed>);

struct Closed {
    available: Arc<[ClientInfo]>,
    included: Vec<ClientId>,
    model: Vec<u32>,
}

impl Published {
    pub(super) fn closed(
        &mut self,
        round: RoundIndex,
        available: Arc<[ClientInfo]>,
        included: Vec<ClientId>,
        model: Vec<u32>,
    ) {
        let before = self.0.insert(round.0, Closed { available, included, model });
        assert!(before.is_none(), "round {round} is closed once");
    }

    /// The server goes on after this round: what it did later, but had not made durable, is done again.
    pub(super) fn goes_back(&mut self, to: RoundIndex) {
        self.0.split_off(&(to.0 + 1));
        assert_eq!(self.0.len() as u64, to.0, "every round up to a checkpoint is there");
    }

    /// Does every round again from whom it included, and compares models bit for bit.
    pub(super) fn check(&self, schema: &Arc<ParamSchema>, script: &Script) {
        let mut coordinator = coordinator(schema, script);
        let (population, mut states) = (EchoPopulation::new(32), BTreeMap::new());
        let mut answerer = Answerer::<Flex>::new(&population);
        for (round, closed) in &self.0 {
            let began = coordinator.step(Input::Begin(&closed.available), Duration::ZERO).unwrap();
            let mut effects = Vec::new();
            for effect in began {
                let Effect::Send(client, request) = effect else {
                    // A round that asks nobody ends as it begins.
                    effects.push(effect);
                    continue;
                };
                if closed.included.contains(&client) {
                    let Answered { reply, state } =
                        answerer.answer(client, request, || Ok(states.get(&client).cloned())).unwrap();
                    states.extend(state.map(|state| (client, state)));
                    let outcome = Input::Outcome(Outcome { client, reply: Ok(reply) });
                    effects.extend(coordinator.step(outcome, Duration::ZERO).unwrap());
                }
            }
            effects.extend(coordinator.step(Input::Deadline, Duration::ZERO).unwrap());
            let included = effects.into_iter().find_map(|effect| match effect {
                Effect::Close { included, .. } => Some(included),
                _ => None,
            });
            assert_eq!(included.as_ref(), Some(&closed.included), "round {round}: whose updates count");
            assert_eq!(bits(&coordinator), closed.model, "round {round}: the fold of {:?}", closed.included);
        }
    }
}

pub(super) fn bits(coordinator: &Coordinator<Flex>) -> Vec<u32> {
    coordinator.global().to_host().into_iter().map(f32::to_bits).collect()
}
