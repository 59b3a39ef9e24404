//! A client of a crowd, driven step by step.

use std::time::Duration;

use super::super::client::Dialer;
use super::super::send::Blob;
use super::super::stream::{FrameReader, REQUEST, ask, send};
use super::super::surroundings::Surroundings;
use super::*;
use crate::wire::{
    Announce, Bitmap, ClientEntry, CommitState, Extensions, Hash, Message, Payload, Report, TaskOffer, UploadBegin,
    UploadCommit, Watch,
};

/// One client, on a node and a socket of its own, connected and announced.
pub(super) struct Member {
    pub(super) client: u64,
    pub(super) connection: quinn::Connection,
    watch: FrameReader,
    /// Owns the socket.
    _dialer: Dialer,
}

/// Where members come to: what all of them know.
#[derive(Clone)]
pub(super) struct Place {
    join: JoinString,
    dir: PathBuf,
    announce: Announce,
}

impl Place {
    pub(super) fn of(site: &Site, server: &QuicServer<Flex>) -> Self {
        let announce = Announce {
            clients: Vec::new(),
            schema: site.schema.fingerprint(),
            plan: Hash(site.plan().hash),
            part: 0,
            parts: 1,
            ext: Extensions::default(),
        };
        Self { join: server.join_string(), dir: site.dir.path().to_owned(), announce }
    }
}

impl Member {
    /// Connects as the node of this client; enrols it first where it was never here.
    pub(super) async fn arrive(place: &Place, client: u64) -> Self {
        let identity = NodeIdentity::open(&place.dir.join(format!("member{client}"))).unwrap();
        // Hundreds of handshakes on a busy machine.
        let config = ClientConfig { connect_timeout_secs: 60, request_timeout_secs: 60, ..client_config() };
        let dialer = Dialer::new(place.join.clone(), identity, config, Surroundings::machine());
        let announce = Announce { clients: vec![ClientEntry::from(echo(client))], ..place.announce.clone() };
        let connection = loop {
            // The server may have too many at its door.
            if let Ok((connection, _)) = dialer.connect().await
                && matches!(ask(&connection, &announce).await, Ok(Message::Announced(_)))
            {
                break connection;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        };
        let (mut sending, receiving) = connection.open_bi().await.unwrap();
        send(&mut sending, REQUEST, &Watch { ext: Extensions::default() }.into()).await.unwrap();
        Self { client, connection, watch: FrameReader::new(receiving), _dialer: dialer }
    }

    /// The next offer; `None` where the connection ends before.
    pub(super) async fn offer(&mut self) -> Option<TaskOffer> {
        loop {
            match self.watch.next().await.ok()??.message().unwrap() {
                Message::TaskOffer(offer) => return Some(offer),
                Message::Bye(_) => return None,
                _ => {}
            }
        }
    }

    /// Waits for a slot; gives which chunks the server has.
    pub(super) async fn begin(&self, offer: &TaskOffer, num_values: usize) -> Option<Bitmap> {
        let (num_values, ext) = (num_values as u64, Extensions::default());
        match ask(&self.connection, &UploadBegin { task: offer.task, num_values, vectors: Vec::new(), ext }).await {
            Ok(Message::UploadGrant(grant)) => Some(grant.have),
            _ => None,
        }
    }

    /// Sends missing chunks one after another, each until the server's end has all of it, up to `most` bytes of payload.
    pub(super) async fn send(&self, offer: &TaskOffer, blob: &Blob, have: &Bitmap, most: usize) {
        let mut left = most;
        for index in have.missing() {
            let (header, payload) = blob.chunk(offer.task.into(), index).unwrap();
            let mut stream = self.connection.open_uni().await.unwrap();
            stream.write_all(&header.encode()).await.unwrap();
            stream.write_all(&payload[..payload.len().min(left)]).await.unwrap();
            if left < payload.len() {
                return;
            }
            left -= payload.len();
            stream.finish().unwrap();
            assert_eq!(stream.stopped().await, Ok(None));
        }
    }

    /// Commits what was sent; `None` where the task is over.
    pub(super) async fn commit(&self, offer: &TaskOffer, blob: &Blob) -> Option<CommitState> {
        let commit = UploadCommit {
            task: offer.task,
            root: blob.name().root,
            payload: Payload::Chunks,
            num_examples: 1,
            side_scalars: Vec::new(),
            report: Report::default(),
            metrics: Vec::new(),
            ext: Extensions::default(),
        };
        match ask(&self.connection, &commit).await.ok()? {
            Message::CommitAck(ack) => Some(ack.state),
            Message::Refused(_) => None,
            other => panic!("client {}: {other:?}", self.client),
        }
    }
}
