//! The watch stream: what there is to do, as it comes up.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use quinn::{Connection, SendStream};
use tokio::time::timeout;

use super::super::stream::{REQUEST, send};
use super::connection::last_words;
use super::link::Link;
use super::state::Shared;
use crate::wire::{CloseCode, Message};

/// Tells the node what there is to do until the connection or the run ends.
pub(super) async fn serve(link: &Arc<Link>, shared: &Arc<Shared>, sending: &mut SendStream) {
    // What was offered on this connection; a new connection is offered all that is open again.
    let mut offered = BTreeSet::new();
    loop {
        let pushes = link.take_pushes();
        let offers = shared.offers(link.node, &mut offered);
        if pushes.iter().any(|push| matches!(push, Message::RoundClosed(_))) {
            // What was offered in a round that ended is never offered again under the same number.
            offered.retain(|task| shared.is_open(link.node, *task));
        }
        if !offers.is_empty() {
            link.allow_for_tasks(offers.len());
        }
        for message in pushes.into_iter().chain(offers.into_iter().map(Message::TaskOffer)) {
            match timeout(shared.config.progress_timeout(), send(sending, REQUEST, &message)).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return,
                Err(_) => return link.close(CloseCode::Slow, "does not read what the server says"),
            }
        }
        if let Some(bye) = shared.goodbye() {
            let patience = Duration::from_secs(shared.config.drain_secs);
            let bye = bye.into();
            let told = timeout(patience, last_words(&link.connection, sending, &bye));
            tokio::select! {
                biased;
                _ = told => {}
                // Nobody waits for a node that was killed: a living one confirms what it gets.
                () = silence(&link.connection) => {}
            }
            return link.close(CloseCode::Ok, "goodbye");
        }
        tokio::select! {
            biased;
            () = link.wake.notified() => {}
            _ = link.connection.closed() => return,
        }
    }
}

/// Waits until no packet comes any more.
async fn silence(connection: &Connection) {
    let mut heard = connection.stats().udp_rx.datagrams;
    loop {
        tokio::time::sleep(SILENCE).await;
        let now = connection.stats().udp_rx.datagrams;
        if now == heard {
            return;
        }
        heard = now;
    }
}

/// Without a packet for so long, a node that was told something is not there.
const SILENCE: Duration = Duration::from_secs(2);
