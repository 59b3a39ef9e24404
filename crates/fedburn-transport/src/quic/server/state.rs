//! What a server knows, shared between its event loop and whoever runs the rounds.

mod exchanges;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use fedburn_core::{ClientId, ClientInfo, Schemas};
use tokio::sync::{Notify, Semaphore};
use tokio::time::{Instant, timeout_at};

use super::super::send::Blob;
use super::super::surroundings::Surroundings;
use super::super::watched::Watched;
use super::super::{NodeId, QuicConfig, ServerIdentity};
use super::counters::Counters;
use super::link::Link;
use super::spool::Spool;
use super::tasks::Exchange;
use super::uploads::Slots;
use crate::wire::{Bye, ClientEntry, CloseCode, Extensions, Hash, Refusal, ServerLimits};

/// What a server knows. Locks are held for moments and never across a wait; where two are held, this one's is the outer.
pub(super) struct Shared {
    pub(super) config: QuicConfig,
    pub(super) identity: ServerIdentity,
    pub(super) surroundings: Surroundings,
    pub(super) plan: Arc<Blob>,
    pub(super) plan_hash: Hash,
    pub(super) schemas: Schemas,
    /// Another number than before means that unfinished uploads are forgotten.
    pub(super) epoch: u64,
    pub(super) limits: ServerLimits,
    pub(super) spool: Arc<Spool>,
    /// Whether an answer is on disk before it is acknowledged.
    keeps_answers: bool,
    failure: OnceLock<Failure>,
    pub(super) uploads: Slots,
    pub(super) downloads: Arc<Semaphore>,
    pub(super) counters: Arc<Counters>,
    federation: Mutex<Federation>,
    /// Until then nodes of an earlier life may be on their way back.
    returned: Option<Instant>,
    /// Told when clients come or go.
    changed: Notify,
    /// Changes when an exchange ends.
    exchanges: Watched<u64>,
}

#[derive(Default)]
struct Federation {
    nodes: BTreeMap<NodeId, Node>,
    clients: BTreeMap<ClientId, (NodeId, u64)>,
    exchange: Option<Exchange>,
    /// The blobs of the exchange.
    blobs: BTreeMap<Hash, Arc<Blob>>,
    goodbye: Option<String>,
}

/// A node that announced clients and is here, or was a moment ago.
struct Node {
    clients: Vec<ClientId>,
    features: u64,
    link: Option<Arc<Link>>,
    away_since: Option<Instant>,
}

/// Why a server cannot go on.
pub(super) struct Failure {
    pub(super) reason: String,
    /// Whether somebody asked for the end.
    pub(super) wanted: bool,
}

/// What a server is made of.
pub(super) struct Parts {
    pub(super) config: QuicConfig,
    pub(super) identity: ServerIdentity,
    pub(super) surroundings: Surroundings,
    pub(super) plan: Arc<Blob>,
    pub(super) plan_hash: Hash,
    pub(super) schemas: Schemas,
    pub(super) epoch: u64,
    pub(super) limits: ServerLimits,
    pub(super) spool: Spool,
    pub(super) keeps_answers: bool,
}

impl Shared {
    pub(super) fn new(parts: Parts) -> Self {
        let Parts { config, identity, surroundings, plan, plan_hash, schemas, epoch, limits, spool, keeps_answers } =
            parts;
        Self {
            uploads: Slots::new(&config),
            returned: Instant::now().checked_add(config.reconnect_grace()),
            downloads: Arc::new(Semaphore::new(config.download_slots)),
            counters: Arc::default(),
            config,
            identity,
            surroundings,
            plan,
            plan_hash,
            schemas,
            epoch,
            limits,
            spool: Arc::new(spool),
            keeps_answers,
            failure: OnceLock::new(),
            federation: Mutex::default(),
            changed: Notify::new(),
            exchanges: Watched::new(0),
        }
    }

    /// Every client that may be asked, sorted: those that are here, and those that answered before a crash.
    pub(super) fn clients(&self) -> Arc<[ClientInfo]> {
        let mut clients = self.spool.clients();
        let announced = |(id, (_, num_examples)): (&ClientId, &(NodeId, u64))| (*id, *num_examples);
        clients.extend(self.lock().clients.iter().map(announced));
        clients.into_iter().map(|(id, num_examples)| ClientInfo { id, num_examples }).collect()
    }

