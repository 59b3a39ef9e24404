//! Keeps a node connected, and hears what there is to do.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::super::QuicError;
use super::super::stream::{FrameReader, REQUEST, StreamError, close, send};
use super::answer;
use super::connect::{on, unexpected};
use super::failure::{Failure, of_connection};
use super::state::{End, Live, Shared};
use crate::wire::{CloseCode, Extensions, Message, Watch};

/// Connects, and again whenever the connection is lost, until there is nothing more to do.
pub(super) async fn run(shared: Arc<Shared>) {
    let config = shared.dialer.config();
    let (base, mut backoff) = (Duration::from_millis(config.backoff_base_ms), shared.dialer.backoff());
    let patience = Duration::from_secs(config.server_away_secs);
    let mut seen = Instant::now();
    while shared.end().is_none() {
        let mut came_up = None;
        let end = session(&shared, &mut came_up).await;
        if came_up.is_some() {
            seen = Instant::now();
            shared.disconnected();
        }
        // A connection that breaks at once must not be tried again at once.
        if came_up.is_some_and(|since: Instant| since.elapsed() > base) {
            backoff.reset();
        }
        match end {
            Ok(reason) => {
                tracing::info!(reason, "node.goodbye");
                shared.finish(End::Goodbye);
            }
            Err(Failure::Lasting(error)) => {
                tracing::info!(%error, "node.refused");
                shared.finish(End::Failed(Arc::new(error)));
            }
            Err(Failure::Superseded) => {}
            Err(Failure::Passing(reason)) if seen.elapsed() >= patience => {
                let server = shared.dialer.server();
                let reason = format!("away for {} s: {reason}", patience.as_secs());
                shared.finish(End::Failed(Arc::new(QuicError::Unreachable { server, reason })));
            }
            Err(Failure::Passing(reason)) => {
                let wait = backoff.next(Duration::ZERO);
                tracing::info!(reason, ?wait, "node.disconnected");
                tokio::select! {
                    biased;
                    () = tokio::time::sleep(wait) => {}
                    // Only the end of the node changes the state of a node that is not connected.
                    _ = shared.status().wait_for(|status| matches!(status, super::state::Status::Ended)) => {}
                }
            }
        }
    }
}

/// One connection from its beginning to its end, which is the server's goodbye where it is no failure.
async fn session(shared: &Arc<Shared>, came_up: &mut Option<Instant>) -> Result<String, Failure> {
    let (connection, welcome) = shared.dialer.connect().await?;
    if welcome.plan != shared.plan {
        let reason = "the server trains by another plan now".to_owned();
        close(&connection, CloseCode::Ok, "another plan");
        return Err(QuicError::Refused { reason }.into());
    }
    if welcome.limits.chunk_len != shared.chunk_len {
        let reason = format!("the server wants chunks of {} bytes now", welcome.limits.chunk_len);
        return Err(QuicError::Protocol { reason }.into());
    }
    shared.dialer.announce(&connection, &shared.clients, shared.schema, shared.plan_hash).await?;
    tokio::spawn(shared.downloads.clone().receive(connection.clone()));
    let live = Arc::new(Live { connection, limits: welcome.limits, number: shared.next_connection() });
    shared.connected(live.clone());
    if shared.end().is_some() {
        // The node left while it connected.
        close(&live.connection, CloseCode::Ok, "the node leaves");
        return Err(Failure::Superseded);
    }
    *came_up = Some(Instant::now());
    tracing::info!(server = shared.dialer.server(), "node.connected");
    let heard = listen(shared, &live).await;
    if heard.is_ok() {
        // Who gets the last message closes.
        close(&live.connection, CloseCode::Ok, "goodbye");
    }
    heard
}

/// Hears what the server says until it says goodbye.
async fn listen(shared: &Arc<Shared>, live: &Live) -> Result<String, Failure> {
    let lost = |error: StreamError| on(&live.connection, error.into());
    let (mut sending, receiving) = live.connection.open_bi().await.map_err(|e| of_connection(&e))?;
    send(&mut sending, REQUEST, &Watch { ext: Extensions::default() }.into()).await.map_err(lost)?;
    let _ = sending.finish();
    let mut reader = FrameReader::new(receiving);
    let mut hourly = tokio::time::interval(CERTIFICATE_LOOK);
    loop {
        let frame = tokio::select! {
            biased;
            frame = reader.next() => frame.map_err(lost)?,
            _ = hourly.tick() => {
                shared.dialer.renew_if_due(&live.connection).await;
                continue;
            }
        };
        let Some(frame) = frame else { break };
        match frame.message().map_err(|e| lost(e.into()))? {
            Message::TaskOffer(offer) => {
                if let Some(kept) = shared.offered(offer, live.number) {
                    tokio::spawn(answer::repeat(shared.clone(), kept));
                }
            }
            Message::Cancel(cancel) => shared.cancelled(cancel.task),
            Message::RoundClosed(closed) => shared.round_closed(closed.round),
            Message::Bye(bye) => return Ok(bye.reason),
            other => return Err(unexpected(&other)),
        }
    }
    close(&live.connection, CloseCode::Protocol, "the watch stream ended");
    Err(Failure::Passing("the watch stream ended".to_owned()))
}

/// How often a node that stays connected looks whether its certificate gets old.
const CERTIFICATE_LOOK: Duration = Duration::from_secs(3600);
