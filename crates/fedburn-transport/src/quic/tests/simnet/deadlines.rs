//! When ends are noticed, in virtual time and therefore exactly, with the settings that a federation has by default.

use std::sync::Arc;
use std::time::Duration;

use burn_flex::Flex;
use fedburn_core::{ClientFailure, ClientId, Outcome, RoundIndex};
use tokio::time::{Instant, timeout};

use super::super::training;
use super::faults::Script;
use super::network::Weather;
use super::node::Node;
use super::server::Server;
use super::world::{World, run_in};
use crate::quic::server::{Opened, Rounds};
use crate::quic::{ClientConfig, QuicConfig};
use crate::wire::limits::MAX_CHUNK_LEN;

const CLIENT: ClientId = ClientId(1);

/// A server without rounds of its own and one node, which has announced its client.
async fn pair(world: &Arc<World>) -> (Rounds<Flex>, Opened, Node) {
    let (rounds, opened) = Server::open(world, QuicConfig::default(), RoundIndex(0));
    let node = Node::start_with(world, 0, ClientConfig::default());
    assert!(rounds.wait_for(1, Some(Instant::now() + Duration::from_secs(10)), |_| {}).await);
    (rounds, opened, node)
}

fn in_a_calm_world<F: Future<Output = ()> + 'static>(training: Duration, body: impl FnOnce(Arc<World>) -> F) {
    run_in(1, Script::calm(training), body);
}

/// The one outcome of a request to train, and when it came.
async fn ask(world: &World, rounds: &mut Rounds<Flex>, patience: Duration) -> (Outcome<Flex>, Duration) {
    let (began, requests) = (Instant::now(), training(&world.schema, 1, &[CLIENT.0]));
    let mut outcomes = rounds.exchange(requests, patience);
    let outcome = outcomes.receive().await.unwrap();
    assert!(outcomes.receive().await.is_none());
    (outcome, began.elapsed())
}

#[test]
fn a_round_ends_when_its_time_is_over_and_not_later() {
    in_a_calm_world(HOUR, |world| async move {
        let (mut rounds, _opened, _node) = pair(&world).await;
        let (outcome, took) = ask(&world, &mut rounds, Duration::from_secs(8)).await;
        assert_eq!(outcome.reply.unwrap_err(), ClientFailure::TimedOut);
        assert!(took <= Duration::from_millis(8_001), "{took:?}");
    });
}

#[test]
fn a_round_ends_with_its_last_answer() {
    in_a_calm_world(Duration::ZERO, |world| async move {
        let (mut rounds, _opened, _node) = pair(&world).await;
        let (outcome, took) = ask(&world, &mut rounds, HOUR).await;
        assert!(outcome.reply.is_ok() && took < Duration::from_millis(200), "{took:?}");
    });
}

#[test]
fn a_node_that_leaves_is_noticed_within_two_seconds() {
    in_a_calm_world(HOUR, |world| async move {
        let (mut rounds, _opened, node) = pair(&world).await;
        let grace = QuicConfig::default().reconnect_grace();
        tokio::spawn(async move { node.leave().await });
        let (outcome, took) = ask(&world, &mut rounds, HOUR).await;
        assert_eq!(outcome.reply.unwrap_err(), ClientFailure::Disconnected);
        assert!((grace..grace + NOTICED).contains(&took), "{took:?}");
    });
}

#[test]
fn a_node_that_is_silent_is_noticed_at_the_idle_time_out() {
    in_a_calm_world(HOUR, |world| async move {
        let (mut rounds, _opened, node) = pair(&world).await;
        world.network.kill(World::host(0));
        node.kill();
        let (outcome, took) = ask(&world, &mut rounds, HOUR).await;
        assert_eq!(outcome.reply.unwrap_err(), ClientFailure::Disconnected);
        let config = QuicConfig::default();
        let silent = Duration::from_secs(config.idle_timeout_secs) + config.reconnect_grace();
        assert!((silent..silent + NOTICED).contains(&took), "{took:?}");
    });
}

#[test]
fn a_model_of_several_chunks_goes_down_and_up_a_slow_line() {
    let weather = Weather { bytes_per_second: 50_000, ..Weather::CALM };
    let script = Script { values: 5 << 20, chunk_len: MAX_CHUNK_LEN, weather, ..Script::calm(Duration::ZERO) };
    run_in(1, script, |world| async move {
        let (mut rounds, _opened, _node) = pair(&world).await;
        let (outcome, took) = ask(&world, &mut rounds, HOUR).await;
        assert!(outcome.reply.is_ok(), "{:?}", outcome.reply.err());
        let payload = Duration::from_secs_f64(2.0 * 4.0 * f64::from(5 << 20) / 50_000.0);
        assert!((payload..payload.mul_f64(1.35)).contains(&took), "{took:?}, not much more than {payload:?}");
    });
}

/// How long after a restart of the server the node is back.
async fn back(world: &Arc<World>, rounds: Rounds<Flex>, opened: Opened) -> Duration {
    world.network.kill(World::SERVER.ip());
    drop((rounds, opened));
    let (rounds, _opened) = Server::open(world, QuicConfig::default(), RoundIndex(0));
    let began = Instant::now();
    assert!(rounds.wait_for(1, Some(began + HOUR), |_| {}).await);
    began.elapsed()
}

#[test]
fn a_node_with_something_to_say_notices_a_restart_within_two_seconds() {
    in_a_calm_world(Duration::from_secs(1), |world| async move {
        let (mut rounds, opened, _node) = pair(&world).await;
        // The server ends while the node trains; the answer is the first packet that the new one gets.
        let requests = training(&world.schema, 1, &[CLIENT.0]);
        let mut outcomes = rounds.exchange(requests, HOUR);
        assert!(timeout(Duration::from_millis(100), outcomes.receive()).await.is_err());
        drop(outcomes);
        let took = back(&world, rounds, opened).await;
        assert!(took < Duration::from_secs(1) + NOTICED, "{took:?}");
    });
}

#[test]
fn an_idle_node_notices_a_restart_with_its_next_sign_of_life() {
    in_a_calm_world(HOUR, |world| async move {
        let (rounds, opened, _node) = pair(&world).await;
        let took = back(&world, rounds, opened).await;
        assert!(took < Duration::from_secs(ClientConfig::default().keep_alive_secs) + NOTICED, "{took:?}");
    });
}

const HOUR: Duration = Duration::from_secs(3_600);
/// The server looks four times a second, and waits between attempts are drawn from half a second.
const NOTICED: Duration = Duration::from_secs(2);
