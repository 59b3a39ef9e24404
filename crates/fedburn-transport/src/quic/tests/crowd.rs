//! Crowds of which many are killed in the middle of their uploads, at bytes that a seed chooses.
//!
//! A few dozen clients; as many as `FEDBURN_CROWD_CLIENTS` says, from the seed `FEDBURN_FAULT_SEED`.

use std::collections::BTreeSet;

use fedburn_core::ParamVector;
use fedburn_runtime::ExactSum;
use fedburn_testkit::schema;
use rand::RngExt;
use rand::seq::index;

use super::super::runtime::EndpointThread;
use super::super::send::Blob;
use super::member::{Member, Place};
use super::*;
use crate::wire::{CommitState, ServerLimits};

/// 1 MiB in 16 chunks.
const VALUES: usize = 1 << 18;
const CHUNK: u32 = 64 << 10;
/// Clients that are killed, of a thousand.
const KILLED: u64 = 300;

struct Crowd {
    site: Site,
    clients: u64,
    /// Who is killed, and after how many bytes.
    killed: BTreeMap<u64, usize>,
}

impl Crowd {
    fn new(few: u64) -> Self {
        let number = |name, otherwise| std::env::var(name).map_or(otherwise, |n| n.parse().unwrap());
        let clients = number("FEDBURN_CROWD_CLIENTS", few);
        let mut rng = Seed::new(number("FEDBURN_FAULT_SEED", 0)).rng();
        let chosen = index::sample(&mut rng, clients as usize, (clients * KILLED / 1_000) as usize);
        let killed = chosen.into_iter().map(|k| (k as u64, rng.random_range(0..4 * VALUES))).collect();
        let mut site = Site::new(schema(&[VALUES]));
        site.limits = ServerLimits { chunk_len: CHUNK, ..ServerLimits::default() };
        site.config.strangers_per_address = clients as usize;
        Self { site, clients, killed }
    }

    fn everybody(&self) -> Vec<u64> {
        (0..self.clients).collect()
    }

    /// What a client sends: the same for whoever computes it.
    fn update(client: u64) -> Vec<f32> {
        (0..VALUES as u64).map(|i| ((i * 37 + client * 101) % 1009) as f32 * 1e-3 - 0.5).collect()
    }

    fn blob(&self, client: u64) -> Arc<Blob> {
        let vector = ParamVector::<Flex>::from_host(Self::update(client), self.site.schema.clone(), &FlexDevice);
        Arc::new(Blob::of_vectors(vec![vector.unwrap()], CHUNK).unwrap())
    }

    /// The bits of the exact mean of these clients' updates.
    fn mean(clients: impl IntoIterator<Item = u64>) -> Vec<u32> {
        let mut sum = ExactSum::new(VALUES);
        clients.into_iter().for_each(|k| sum.add(&Self::update(k), 1 + k % 5).unwrap());
        sum.mean().unwrap().into_iter().map(f32::to_bits).collect()
    }
}

/// Whose updates came, the bits of their exact mean, and why the others' did not.
fn round(
    server: &mut QuicServer<Flex>,
    crowd: &Crowd,
    round: u64,
    clients: &[u64],
) -> (BTreeSet<u64>, Vec<u32>, Vec<ClientFailure>) {
    let (mut came, mut sum, mut failures) = (BTreeSet::new(), ExactSum::new(VALUES), Vec::new());
    for Outcome { client, reply } in server.exchange(training(&crowd.site.schema, round, clients), 10 * LONG) {
        match reply {
            Ok(Reply::Trained(update)) => {
                assert!(came.insert(client.0), "client {client} counts once");
                sum.add(&update.params.into_host(), 1 + client.0 % 5).unwrap();
            }
            Ok(other) => panic!("{other:?}"),
            Err(failure) => failures.push(failure),
        }
    }
    (came, sum.mean().unwrap().into_iter().map(f32::to_bits).collect(), failures)
}

/// A life that ends without a word in the middle of an upload: the event loop is dropped with all that is in it.
fn first_life(place: &Place, client: u64, blob: &Blob, most: usize) {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
        let mut member = Member::arrive(place, client).await;
        let offer = member.offer().await.unwrap();
        let have = member.begin(&offer, VALUES).await.unwrap();
        member.send(&offer, blob, &have, most).await;
    });
}

