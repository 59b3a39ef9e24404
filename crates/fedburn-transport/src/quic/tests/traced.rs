//! Tasks that are spans of a distributed trace, and those that are none.

use fedburn_testkit::schema;

use super::raw::Raw;
use super::*;
use crate::wire::{Extensions, TaskOffer, TraceParent};

fn span(round: RoundIndex, client: ClientId) -> TraceParent {
    TraceParent { trace: [round.0 as u8; 16], span: [client.0 as u8; 8] }
}

/// What a node is offered when `requests` are made and nobody answers.
fn offered(site: &Site, server: &mut QuicServer<Flex>, requests: Vec<(ClientId, Request<Flex>)>) -> TaskOffer {
    let mut raw = Raw::announced(site, server, "a", &[7]);
    server.wait_for(1, LONG, &mut |_| {}).unwrap();
    let _outcomes = server.exchange(requests, LONG);
    raw.offer()
}

#[test]
fn a_trace_adds_itself_to_training_tasks_and_changes_nothing_else() {
    let site = Site::new(schema(&[4]));
    let mut server = site.server();
    let plain = offered(&site, &mut server, training(&site.schema, 3, &[7]));
    assert_eq!(plain.ext, Extensions::default());

    server.trace(span);
    let traced = offered(&site, &mut server, training(&site.schema, 3, &[7]));
    assert_eq!(traced.ext, Extensions::new(vec![span(RoundIndex(3), ClientId(7)).to_wire()]));
    assert_eq!(traced.task, plain.task, "an answer from before the server traced counts");

    let global = vector(&[0.0; 4], &site.schema, &FlexDevice);
    let measuring = vec![(ClientId(7), Request::Evaluate { round: RoundIndex(3), global })];
    assert_eq!(offered(&site, &mut server, measuring).ext, Extensions::default());
    server.close();
}

#[test]
fn a_node_learns_which_span_its_task_is() {
    let site = Site::new(schema(&[4]));
    let mut server = site.server();
    let joined = join(&server.join_string(), site.node("a"), client_config()).unwrap();
    let client = joined.start::<Flex>(&[echo(7)], site.schema.clone(), FlexDevice).unwrap();
    let learn = |server: &mut QuicServer<Flex>, round| {
        std::thread::scope(|scope| {
            let outcomes = scope.spawn(|| exchange(server, training(&site.schema, round, &[7])));
            let Taken { asked, span, .. } = client.take().unwrap().unwrap();
            client.reply(asked.client, asked.request.round(), Err(ClientFailure::NoData)).unwrap();
            assert_eq!(outcomes.join().unwrap(), BTreeMap::from([(ClientId(7), Err(ClientFailure::NoData))]));
            span
        })
    };
    assert_eq!(learn(&mut server, 1), None);
    server.trace(span);
    assert_eq!(learn(&mut server, 2), Some(span(RoundIndex(2), ClientId(7))));
    drop(client);
    server.close();
}
