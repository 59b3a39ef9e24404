//! Honest nodes whose rounds others disturb.

use std::time::Instant;

use super::*;

/// Values of the model, 256 KiB: larger than what travels in a message.
pub(super) const VALUES: usize = 1 << 16;
/// Nodes of one client each, numbered from 0.
pub(super) const HONEST: u64 = 10;

/// Starts them and waits for them.
pub(super) fn spawn(server: &mut QuicServer<Flex>, site: &Site) -> Vec<Node> {
    let honest = (0..HONEST).map(|k| site.spawn(server, &format!("honest{k}"), &[k], FlexDevice)).collect();
    server.wait_for(HONEST as usize, LONG, &mut |_| {}).unwrap();
    honest
}

/// Asks them and `others`; how long it takes until all honest ones have answered, which they do rightly.
pub(super) fn round(server: &mut QuicServer<Flex>, site: &Site, round: u64, others: std::ops::Range<u64>) -> Duration {
    let clients: Vec<u64> = others.chain(0..HONEST).collect();
    let requests = training(&site.schema, round, &clients);
    let wanted = expected(training(&site.schema, round, &(0..HONEST).collect::<Vec<_>>()));
    let began = Instant::now();
    let honest = server.exchange(requests, 10 * LONG).map(bits).filter(|(client, _)| client.0 < HONEST);
    let came: BTreeMap<_, _> = honest.take(HONEST as usize).collect();
    let took = began.elapsed();
    assert_eq!(came, wanted);
    server.close_round(RoundIndex(round), &[]).unwrap();
    took
}

/// Seconds.
pub(super) fn median(mut times: Vec<Duration>) -> f64 {
    times.sort();
    times[times.len() / 2].as_secs_f64()
}