    /// What the server knows of a client before it asks.
    fn client(&self, id: ClientId) -> ClientInfo {
        ClientInfo { id, num_examples: self.lock().clients.get(&id).map_or(0, |(_, num_examples)| *num_examples) }
    }

    pub(super) fn owner(&self, client: ClientId) -> Option<NodeId> {
        self.lock().clients.get(&client).map(|(node, _)| *node)
    }

    /// What the connection of a node with clients has, or had when it was there.
    pub(super) fn features(&self, node: NodeId) -> u64 {
        self.lock().nodes.get(&node).map_or(0, |node| node.features)
    }

    /// Tells a node why it cannot take part, and forgets its clients.
    pub(super) fn leave_out(&self, node: NodeId, reason: &str) {
        tracing::warn!(%node, reason, "node.left_out");
        let removed = self.lock().remove(node);
        if let Some(link) = removed.and_then(|node| node.link) {
            link.close(CloseCode::Version, reason);
        }
        self.changed.notify_waiters();
    }

    /// Waits until there are so many clients, or the deadline; gives their number each time it changes.
    pub(super) async fn wait_for(
        &self,
        clients: usize,
        deadline: Option<Instant>,
        mut seen: impl FnMut(usize),
    ) -> bool {
        let mut told = None;
        loop {
            let changed = self.changed.notified();
            // Who answered before a crash counts as there once nodes had time to come back: the round after needs them.
            let now = Instant::now();
            let returning = self.returned.is_none_or(|returned| now < returned);
            let count = if returning { self.lock().clients.len() } else { self.clients().len() };
            if told != Some(count) {
                seen(count);
                told = Some(count);
            }
            if count >= clients {
                return true;
            }
            if deadline.is_some_and(|deadline| deadline <= now) {
                return false;
            }
            let returned = self.returned.filter(|_| returning);
            match deadline.into_iter().chain(returned).min() {
                None => changed.await,
                Some(until) => drop(timeout_at(until, changed).await),
            }
        }
    }

    /// Waits until the clients that may be asked are `enough`, the deadline, or the server cannot go on.
    pub(super) async fn wait_until(&self, enough: impl Fn(&[ClientInfo]) -> bool, deadline: Option<Instant>) {
        loop {
            let changed = self.changed.notified();
            if self.failure().is_some() || enough(&self.clients()) {
                return;
            }
            match deadline {
                None => changed.await,
                Some(deadline) if timeout_at(deadline, changed).await.is_err() => return,
                Some(_) => {}
            }
        }
    }

    /// The node behind `link` is these clients from now on. An older connection of the same node is closed.
    pub(super) fn register(&self, link: &Arc<Link>, clients: Vec<ClientEntry>) -> Result<(), (Refusal, String)> {
        let mut federation = self.lock();
        let taken =
            |entry: &&ClientEntry| federation.clients.get(&entry.id).is_some_and(|(node, _)| *node != link.node);
        if let Some(entry) = clients.iter().find(taken) {
            return Err((Refusal::ClientTaken, format!("client {} is another node", entry.id)));
        }
        let own = federation.nodes.get(&link.node).map_or(0, |node| node.clients.len());
        if federation.clients.len() - own + clients.len() > self.config.clients {
            return Err((Refusal::Limit, format!("this server takes {} clients in all", self.config.clients)));
        }
        let before = federation.remove(link.node);
        let ids: Vec<ClientId> = clients.iter().map(|entry| entry.id).collect();
        federation.clients.extend(clients.iter().map(|entry| (entry.id, (link.node, entry.num_examples))));
        if before.as_ref().is_some_and(|node| node.clients != ids)
            && let Some(exchange) = &mut federation.exchange
        {
            exchange.fail_node(link.node);
        }
        federation.nodes.insert(
            link.node,
            Node { clients: ids, features: link.features(), link: Some(link.clone()), away_since: None },
        );
        drop(federation);
        if let Some(old) = before.and_then(|node| node.link).filter(|old| !Arc::ptr_eq(old, link)) {
            old.release(|_| false);
            old.close(CloseCode::Replaced, "the node has connected again");
        }
        self.changed.notify_waiters();
        Ok(())
    }

