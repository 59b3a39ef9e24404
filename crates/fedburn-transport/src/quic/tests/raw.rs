//! A node that says what it likes.

use tokio::runtime::Handle;

use super::super::client::Dialer;
use super::super::runtime::EndpointThread;
use super::super::stream::{FrameReader, REQUEST, StreamError, ask, close, send};
use super::super::surroundings::Surroundings;
use super::*;
use crate::wire::{Announce, Body, ChunkHeader, ClientEntry, CloseCode, Extensions, Hash, Message, TaskOffer, Watch};

/// A connection of a node that is enrolled and has greeted.
pub(super) struct Raw {
    thread: EndpointThread,
    pub(super) connection: quinn::Connection,
    watch: Option<FrameReader>,
    dialer: Dialer,
}

impl Drop for Raw {
    /// Leaves, so that the server need not wait for it.
    fn drop(&mut self) {
        close(&self.connection, CloseCode::Ok, "");
        self.handle().block_on(self.dialer.hang_up());
    }
}

impl Raw {
    pub(super) fn connect(site: &Site, server: &QuicServer<Flex>, name: &str) -> Self {
        Self::greeting(site, server, name, u64::MAX)
    }

    /// As [`Raw::connect`], of a node with these features and no others.
    pub(super) fn greeting(site: &Site, server: &QuicServer<Flex>, name: &str, features: u64) -> Self {
        let thread = EndpointThread::start("raw").unwrap();
        let (join, identity) = (server.join_string(), site.node(name));
        let (dialer, connection) = thread.handle().block_on(async {
            let dialer = Dialer::new(join, identity, client_config(), Surroundings::machine()).with_features(features);
            let (connection, _) = dialer.connect().await.unwrap();
            (dialer, connection)
        });
        Self { thread, connection, watch: None, dialer }
    }

    /// As [`Raw::connect`], announced as these clients and watching.
    pub(super) fn announced(site: &Site, server: &QuicServer<Flex>, name: &str, ids: &[u64]) -> Self {
        let mut raw = Self::connect(site, server, name);
        assert!(matches!(raw.ask(&raw.announcement(site, ids)), Ok(Message::Announced(_))));
        raw.watch = Some(raw.handle().block_on(async {
            let (mut sending, receiving) = raw.connection.open_bi().await.unwrap();
            send(&mut sending, REQUEST, &Watch { ext: Extensions::default() }.into()).await.unwrap();
            FrameReader::new(receiving)
        }));
        raw
    }

    /// Ends as a process that is killed: nothing is said, and nothing is confirmed any more.
    pub(super) fn die(mut self) {
        self.thread.end();
        std::mem::forget(self);
    }

    pub(super) fn announcement(&self, site: &Site, ids: &[u64]) -> Announce {
        let clients = ids.iter().map(|&k| ClientEntry::from(echo(k))).collect();
        let (schema, plan) = (site.schema.fingerprint(), Hash(site.plan().hash));
        Announce { clients, schema, plan, part: 0, parts: 1, ext: Extensions::default() }
    }

    pub(super) fn dialer(&self) -> &Dialer {
        &self.dialer
    }

    pub(super) fn handle(&self) -> &Handle {
        self.thread.handle()
    }

    pub(super) fn ask<M: Body>(&self, message: &M) -> Result<Message, StreamError> {
        self.handle().block_on(ask(&self.connection, message))
    }

    /// Asks, when it is waited for.
    pub(super) fn asking<M: Body>(&self, message: &M) -> impl Future<Output = Result<Message, StreamError>> {
        ask(&self.connection, message)
    }

    /// The next offer on the watch stream.
    pub(super) fn offer(&mut self) -> TaskOffer {
        let handle = self.handle().clone();
        let reader = self.watch.as_mut().unwrap();
        handle.block_on(async {
            loop {
                if let Message::TaskOffer(offer) = reader.next().await.unwrap().unwrap().message().unwrap() {
                    return offer;
                }
            }
        })
    }

    /// Sends bytes on a request stream.
    pub(super) fn send_bytes(&self, bytes: &[u8]) {
        self.handle().block_on(async {
            let (mut sending, _receiving) = self.connection.open_bi().await.unwrap();
            sending.write_all(bytes).await.unwrap();
            let _ = sending.finish();
            let _ = sending.stopped().await;
        });
    }

    /// Sends a chunk, whatever it is.
    pub(super) fn send_chunk(&self, header: &ChunkHeader, payload: &[u8]) {
        self.handle().block_on(async {
            let mut stream = self.connection.open_uni().await.unwrap();
            let sent = [&header.encode(), payload].concat();
            // The server may stop reading when it has seen enough.
            let _ = stream.write_all(&sent).await;
            let _ = stream.finish();
        });
    }

    /// Sends a chunk's header and nothing of its payload; the stream stays open as long as the connection.
    pub(super) fn begin_chunk(&self, header: &ChunkHeader) {
        self.handle().block_on(async {
            let mut stream = self.connection.open_uni().await.unwrap();
            stream.write_all(&header.encode()).await.unwrap();
            self.handle().spawn(async move { stream.stopped().await });
        });
    }

    /// The code with which the server closes, and what it says.
    pub(super) fn closed(&self) -> (CloseCode, String) {
        match self.handle().block_on(self.connection.closed()) {
            quinn::ConnectionError::ApplicationClosed(close) => {
                let code = CloseCode::from_number(close.error_code.into_inner()).unwrap();
                (code, String::from_utf8_lossy(&close.reason).into_owned())
            }
            other => panic!("closed by the server: {other}"),
        }
    }

    pub(super) fn is_open(&self) -> bool {
        self.connection.close_reason().is_none()
    }
}
