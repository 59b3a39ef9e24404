//! Evaluation against a plain loop, and the centralised baseline against a client.

use std::ops::ControlFlow;
use std::sync::Arc;

use crate::common::{
    CLASSES, FEATURES, Normed, Softmax, bits, normed_initial, softmax_initial, task, toy_data, training,
};
use burn_flex::{Flex, FlexDevice};
use fedburn_core::{Client, ClientId, EvaluateError, Evaluator, Metrics, ParamVector, Seed};
use fedburn_data::ClientData;
use fedburn_train::{CentralError, CentralTraining, ClassifierEvaluator, Diverged, ResidentModel, SupervisedClient};
use proptest::prelude::*;

/// Number of correct answers and sum of losses of softmax regression, one example at a time in `f64`.
fn plain_loop(params: &ParamVector<Flex>, data: &ClientData) -> (usize, f64) {
    let params: Vec<f64> = params.to_host().into_iter().map(f64::from).collect();
    let (mut correct, mut loss) = (0, 0.0);
    for position in 0..data.len() {
        let x: Vec<f64> = data.batch::<Flex>(&[position], &FlexDevice).inputs.into_data().iter().collect();
        let y = data.examples().labels()[data.indices()[position]].0 as usize;
        let scores: Vec<f64> = (0..CLASSES)
            .map(|j| {
                params[FEATURES * CLASSES + j] + (0..FEATURES).map(|i| x[i] * params[i * CLASSES + j]).sum::<f64>()
            })
            .collect();
        correct += usize::from((0..CLASSES).all(|j| scores[j] <= scores[y]));
        loss += scores.iter().map(|s| s.exp()).sum::<f64>().ln() - scores[y];
    }
    (correct, loss)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..Default::default() })]

    #[test]
    fn evaluation_equals_a_plain_loop(len in 1usize..40, batch_size in 1usize..50, seed in 0u64..1000) {
        let (global, data) = (softmax_initial(seed), toy_data(len, seed));
        let (correct, loss) = plain_loop(&global, &data);
        let mut evaluator = ClassifierEvaluator::new(Softmax, data, FlexDevice).with_batch_size(batch_size);
        let metrics = evaluator.evaluate(&global).unwrap();
        prop_assert_eq!(metrics.get(Metrics::ACCURACY).unwrap(), correct as f64 / len as f64);
        prop_assert!((metrics.get(Metrics::LOSS).unwrap() - loss / len as f64).abs() < 1e-6);
        prop_assert!(metrics.iter().all(|(_, mean)| mean.weight() == len as f64));
    }
}

/// Batches that threads share out must not be lost, counted twice or added in another order.
#[test]
fn the_number_of_threads_does_not_change_a_bit() {
    let (global, data) = (normed_initial(1), toy_data(203, 0));
    let measured = |threads| {
        let evaluator = ClassifierEvaluator::<Flex, _>::new(Normed, data.clone(), FlexDevice);
        evaluator.with_batch_size(5).with_threads(threads).evaluate(&global).unwrap()
    };
    let one = measured(1);
    for threads in [0, 2, 3, 50] {
        assert_eq!(measured(threads), one, "{threads} threads");
    }
}

#[test]
fn the_batch_size_and_earlier_models_do_not_matter_with_batch_normalisation() {
    let data = toy_data(23, 0);
    let mut evaluator = ClassifierEvaluator::<Flex, _>::new(Normed, data.clone(), FlexDevice);
    let first = evaluator.evaluate(&normed_initial(1)).unwrap();
    evaluator.evaluate(&normed_initial(2)).unwrap();
    let again = evaluator.evaluate(&normed_initial(1)).unwrap();
    assert_eq!(first, again);
    let single =
        ClassifierEvaluator::<Flex, _>::new(Normed, data, FlexDevice).with_batch_size(1).evaluate(&normed_initial(1));
    assert!((single.unwrap().get(Metrics::LOSS).unwrap() - first.get(Metrics::LOSS).unwrap()).abs() < 1e-6);
}

