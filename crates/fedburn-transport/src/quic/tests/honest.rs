//! Honest nodes whose rounds others disturb.

use std::ops::Range;
use std::time::Instant;

use super::*;

/// Values of the model, 256 KiB: larger than what travels in a message.
pub(super) const VALUES: usize = 1 << 16;
/// Nodes of one client each, numbered from 0.
pub(super) const HONEST: u64 = 10;

/// A server and its honest nodes.
pub(super) struct Honest {
    pub(super) site: Site,
    pub(super) server: QuicServer<Flex>,
    nodes: Vec<Node>,
    round: u64,
}

impl Honest {
    /// Starts them; all are there when this returns.
    pub(super) fn start(site: Site) -> Self {
        let server = site.server();
        let nodes = (0..HONEST).map(|k| site.spawn(&server, &format!("honest{k}"), &[k], FlexDevice)).collect();
        server.wait_for(HONEST as usize, LONG, &mut |_| {}).unwrap();
        Self { site, server, nodes, round: 0 }
    }

    /// Rounds of them and `others`: how long each takes until all honest ones have answered, which they do rightly.
    pub(super) fn rounds(&mut self, count: usize, others: Range<u64>) -> Vec<Duration> {
        (0..count).map(|_| self.one(others.clone())).collect()
    }

    fn one(&mut self, others: Range<u64>) -> Duration {
        self.round += 1;
        let ask = |clients: Vec<u64>| training(&self.site.schema, self.round, &clients);
        let (requests, wanted) = (ask(others.chain(0..HONEST).collect()), expected(ask((0..HONEST).collect())));
        let began = Instant::now();
        let honest = self.server.exchange(requests, 10 * LONG).map(bits).filter(|(client, _)| client.0 < HONEST);
        let came: BTreeMap<_, _> = honest.take(HONEST as usize).collect();
        let took = began.elapsed();
        assert_eq!(came, wanted);
        self.server.close_round(RoundIndex(self.round), &[]).unwrap();
        took
    }

    /// Ends them, who must not have minded.
    pub(super) fn end(self) {
        self.server.close();
        self.nodes.into_iter().for_each(|node| node.end().unwrap());
    }
}

/// Seconds.
pub(super) fn median(mut times: Vec<Duration>) -> f64 {
    times.sort();
    times[times.len() / 2].as_secs_f64()
}
