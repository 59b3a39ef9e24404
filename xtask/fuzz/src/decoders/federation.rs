//! Who is who in a federation, what its server tells nodes, and what an owner of data permits.

use std::fs;

use fedburn_experiment::federation::{PlannedRun, Policy};
use fedburn_experiment::operation::{Job, JobState, Snapshot, jobs_table, prometheus, status_text};
use fedburn_transport::quic::{JoinString, NodeId, NodeIdentity, NodeRegistry, Plan, fuzz};

use super::{Folder, of_toml, text};
use crate::Decoder;
use crate::decoder::Decoded;

pub(super) fn decoders() -> Vec<Decoder> {
    let identity = Folder::new();
    identity.put("node.key", KEY);
    vec![
        Decoder::new(
            "join-string",
            512,
            |input| Ok(text(input)?.parse::<JoinString>()?),
            |_, join| {
                assert_eq!(join.to_string().parse::<JoinString>().expect("as it was written"), join);
            },
        ),
        Decoder::new(
            "node-id",
            256,
            |input| Ok(text(input)?.parse::<NodeId>()?),
            |_, node| {
                assert_eq!(node.to_string().parse::<NodeId>().expect("as it was written"), node);
            },
        )
        .holding(4 << 10),
        Decoder::new("certificate", 2_048, |input| Ok(fuzz::certificate(input).ok_or("no certificate")?), |_, _| ()),
        Decoder::new("enrolment", 512, |input| Ok(fuzz::enrolment(input)?), |_, ()| ()),
        Decoder::new(
            "inline-update",
            256,
            |input| Ok(fuzz::inline(input)?),
            |input, vectors| {
                let bytes: Vec<u8> = vectors.iter().flatten().flat_map(|value| value.to_le_bytes()).collect();
                assert_eq!(bytes.len(), input.len());
            },
        ),
        identity.decoder("node-certificate", 4_096, "node.pem", |dir, _| Ok(NodeIdentity::open(dir)?), |_, _| ()),
        Folder::new().decoder(
            "node-key",
            1_024,
            "node.key",
            |dir, file| match fs::metadata(file)?.len() {
                0 => Err("an empty file is taken for a new one".into()),
                _ => Ok(NodeIdentity::open(dir)?),
            },
            |_, _| (),
        ),
        Folder::new().decoder(
            "nodes",
            2_048,
            "nodes.json",
            |dir, _| Ok(NodeRegistry::open(dir)?),
            |_, nodes| drop(nodes.list()),
        ),
        of_toml(Decoder::new("plan", 8_192, plan, |_, _| ())),
        of_toml(Decoder::new("policy", 4_096, policy, |_, _| ())),
        Decoder::new(
            "snapshot",
            8_192,
            |input| Ok(serde_json::from_slice::<Snapshot>(input)?),
            |_, snapshot| {
                assert!(!status_text(&snapshot).is_empty() && !prometheus(&snapshot).is_empty());
            },
        )
        .holding(64 << 10),
        Decoder::new(
            "job",
            2_048,
            |input| Ok(serde_json::from_slice::<Job>(input)?),
            |_, job| {
                assert!(!jobs_table(&[(job, JobState::Interrupted)]).is_empty());
            },
        ),
    ]
}

fn plan(input: &[u8]) -> Decoded<PlannedRun> {
    Ok(PlannedRun::read(&serde_json::from_slice::<Plan>(input)?)?)
}

fn policy(input: &[u8]) -> Decoded<Policy> {
    let policy: Policy = toml::from_str(text(input)?)?;
    policy.check()?;
    Ok(policy)
}

/// The key of the certificates in the corpus, and of nobody.
const KEY: &[u8] = b"\
-----BEGIN PRIVATE KEY-----\n\
MC4CAQAwBQYDK2VwBCIEICw+2x5RUB1qT3Xrprs2Rituqq4QJ6A1ybcbs5bOp73/\n\
-----END PRIVATE KEY-----\n";