#[test]
fn foreign_vectors_and_missing_data_are_refused_and_the_evaluator_goes_on() {
    let mut evaluator = ClassifierEvaluator::<Flex, _>::new(Softmax, toy_data(5, 0), FlexDevice);
    assert!(matches!(evaluator.evaluate(&normed_initial(0)), Err(EvaluateError::Schema { .. })));
    assert!(evaluator.evaluate(&softmax_initial(0)).is_ok());
    let none = ClientData::new(toy_data(5, 0).examples().clone(), vec![]).unwrap();
    let mut evaluator = ClassifierEvaluator::<Flex, _>::new(Softmax, none, FlexDevice);
    assert!(matches!(evaluator.evaluate(&softmax_initial(0)), Err(EvaluateError::NoData)));
}

#[test]
fn one_client_with_all_data_is_centralised_training() {
    let (global, data) = (normed_initial(6), toy_data(23, 6));
    let settings = training(|c| (c.epochs, c.momentum, c.nesterov, c.clip_norm) = (Some(3), 0.9, true, Some(0.5)));
    let task = task(&global, 9);
    let resident = ResidentModel::new(Normed, FlexDevice);
    let mut client =
        SupervisedClient::<Flex, Normed>::new(ClientId(0), data.clone().into(), Arc::new(settings.clone()), resident);
    let local = client.train(&task).unwrap();

    let mut central = CentralTraining::<Flex, _>::new(Normed, settings, FlexDevice);
    let mut epochs = Vec::new();
    let pooled = central.run(&global, &data, 3, task.seed.index(0), |epoch| {
        assert_eq!(epoch.loss.weight(), 23.0);
        epochs.push((epoch.epoch, epoch.params.clone()));
        ControlFlow::Continue(())
    });
    let pooled = pooled.unwrap();
    assert_eq!(bits(&local.params), bits(&pooled));
    assert_eq!(epochs.iter().map(|(epoch, _)| *epoch).collect::<Vec<_>>(), [1, 2, 3]);
    assert_eq!(bits(&epochs[2].1), bits(&pooled));
}

#[test]
fn centralised_training_learns_and_can_be_ended() {
    let (global, data) = (softmax_initial(0), toy_data(200, 0));
    let mut central = CentralTraining::<Flex, _>::new(Softmax, training(|c| c.lr = 0.5), FlexDevice);
    let trained = central.run(&global, &data, 30, Seed::new(1), |_| ControlFlow::Continue(())).unwrap();
    let mut evaluator = ClassifierEvaluator::new(Softmax, toy_data(200, 1), FlexDevice);
    let mut accuracy = |params| evaluator.evaluate(params).unwrap().get(Metrics::ACCURACY).unwrap();
    assert!(accuracy(&global) < 0.6 && accuracy(&trained) > 0.85, "{} {}", accuracy(&global), accuracy(&trained));

    let mut seen = 0;
    let early = central.run(&global, &data, 30, Seed::new(1), |epoch| {
        seen = epoch.epoch;
        if epoch.epoch == 2 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    let two = central.run(&global, &data, 2, Seed::new(1), |_| ControlFlow::Continue(())).unwrap();
    assert_eq!((seen, bits(&early.unwrap())), (2, bits(&two)));
}

#[test]
fn centralised_training_names_its_failures() {
    let none = ClientData::new(toy_data(5, 0).examples().clone(), vec![]).unwrap();
    let mut central = CentralTraining::<Flex, _>::new(Softmax, training(|c| c.lr = 1e300), FlexDevice);
    let mut run = |initial: &ParamVector<Flex>, data: &ClientData| {
        central.run(initial, data, 2, Seed::new(0), |_| ControlFlow::Continue(()))
    };
    assert_eq!(run(&softmax_initial(0), &none).unwrap_err(), CentralError::NoData);
    assert!(matches!(run(&normed_initial(0), &toy_data(5, 0)), Err(CentralError::Schema { .. })));
    let diverged = CentralError::Diverged { epoch: 1, source: Diverged { step: 0 } };
    assert_eq!(run(&softmax_initial(0), &toy_data(5, 0)).unwrap_err(), diverged);
}
