//! Which trace a round is, and which span of it a task.

use std::time::{SystemTime, UNIX_EPOCH};

use fedburn::core::{ClientId, RoundIndex};
use fedburn::transport::wire::TraceParent;
use sha2::{Digest, Sha256};

/// The traces of a run: functions of run and round, so that a server that was killed goes on in the trace that its nodes
/// are in. Nothing is drawn, and nothing of the run depends on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunTrace {
    run: String,
}

impl RunTrace {
    /// Those of the run with this hash, the `config_hash` of its `run.json`.
    pub fn new(run: &str) -> Self {
        Self { run: run.to_owned() }
    }

    /// The span of a round, the root of its trace.
    pub fn round(&self, round: RoundIndex) -> TraceParent {
        let digest = digest(&[b"fedburn round v1", self.run.as_bytes(), &round.0.to_le_bytes()]);
        TraceParent { trace: first(&digest), span: first(&digest[16..]) }
    }

    /// The span of a client's training in a round, a part of the round's.
    pub fn task(&self, round: RoundIndex, client: ClientId) -> TraceParent {
        let TraceParent { trace, span } = self.round(round);
        TraceParent { trace, span: first(&digest(&[b"fedburn task v1", &span, &client.0.to_le_bytes()])) }
    }
}

/// The span of something that begins at this time as a part of `parent`. Nobody else refers to it, so that what is done
/// twice has two spans.
pub(super) fn part(parent: TraceParent, name: &str, began: SystemTime) -> TraceParent {
    let nanos = began.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos());
    let span = first(&digest(&[b"fedburn span v1", &parent.span, &nanos.to_le_bytes(), name.as_bytes()]));
    TraceParent { trace: parent.trace, span }
}

fn digest(parts: &[&[u8]]) -> [u8; 32] {
    let hash = parts.iter().fold(Sha256::new(), |hash, part| hash.chain_update(part));
    hash.finalize().into()
}

/// The first bytes of at least as many.
fn first<const N: usize>(bytes: &[u8]) -> [u8; N] {
    std::array::from_fn(|i| bytes[i])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_spans_that_others_refer_to_never_change() {
        let run = RunTrace::new("5f0c");
        // The words hashed elsewhere: printf 'fedburn round v15f0c\3\0\0\0\0\0\0\0' | sha256sum, and so on.
        let TraceParent { trace, span } = run.round(RoundIndex(3));
        assert_eq!(u128::from_be_bytes(trace), 0x9055_3aa1_9dd2_e6d1_17b7_e968_9349_b48b);
        assert_eq!(u64::from_be_bytes(span), 0x5008_d135_7bbf_fc91);
        assert_eq!(u64::from_be_bytes(run.task(RoundIndex(3), ClientId(5)).span), 0x3240_a428_55da_613c);
    }

    #[test]
    fn a_round_has_one_trace_and_every_span_of_it_another_id() {
        let (run, round) = (RunTrace::new("5f0c"), RoundIndex(3));
        let (root, now) = (run.round(round), SystemTime::now());
        let task = run.task(round, ClientId(3));
        let others = [
            task,
            run.task(round, ClientId(4)),
            part(root, "sample", now),
            part(root, "checkpoint", now),
            part(task, "sample", now),
            part(root, "sample", now + std::time::Duration::from_nanos(1)),
        ];
        assert!(others.iter().all(|span| span.trace == root.trace));
        let spans: std::collections::BTreeSet<_> = others.iter().chain([&root]).map(|span| span.span).collect();
        assert_eq!(spans.len(), 7);
        assert_ne!(root.trace, run.round(round.next()).trace);
        assert_ne!(root.trace, RunTrace::new("5f0d").round(round).trace);
    }
}
