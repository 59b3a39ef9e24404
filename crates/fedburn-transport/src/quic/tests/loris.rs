//! Slow nodes by the dozen: a byte a second in the handshake, in a frame, in a chunk.
//!
//! As many as `FEDBURN_LORIS` says; then the time of honest rounds is held against those without them.

use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use fedburn_testkit::schema;
use tokio::task::JoinSet;

use super::super::client::Dialer;
use super::super::runtime::EndpointThread;
use super::super::surroundings::Surroundings;
use super::honest::{HONEST, Honest, VALUES, median};
use super::member::{Member, Place};
use super::*;
use crate::wire::{ChunkHeader, Codec, Layout, ServerLimits};

/// The first client that is slow.
const SLOW: u64 = 1_000;
/// The time within which every slow node must be gone.
const EVICTED: Duration = Duration::from_secs(45);

/// Begins a handshake through a relay that lets the first packet through and nothing behind it.
async fn in_handshake(join: JoinString, site_node: NodeIdentity, server: SocketAddr) {
    let relay = UdpSocket::bind("127.0.0.1:0").unwrap();
    let at = relay.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut packet = [0; 1500];
        if let Ok((len, _)) = relay.recv_from(&mut packet) {
            let _ = relay.send_to(&packet[..len], server);
        }
    });
    let join = JoinString::new(at.ip().to_string(), at.port(), join.pin(), join.secret());
    let config = ClientConfig { connect_timeout_secs: 1, ..client_config() };
    // It gives up and is silent; the server waits.
    let _ = Dialer::new(join, site_node, config, Surroundings::machine()).connect().await;
}

/// Sends a request a byte a second, until the connection is closed.
async fn in_a_frame(place: Place, client: u64) {
    let member = Member::arrive(&place, client).await;
    let (mut sending, _receiving) = member.connection.open_bi().await.unwrap();
    // Bytes of a body that is announced as long as any.
    drip(&member.connection, &mut sending, &[0, 0, 1, 0, 3, 3, 0, 0, 0, 0, 0, 0]).await;
}

/// Takes a slot and sends a chunk a byte a second, until the connection is closed.
async fn in_a_chunk(place: Place, client: u64, begun: Arc<AtomicUsize>) {
    let mut member = Member::arrive(&place, client).await;
    let Some(offer) = member.offer().await else { return };
    begun.fetch_add(1, Ordering::Relaxed);
    if member.begin(&offer, VALUES).await.is_none() {
        return;
    }
    let payload = vec![0; 4 * VALUES];
    let layout = Layout::new(Codec::F32, payload.len() as u64, ServerLimits::default().chunk_len).unwrap();
    let header = ChunkHeader::of(offer.task.into(), &layout, 0, &payload).unwrap();
    let Ok(mut stream) = member.connection.open_uni().await else { return };
    drip(&member.connection, &mut stream, &header.encode()).await;
}

async fn drip(connection: &quinn::Connection, stream: &mut quinn::SendStream, first: &[u8]) {
    let dripping = async {
        stream.write_all(first).await?;
        loop {
            tokio::time::sleep(Duration::from_secs(1)).await;
            stream.write_all(&[0]).await?;
        }
    };
    tokio::select! {
        _ = connection.closed() => {}
        // The stream is no longer wanted: its task is over.
        _ = async { let _: Result<(), quinn::WriteError> = dripping.await; } => {}
    }
}

/// Memory of this process, server and nodes, in MiB.
fn resident() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kib =
        status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix("kB")?.trim().parse().ok());
    kib.unwrap_or(0.0) / 1024.0
}

#[test]
fn slow_nodes_are_gone_within_their_time_and_honest_rounds_go_on() {
    let many = std::env::var("FEDBURN_LORIS").ok().map(|n| n.parse::<u64>().unwrap());
    let (third, rounds) = (many.unwrap_or(18).div_ceil(3), if many.is_some() { 15 } else { 1 });
    let mut site = Site::new(schema(&[VALUES]));
    site.config.strangers_per_address = 3 * third as usize;
    if many.is_none() {
        // A short wait is as good a proof as a long one.
        (site.config.progress_timeout_secs, site.config.handshake_timeout_secs) = (2, 2);
    }
    let mut honest = Honest::start(site);
    let quiet = honest.rounds(rounds, 0..0);
    let before = resident();

    let (place, nodes) = (Place::of(&honest.site, &honest.server), EndpointThread::start("slow").unwrap());
    let (mut crowd, begun) = (JoinSet::new(), Arc::<AtomicUsize>::default());
    for k in 0..third {
        let (identity, address) = (honest.site.node(&format!("stranger{k}")), honest.server.address());
        crowd.spawn_on(in_a_chunk(place.clone(), SLOW + k, begun.clone()), nodes.handle());
        crowd.spawn_on(in_a_frame(place.clone(), SLOW + third + k), nodes.handle());
        crowd.spawn_on(in_handshake(honest.server.join_string(), identity, address), nodes.handle());
    }
    // Who is slow in the handshake never gets through it.
    honest.server.wait_for((HONEST + 2 * third) as usize, 10 * LONG, &mut |_| {}).unwrap();
    let attacked = Instant::now();
    let disturbed = honest.rounds(rounds, SLOW..SLOW + third);
    let during = resident();
    nodes.handle().block_on(async {
        let gone = tokio::time::timeout(2 * EVICTED, async { while crowd.join_next().await.is_some() {} }).await;
        assert!(gone.is_ok(), "{} slow nodes are still here", crowd.len());
    });
    eventually("only honest nodes are connected", || honest.server.connections() == HONEST as usize);
    let gone = attacked.elapsed();
    assert!(begun.load(Ordering::Relaxed) > 0);
    let again = honest.rounds(rounds, 0..0);
    honest.end();
    if many.is_some() {
        let (quiet, disturbed) = (median([quiet, again].concat()), median(disturbed));
        println!(
            "{} slow nodes: honest round {:.1} ms, {:.1} ms without them: {:.2} times; all gone after {:.1} s; \
             {:.0} MiB more, both ends",
            3 * third,
            1e3 * disturbed,
            1e3 * quiet,
            disturbed / quiet,
            gone.as_secs_f64(),
            during - before
        );
        assert!(gone <= EVICTED, "{gone:?}");
    }
}