    /// A connection ended.
    pub(super) fn left(&self, link: &Arc<Link>) {
        link.release(|_| false);
        if let Some(node) = self.lock().nodes.get_mut(&link.node)
            && node.link.as_ref().is_some_and(|current| Arc::ptr_eq(current, link))
        {
            node.link = None;
            node.away_since = Some(Instant::now());
        }
        self.changed.notify_waiters();
    }

    /// Keeps why a node does not take part, or that it does; the disk is not waited for.
    pub(super) fn note_declined(self: &Arc<Self>, node: NodeId, reason: Option<String>) {
        if self.identity.nodes().declined(node) == reason {
            return;
        }
        let shared = self.clone();
        tokio::task::spawn_blocking(move || {
            if let Err(error) = shared.identity.nodes().note_declined(node, reason) {
                tracing::error!(%error, "registry.unwritable");
            }
        });
    }

    /// Gives up on nodes that are away for too long or no longer admitted.
    pub(super) fn tidy(&self) {
        let grace = self.config.reconnect_grace();
        let mut federation = self.lock();
        let away = |node: &Node| node.away_since.is_some_and(|since| since.elapsed() >= grace);
        let over = federation.nodes.iter().filter(|(id, node)| away(node) || !self.identity.admits(**id));
        let gone: Vec<NodeId> = over.map(|(id, _)| *id).collect();
        for id in &gone {
            federation.remove(*id);
            if let Some(exchange) = &mut federation.exchange {
                exchange.fail_node(*id);
            }
        }
        drop(federation);
        if !gone.is_empty() {
            self.changed.notify_waiters();
        }
    }

    /// Tells of each node that announced clients: these, and its connection unless it is away.
    pub(super) fn each_node(&self, mut tell: impl FnMut(NodeId, &[ClientId], Option<&Link>)) {
        self.lock().nodes.iter().for_each(|(id, node)| tell(*id, &node.clients, node.link.as_deref()));
    }

    /// The live connections of nodes with clients.
    fn links(federation: &Federation) -> impl Iterator<Item = &Arc<Link>> {
        federation.nodes.values().filter_map(|node| node.link.as_ref())
    }

    /// Says goodbye to everybody, also to those who come later.
    pub(super) fn say_goodbye(&self, reason: &str) {
        let mut federation = self.lock();
        federation.goodbye = Some(reason.to_owned());
        Self::links(&federation).for_each(|link| link.wake.notify_one());
    }

    pub(super) fn goodbye(&self) -> Option<Bye> {
        self.lock().goodbye.clone().map(|reason| Bye { reason, ext: Extensions::default() })
    }

    fn lock(&self) -> MutexGuard<'_, Federation> {
        // Nothing panics while it holds the lock.
        self.federation.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Federation {
    /// Forgets a node and its clients.
    fn remove(&mut self, node: NodeId) -> Option<Node> {
        let removed = self.nodes.remove(&node)?;
        removed.clients.iter().for_each(|client| {
            self.clients.remove(client);
        });
        Some(removed)
    }
}

#[cfg(test)]
impl Shared {
    pub(super) fn held(&self) -> Option<String> {
        let federation = self.lock();
        let (exchange, blobs) = (federation.exchange.is_some(), federation.blobs.len());
        let links: usize = Self::links(&federation).map(|link| link.num_held()).sum();
        let (uploads, memory) = self.uploads.usage();
        let (turns, memory) = (uploads.used, memory.used);
        let downloads = self.config.download_slots - self.downloads.available_permits();
        let nothing = !exchange && blobs == 0 && links == 0 && turns + memory == 0 && downloads == 0;
        (!nothing).then(|| {
            format!(
                "exchange: {exchange}, blobs: {blobs}, uploads held: {links}, turns: {turns}, memory: {memory}, downloads: {downloads}"
            )
        })
    }
}
