//! Training on parts of a client's data, and what stands around clients.

use std::sync::Arc;

use crate::common::{Softmax, bits, softmax_initial, task, toy_data, training};
use burn_flex::{Flex, FlexDevice};
use fedburn_core::{
    Client, ClientId, ClientInfo, LocalUpdate, Metrics, ParamVector, Population, Resample, ResamplingClient,
    TrainError, TrainTask,
};
use fedburn_train::{ClientList, LocalData, ResidentModel, SupervisedClient, SupervisedPopulation};

#[test]
fn parts_give_models_of_their_own_and_leave_the_client_as_it_was() {
    let data = LocalData::from(toy_data(20, 1));
    let resident = ResidentModel::new(Softmax, FlexDevice);
    let mut client = SupervisedClient::<Flex, _>::new(ClientId(3), data, Arc::new(training(|_| {})), resident);
    let task = task(&softmax_initial(0), 5);
    let whole = client.train(&task).unwrap();
    let parts = [
        (Resample::AllBut { part: 0, of: 4 }, 15),
        (Resample::AllBut { part: 1, of: 4 }, 15),
        (Resample::Shard { part: 0, of: 4 }, 5),
        (Resample::Bootstrap { index: 0 }, 20),
    ];
    let mut seen = vec![bits(&whole.params)];
    for (part, examples) in parts {
        let update = client.train_on(&task, part).unwrap();
        assert_eq!(update.num_examples, examples, "{part:?}");
        assert_eq!(bits(&update.params), bits(&client.train_on(&task, part).unwrap().params), "{part:?}");
        assert!(!seen.contains(&bits(&update.params)), "{part:?}");
        seen.push(bits(&update.params));
    }
    assert_eq!(bits(&client.train(&task).unwrap().params), seen[0]);
    assert!(matches!(client.train_on(&task, Resample::Shard { part: 20, of: 21 }), Err(TrainError::NoData { .. })));
}

/// Counts every example twice.
struct Doubled<'a>(Box<dyn ResamplingClient<Flex> + 'a>);

impl Client<Flex> for Doubled<'_> {
    fn info(&self) -> ClientInfo {
        self.0.info()
    }

    fn train(&mut self, task: &TrainTask<Flex>) -> Result<LocalUpdate<Flex>, TrainError> {
        let update = self.0.train(task)?;
        Ok(LocalUpdate { num_examples: 2 * update.num_examples, ..update })
    }

    fn evaluate(&mut self, global: &ParamVector<Flex>) -> Result<Metrics, TrainError> {
        self.0.evaluate(global)
    }
}

#[test]
fn a_population_wraps_every_client() {
    let clients: ClientList = [toy_data(7, 0), toy_data(9, 1)].into_iter().collect();
    let population = SupervisedPopulation::<Flex, _>::new(Arc::new(clients), Softmax, training(|_| {}), FlexDevice);
    let population = population.with_wrapper(|client| Box::new(Doubled(client)));
    let mut worker = population.worker();
    let task = task(&softmax_initial(0), 5);
    for (id, examples) in [(0, 14), (1, 18)] {
        assert_eq!(worker.client(ClientId(id)).unwrap().train(&task).unwrap().num_examples, examples);
    }
}