#[test]
fn a_round_closes_with_those_who_were_not_killed_and_no_slot_is_lost() {
    let mut crowd = Crowd::new(40);
    // Fewer slots than are killed: were any lost, the round would not end.
    (crowd.site.config.upload_slots, crowd.site.config.reconnect_grace_secs) = (crowd.killed.len().min(16) / 2, 0);
    let mut server = crowd.site.server();
    let place = Place::of(&crowd.site, &server);
    let nodes = EndpointThread::start("crowd").unwrap();
    let survivors: Vec<u64> = crowd.everybody().into_iter().filter(|k| !crowd.killed.contains_key(k)).collect();
    for client in crowd.everybody() {
        let (place, blob, killed) = (place.clone(), crowd.blob(client), crowd.killed.get(&client).copied());
        nodes.handle().spawn(async move {
            let mut member = Member::arrive(&place, client).await;
            while let Some(offer) = member.offer().await {
                let have = member.begin(&offer, VALUES).await.unwrap();
                member.send(&offer, &blob, &have, killed.unwrap_or(usize::MAX)).await;
                if killed.is_some() {
                    return member.connection.close(0u32.into(), b"killed");
                }
                assert_eq!(member.commit(&offer, &blob).await, Some(CommitState::Committed));
            }
        });
    }
    server.wait_for(crowd.clients as usize, 10 * LONG, &mut |_| {}).unwrap();
    let (came, mean, failures) = round(&mut server, &crowd, 1, &crowd.everybody());
    assert_eq!(came, survivors.iter().copied().collect());
    assert_eq!(mean, Crowd::mean(survivors.iter().copied()));
    assert_eq!(failures, vec![ClientFailure::Disconnected; crowd.killed.len()]);
    // And again, with all slots.
    let (came, mean, _) = round(&mut server, &crowd, 2, &survivors);
    assert_eq!(came.len(), survivors.len());
    assert_eq!(mean, Crowd::mean(survivors));
}

#[test]
fn who_was_killed_and_comes_back_sends_only_what_is_missing() {
    let mut crowd = Crowd::new(40);
    crowd.site.config.upload_slots = crowd.killed.len().min(16);
    // Room for what the killed ones leave behind: where there is none, it makes place for those who are here.
    crowd.site.config.upload_memory_mib = crowd.clients + 16;
    let mut server = crowd.site.server();
    let place = Place::of(&crowd.site, &server);
    let nodes = EndpointThread::start("crowd").unwrap();
    let returned = Arc::new(Mutex::new(Vec::new()));
    for client in crowd.everybody() {
        let (place, blob) = (place.clone(), crowd.blob(client));
        let (killed, returned) = (crowd.killed.get(&client).copied(), returned.clone());
        let life = async move {
            let mut chunks = 0;
            if let Some(killed) = killed {
                chunks = killed / CHUNK as usize;
                let (place, blob, (tell, dead)) = (place.clone(), blob.clone(), tokio::sync::oneshot::channel());
                std::thread::spawn(move || {
                    first_life(&place, client, &blob, killed);
                    tell.send(()).unwrap();
                });
                dead.await.unwrap();
            }
            let mut member = Member::arrive(&place, client).await;
            let offer = member.offer().await.unwrap();
            let have = member.begin(&offer, VALUES).await.unwrap();
            let before = member.connection.stats().udp_tx.bytes;
            member.send(&offer, &blob, &have, usize::MAX).await;
            let sent = member.connection.stats().udp_tx.bytes - before;
            assert_eq!(member.commit(&offer, &blob).await, Some(CommitState::Committed));
            if killed.is_some() {
                returned.lock().unwrap().push((have.count() as usize, chunks, sent));
            }
            // Stays until the server is gone.
            member.connection.closed().await;
        };
        nodes.handle().spawn(life);
    }
    server.wait_for(crowd.clients as usize, 10 * LONG, &mut |_| {}).unwrap();
    let (came, mean, _) = round(&mut server, &crowd, 1, &crowd.everybody());
    assert_eq!(came.len() as u64, crowd.clients);
    assert_eq!(mean, Crowd::mean(crowd.everybody()));
    let all = 4 * VALUES / CHUNK as usize;
    for (had, before, sent) in returned.lock().unwrap().iter() {
        let missing = (all - before + 1) as u64 * u64::from(CHUNK);
        assert!(*sent <= missing + missing / 4, "{sent} bytes where {before} of {all} chunks had come, {had} known");
    }
    assert_eq!(returned.lock().unwrap().len(), crowd.killed.len());
}
