//! A crowd of nodes with good certificates, each of which does one forbidden thing again and again.
//!
//! As many as `FEDBURN_ROGUES` says; then the time of honest rounds is held against those without them.

use std::sync::atomic::{AtomicU64, Ordering};

use fedburn_core::ParamVector;
use fedburn_testkit::schema;
use tokio::task::JoinSet;

use super::super::runtime::EndpointThread;
use super::super::send::Blob;
use super::super::stream::ask;
use super::honest::{HONEST, Honest, VALUES, median};
use super::member::{Member, Place};
use super::*;
use crate::wire::limits::MAX_CHUNK_LEN;
use crate::wire::{ChunkHeader, CommitState, Extensions, GetManifest, Hash, TaskId, TaskOffer, TransferId};

/// The first client that is a rogue.
const ROGUE: u64 = 1_000;
/// Things that are forbidden.
const KINDS: u64 = 6;

/// Comes, does what it does with each task that it is given, and comes again when it was cut off.
async fn rogue(place: Place, client: u64, done: Arc<[AtomicU64; KINDS as usize]>) {
    let kind = client % KINDS;
    loop {
        let mut member = Member::arrive(&place, client).await;
        while let Some(offer) = member.offer().await {
            if misbehave(&member, offer, kind).await.is_none() {
                break;
            }
            done[kind as usize].fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// `None` where the task or the connection is over before anything came of it.
async fn misbehave(member: &Member, offer: TaskOffer, kind: u64) -> Option<()> {
    let update = |value| {
        let schema = schema(&[VALUES]);
        let vector = ParamVector::<Flex>::from_host(vec![value; VALUES], schema, &FlexDevice).unwrap();
        Arc::new(Blob::of_vectors(vec![vector], MAX_CHUNK_LEN).unwrap())
    };
    match kind {
        // A chunk that is not what its header says.
        0 => {
            member.begin(&offer, VALUES).await?;
            let (mut header, payload) = update(1.0).chunk(TransferId::from(offer.task), 0)?;
            header.hash.0[0] ^= 1;
            send(member, &header, &payload).await?;
            member.connection.closed().await;
        }
        // No numbers, which whoever uses the update refuses; and then the same, and another, once more.
        1 | 2 => {
            let (first, other) = (update(f32::NAN), update(2.0));
            member.begin(&offer, VALUES).await?;
            let (header, payload) = first.chunk(TransferId::from(offer.task), 0)?;
            send(member, &header, &payload).await?;
            for blob in [&first, &first, &other] {
                let state = member.commit(&offer, blob).await?;
                assert!(!matches!(state, CommitState::Durable), "{state:?}");
                if kind == 1 {
                    break;
                }
            }
        }
        // Another model's.
        3 => assert!(member.begin(&offer, VALUES + 1).await.is_none()),
        // Another node's.
        4 => {
            for task in 0..20 {
                let foreign = TaskOffer { task: TaskId([task; 16]), ..offer.clone() };
                assert!(member.begin(&foreign, VALUES).await.is_none());
            }
        }
        // More questions than anybody has.
        _ => {
            for _ in 0..500 {
                let asked = GetManifest { root: Hash([1; 32]), ext: Extensions::default() };
                ask(&member.connection, &asked).await.ok()?;
            }
        }
    }
    Some(())
}

/// Sends one chunk until the server's end has all of it, or wants no more.
async fn send(member: &Member, header: &ChunkHeader, payload: &[u8]) -> Option<()> {
    let mut stream = member.connection.open_uni().await.ok()?;
    stream.write_all(&[&header.encode(), payload].concat()).await.ok()?;
    let _ = stream.finish();
    stream.stopped().await.ok().map(drop)
}

#[test]
fn rogues_get_nowhere_and_honest_rounds_go_on() {
    let many = std::env::var("FEDBURN_ROGUES").ok().map(|n| n.parse::<u64>().unwrap());
    let (rogues, rounds) = (many.unwrap_or(KINDS), if many.is_some() { 31 } else { 3 });
    let mut honest = Honest::start(Site::new(schema(&[VALUES])));
    let quiet = honest.rounds(rounds, 0..0);

    let (place, nodes) = (Place::of(&honest.site, &honest.server), EndpointThread::start("rogues").unwrap());
    let (mut crowd, done) = (JoinSet::new(), Arc::<[AtomicU64; KINDS as usize]>::default());
    for k in 0..rogues {
        crowd.spawn_on(rogue(place.clone(), ROGUE + k, done.clone()), nodes.handle());
    }
    honest.server.wait_for((HONEST + rogues) as usize, 10 * LONG, &mut |_| {}).unwrap();
    let everybody = ROGUE..ROGUE + rogues;
    let mut disturbed = honest.rounds(rounds, everybody.clone());
    while done.iter().any(|count| count.load(Ordering::Relaxed) == 0) {
        disturbed.extend(honest.rounds(1, everybody.clone()));
    }
    crowd.abort_all();
    nodes.handle().block_on(async {
        while let Some(rogue) = crowd.join_next().await {
            assert!(rogue.unwrap_err().is_cancelled(), "a rogue saw what it must not");
        }
    });
    drop(nodes);
    let again = honest.rounds(rounds, 0..0);
    honest.end();
    if many.is_some() {
        let (quiet, disturbed) = (median([quiet, again].concat()), median(disturbed));
        println!(
            "{rogues} rogues, {:?} times each kind: honest round {:.1} ms, {:.1} ms without them: {:.2} times",
            done,
            1e3 * disturbed,
            1e3 * quiet,
            disturbed / quiet,
        );
    }
}
