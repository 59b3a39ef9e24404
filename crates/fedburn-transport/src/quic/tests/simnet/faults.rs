//! What goes wrong in a world, and how large it is: drawn from its seed before it begins.

use std::time::Duration;

use fedburn_core::{Codec, CompressionConfig, Seed};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use super::network::Weather;

/// One of the world's machines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Machine {
    Server,
    Node(usize),
}

/// Something that happens from outside.
#[derive(Clone, Copy, Debug)]
pub(super) enum Fault {
    Weather(Weather),
    /// Packets of a machine are lost on their way out, in, or both.
    Cut {
        machine: Machine,
        out: bool,
        into: bool,
    },
    Heal(Machine),
    /// A node is known by another address from now on.
    Rebind(usize),
    /// A process ends at once, without a word; its files stay.
    Kill(Machine),
    /// A killed process starts again.
    Start(Machine),
}

/// A world before it begins.
#[derive(Debug)]
pub(super) struct Script {
    pub(super) nodes: usize,
    /// Values of the model: one that travels inside messages, or in several chunks.
    pub(super) values: usize,
    /// Bytes of a chunk.
    pub(super) chunk_len: u32,
    /// Rounds from one checkpoint to the next; one where the server keeps answers.
    pub(super) checkpoint_every: u64,
    /// Whether the server keeps answers on disk before it acknowledges them.
    pub(super) keeps_answers: bool,
    /// How models and updates are written.
    pub(super) compression: CompressionConfig,
    /// Updates that a round needs.
    pub(super) min_updates: usize,
    /// Longest time that a client trains for, and that a write to the server's disk takes.
    pub(super) training: Duration,
    pub(super) disk: Duration,
    pub(super) weather: Weather,
    /// What happens when, in order.
    pub(super) faults: Vec<(Duration, Fault)>,
}

impl Script {
    /// One node with one client, which trains for up to so long, and nothing that goes wrong.
    pub(super) fn calm(training: Duration) -> Self {
        Self {
            nodes: 1,
            values: 700,
            chunk_len: CHUNK_LEN,
            checkpoint_every: 1,
            keeps_answers: false,
            compression: CompressionConfig::default(),
            min_updates: 1,
            training,
            disk: Duration::ZERO,
            weather: Weather::CALM,
            faults: Vec::new(),
        }
    }

    pub(super) fn draw(seed: Seed) -> Self {
        let rng = &mut seed.rng();
        let nodes = rng.random_range(2..=4);
        let mut script = Self {
            nodes,
            values: [700, 6_000][rng.random_range(0..2)],
            chunk_len: CHUNK_LEN,
            checkpoint_every: rng.random_range(1..=3),
            keeps_answers: rng.random_bool(0.5),
            compression: CompressionConfig::default(),
            min_updates: rng.random_range(1..=nodes),
            training: millis(rng, 10..3_000),
            disk: millis(rng, 1..200),
            weather: weather(rng),
            faults: Vec::new(),
        };
        if script.keeps_answers {
            script.checkpoint_every = 1;
        }
        for _ in 0..rng.random_range(2..=6) {
            script.incident(rng, nodes);
        }
        script.faults.sort_by_key(|(at, _)| *at);
        script
    }

    /// The same world with models and updates in codecs.
    pub(super) fn compressed(self, seed: Seed) -> Self {
        let rng = &mut seed.rng();
        let up = [Codec::F32 {}, Codec::F16 {}, Codec::Int8 {}, Codec::ScaledSign {}, Codec::TopK { ratio: 0.1 }];
        let down = [Codec::F32 {}, Codec::Bf16 {}, Codec::Int4 {}];
        let compression = CompressionConfig {
            up: up[rng.random_range(0..up.len())],
            down: down[rng.random_range(0..down.len())],
            error_feedback: rng.random_bool(0.5),
        };
        Self { compression, ..self }
    }

    fn incident(&mut self, rng: &mut ChaCha8Rng, nodes: usize) {
        let (at, long) = (millis(rng, 0..30_000), millis(rng, 100..15_000));
        let node = rng.random_range(0..nodes);
        let machine = if rng.random_bool(0.4) { Machine::Server } else { Machine::Node(node) };
        let mut add = |at, fault| self.faults.push((at, fault));
        match rng.random_range(0..8) {
            0 => add(at, Fault::Weather(weather(rng))),
            1 => add(at, Fault::Rebind(node)),
            2..=3 => {
                let (out, into) = [(true, true), (true, false), (false, true)][rng.random_range(0..3)];
                add(at, Fault::Cut { machine, out, into });
                add(at + long, Fault::Heal(machine));
            }
            _ => {
                add(at, Fault::Kill(machine));
                add(at + long, Fault::Start(machine));
            }
        }
    }
}

fn weather(rng: &mut ChaCha8Rng) -> Weather {
    // Half of all kinds of trouble are absent at a time, so that each is seen alone too.
    let mut share = |most: f64| if rng.random_bool(0.5) { rng.random_range(0.0..most) } else { 0.0 };
    let (loss, duplication, corruption, reordering) = (share(0.2), share(0.1), share(0.05), share(0.2));
    Weather {
        loss,
        duplication,
        corruption,
        reordering,
        latency: millis(rng, 1..100),
        jitter: millis(rng, 0..30),
        bytes_per_second: rng.random_range(100_000..10_000_000),
        mtu: [1_200, 1_350, 1_452, 6_500][rng.random_range(0..4)],
    }
}

fn millis(rng: &mut ChaCha8Rng, range: std::ops::Range<u64>) -> Duration {
    Duration::from_millis(rng.random_range(range))
}

/// Bytes of a chunk: small, so that a small model has several.
const CHUNK_LEN: u32 = 8 << 10;
