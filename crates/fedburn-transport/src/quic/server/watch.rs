//! The watch stream: what there is to do, as it comes up.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use quinn::SendStream;
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
            let _ = timeout(patience, last_words(&link.connection, sending, &bye.into())).await;
            return link.close(CloseCode::Ok, "goodbye");
        }
        tokio::select! {
            biased;
            () = link.wake.notified() => {}
            _ = link.connection.closed() => return,
        }
    }
}
