//! The laws of both strategy traits as property tests.

use burn::tensor::backend::Backend;
use fedburn_core::{Aggregate, ClientUpdate, ParamVector, RoundIndex, Strategy};
use proptest::prelude::{TestCaseError, prop, prop_assert, prop_assert_eq};
use proptest::strategy::Strategy as _;
use proptest::test_runner::{Config, TestRunner};

use crate::{Rounds, answer_all, combine, schema, update, vector};

/// Whether the result of a strategy lies in the convex hull of the updates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Convexity {
    /// Equal updates are a fixed point, and a single client's parameters come back unchanged.
    Convex,
    /// Server optimisers and the like.
    Free,
}

/// A round in plain numbers: the global vector, and `(examples, parameters)` of each client.
type Case = (Vec<f32>, Vec<(u64, Vec<f32>)>);

fn case() -> impl proptest::strategy::Strategy<Value = Case> {
    (1usize..6).prop_flat_map(|d| {
        let values = || prop::collection::vec(-100f32..100.0, d);
        (values(), prop::collection::vec((1u64..1000, values()), 1..6))
    })
}

/// Checks every law over random rounds of one to five clients, who answer all that strategies ask ([`answer_all`]).
///
/// # Panics
/// With the broken law and the round that breaks it.
pub fn strategy_laws<B: Backend>(make: impl Fn() -> Strategy<B>, convexity: Convexity, device: &B::Device) {
    let config = Config { cases: 64, failure_persistence: None, ..Config::default() };
    let run = |law: &str, check: &dyn Fn(Case) -> Result<(), TestCaseError>| {
        if let Err(error) = TestRunner::new_with_rng(
            config.clone(),
            proptest::test_runner::TestRng::deterministic_rng(proptest::test_runner::RngAlgorithm::ChaCha),
        )
        .run(&case(), check)
        {
            panic!("`{}` breaks the law «{law}»: {error}", make().name());
        }
    };
    let aggregate = |strategy: &mut Strategy<B>, round: u64, global: &ParamVector<B>, updates: &[ClientUpdate<B>]| {
        combine(strategy, RoundIndex(round), global, updates).map_err(|e| TestCaseError::fail(e.to_string()))
    };

    run("finite in, finite out; the schema is kept", &|c| {
        let (global, updates) = build(&c, device);
        let next = aggregate(&mut make(), 1, &global, &updates)?;
        prop_assert!(next.global.is_finite());
        prop_assert_eq!(next.global.schema(), global.schema());
        Ok(())
    });
    run("scaling every example count changes nothing", &|c| {
        let (global, updates) = build(&c, device);
        let scaled: Vec<_> = updates
            .iter()
            .map(|u| answer_all(update(u.client.0, 8 * u.local.num_examples, u.local.params.clone())))
            .collect();
        close(&aggregate(&mut make(), 1, &global, &updates)?, &aggregate(&mut make(), 1, &global, &scaled)?, 1e-5)
    });
    run("permuting updates changes nothing", &|c| {
        let (global, mut updates) = build(&c, device);
        let straight = aggregate(&mut make(), 1, &global, &updates)?;
        updates.reverse();
        close(&straight, &aggregate(&mut make(), 1, &global, &updates)?, 0.0)
    });
    run("restore(state()), then continuing, equals not stopping", &|c| {
        let (global, updates) = build(&c, device);
        let rounds = Rounds::new(updates.len() as u64);
        let aggregate = |strategy: &mut Strategy<B>, index, global: &ParamVector<B>| {
            rounds
                .combine(strategy, RoundIndex(index), global, &updates)
                .map_err(|e| TestCaseError::fail(e.to_string()))
        };
        let mut whole = make();
        let first = aggregate(&mut whole, 1, &global)?;
        let mut resumed = make();
        resumed.restore(whole.state(), &first.global).map_err(|e| TestCaseError::fail(e.to_string()))?;
        close(&aggregate(&mut whole, 2, &first.global)?, &aggregate(&mut resumed, 2, &first.global)?, 0.0)
    });
    if convexity == Convexity::Convex {
        run("equal updates are a fixed point", &|(global, clients)| {
            let equal: Vec<_> = clients.iter().map(|(n, _)| (*n, clients[0].1.clone())).collect();
            let (global, updates) = build(&(global, equal), device);
            close(&aggregate(&mut make(), 1, &global, &updates)?, &updates[0].local.params.clone().into(), 1e-6)
        });
        run("a single client's parameters come back unchanged", &|(global, clients)| {
            let (global, updates) = build(&(global, clients[..1].to_vec()), device);
            close(&aggregate(&mut make(), 1, &global, &updates)?, &updates[0].local.params.clone().into(), 0.0)
        });
    }
}

fn build<B: Backend>((global, clients): &Case, device: &B::Device) -> (ParamVector<B>, Vec<ClientUpdate<B>>) {
    let schema = schema(&[global.len()]);
    let updates =
        clients.iter().enumerate().map(|(k, (n, x))| answer_all(update(k as u64, *n, vector(x, &schema, device))));
    (vector(global, &schema, device), updates.collect())
}

/// Equal within `tolerance` relative to the larger of one and the value; a tolerance of zero means equal bits.
fn close<B: Backend>(a: &Aggregate<B>, b: &Aggregate<B>, tolerance: f32) -> Result<(), TestCaseError> {
    for (x, y) in a.global.to_host().into_iter().zip(b.global.to_host()) {
        let same = x.to_bits() == y.to_bits() || (x - y).abs() <= tolerance * x.abs().max(1.0);
        prop_assert!(same, "{x} and {y} differ by more than {tolerance}");
    }
    Ok(())
}
