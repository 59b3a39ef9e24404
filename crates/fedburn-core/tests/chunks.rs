//! Element-wise rules applied chunk by chunk.
#![allow(clippy::unwrap_used)]

use std::ops::Range;
use std::sync::Arc;

use burn::tensor::{Tensor, TensorData};
use burn_flex::{Flex, FlexDevice};
use fedburn_core::{
    ClientId, ClientReport, ClientUpdate, LocalUpdate, Metrics, ParamEntry, ParamKind, ParamSchema, ParamVector,
    SchemaError, SideInfo, UpdateSet,
};

const CLIENTS: usize = 3;

/// Three clients whose value `i` is `client + i / 1024`; some hundred thousand values make several pieces.
fn updates(len: usize) -> UpdateSet<Flex> {
    let entry = ParamEntry::new("w", vec![len], ParamKind::Weight);
    let schema = Arc::new(ParamSchema::new(vec![entry]).unwrap());
    let update = |client: usize| {
        let values = (0..len).map(|i| client as f32 + i as f32 / 1024.0).collect();
        let params = ParamVector::from_host(values, schema.clone(), &FlexDevice).unwrap();
        let local = LocalUpdate {
            params,
            num_examples: 1,
            side: SideInfo::default(),
            report: ClientReport::default(),
            metrics: Metrics::new(),
        };
        ClientUpdate { client: ClientId(client as u64), local }
    };
    UpdateSet::new((0..CLIENTS).rev().map(update).collect()).unwrap()
}

/// First client minus last, plus the place: sees rows in cohort order and the right range.
fn rule(chunk: Tensor<Flex, 2>, range: Range<usize>) -> Tensor<Flex, 1> {
    let [clients, len] = chunk.dims();
    assert_eq!((clients, len), (CLIENTS, range.len()));
    let places: Vec<f32> = range.map(|i| i as f32).collect();
    let places = Tensor::from_data(TensorData::new(places, [len]), &FlexDevice);
    let row = |index: usize| chunk.clone().narrow(0, index, 1).squeeze_dim::<1>(0);
    row(0) - row(CLIENTS - 1) + places
}

#[test]
fn any_number_of_threads_gives_the_rule_of_the_whole() {
    for len in [1, 7, 100_003] {
        let expected: Vec<f32> = (0..len).map(|i| i as f32 - 2.0).collect();
        for threads in [1, 2, 3, 64] {
            let updates = updates(len).with_threads(threads);
            assert_eq!(updates.combine_chunks(rule).unwrap().to_host(), expected, "{len} values, {threads} threads");
            let ranges = updates.map_chunks(|_, range| range);
            assert!(ranges.windows(2).all(|pair| pair[0].end == pair[1].start), "in order, nothing left out");
            assert_eq!((ranges[0].start, ranges[ranges.len() - 1].end), (0, len));
        }
    }
}

#[test]
fn updates_are_mapped_in_cohort_order_on_any_number_of_threads() {
    for threads in [1, 2, 3, 64] {
        let clients = updates(5).with_threads(threads).map_updates(|update| update.client.0);
        assert_eq!(clients, [0, 1, 2], "{threads} threads");
    }
}

#[test]
fn a_rule_that_loses_values_is_refused() {
    let shorter = updates(5).combine_chunks(|chunk, range| rule(chunk, range).narrow(0, 0, 4));
    assert!(matches!(shorter, Err(SchemaError::Length { expected: 5, found: 4 })));
}

#[test]
fn a_model_without_values_has_no_pieces() {
    let updates = updates(0).with_threads(4);
    assert!(updates.map_chunks(|_, range| range).is_empty());
    assert_eq!(updates.combine_chunks(rule).unwrap().num_values(), 0);
}

#[test]
#[should_panic(expected = "the rule's own words")]
fn a_panic_in_a_thread_is_the_callers() {
    updates(100_003).with_threads(2).map_chunks(|_, range| assert_eq!(range.start, 0, "the rule's own words"));
}
