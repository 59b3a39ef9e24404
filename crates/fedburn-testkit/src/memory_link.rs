//! A server and the process that plays its clients, linked in memory: what a network does, without one.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use burn::tensor::backend::Backend;
use fedburn_core::{
    Asked, ClientFailure, ClientId, ClientInfo, ClientTransport, History, Outcome, Reply, Request, RoundIndex,
    ServerTransport, TransportError,
};

/// A link over which a server asks the clients that a process plays. It outlives both ends, so that either can be ended
/// and begun again; messages are lost with the end that they were sent from.
#[derive(Clone)]
pub struct MemoryLink<B: Backend>(Arc<Link<B>>);

/// The server's end of a link; dropping it says goodbye.
pub struct LinkServer<B: Backend>(Arc<Link<B>>);

/// The clients' end of a link.
pub struct LinkClient<B: Backend> {
    link: Arc<Link<B>>,
    connection: u64,
}

struct Link<B: Backend> {
    clients: Arc<[ClientInfo]>,
    state: Mutex<State<B>>,
    changed: Condvar,
}

struct State<B: Backend> {
    /// Not given to a client yet.
    waiting: VecDeque<Asked<B>>,
    /// Given and not answered.
    given: BTreeMap<ClientId, Asked<B>>,
    /// Where the open exchange takes outcomes.
    outcomes: Option<Sender<Outcome<B>>>,
    /// Whether there is a server.
    open: bool,
    /// The number of the newest connection of the clients' end; older ones are dead.
    connection: u64,
    /// The rounds in which each client's update counted.
    included: BTreeMap<ClientId, BTreeSet<RoundIndex>>,
    durable: RoundIndex,
}

impl<B: Backend> MemoryLink<B> {
    /// A link to these clients, sorted by id, with nobody at either end.
    pub fn new(clients: Arc<[ClientInfo]>) -> Self {
        let state = State {
            waiting: VecDeque::new(),
            given: BTreeMap::new(),
            outcomes: None,
            open: false,
            connection: 0,
            included: BTreeMap::new(),
            durable: RoundIndex(0),
        };
        Self(Arc::new(Link { clients, state: Mutex::new(state), changed: Condvar::new() }))
    }

    /// The server's end, of a server that goes on after the round `after`: what counted later did not happen.
    pub fn server(&self, after: RoundIndex) -> LinkServer<B> {
        let mut state = self.0.lock();
        state.open = true;
        state.included.values_mut().for_each(|rounds| drop(rounds.split_off(&after.next())));
        drop(state);
        LinkServer(self.0.clone())
    }

    /// The clients' end. An earlier one is dead from then on; what it was asked and did not answer is asked again.
    pub fn client(&self) -> LinkClient<B> {
        let mut state = self.0.lock();
        state.connection += 1;
        let given = std::mem::take(&mut state.given);
        state.waiting.extend(given.into_values());
        let connection = state.connection;
        drop(state);
        self.0.changed.notify_all();
        LinkClient { link: self.0.clone(), connection }
    }
}

impl<B: Backend> State<B> {
    fn history(&self, client: ClientId, request: &Request<B>) -> History {
        let rounds = self.included.get(&client);
        let newest = rounds.and_then(|rounds| rounds.range(..request.state_before()).next_back());
        History { state_of: newest.copied().unwrap_or_default(), durable: self.durable }
    }
}

impl<B: Backend> ServerTransport<B> for LinkServer<B> {
    fn clients(&self) -> Arc<[ClientInfo]> {
        self.0.clients.clone()
    }

    fn wait(&mut self, _: Duration) -> Result<(), TransportError> {
        Ok(())
    }

    fn exchange<'a>(
        &'a mut self,
        requests: Vec<(ClientId, Request<B>)>,
        timeout: Duration,
    ) -> Box<dyn Iterator<Item = Outcome<B>> + 'a> {
        let (sender, outcomes) = channel();
        let outstanding = requests.iter().map(|(client, _)| *client).collect();
        let mut state = self.0.lock();
        for (client, request) in requests {
            match self.0.clients.binary_search_by_key(&client, |c| c.id) {
                Ok(_) => {
                    let history = state.history(client, &request);
                    state.waiting.push_back(Asked { client, request, history });
                }
                // The receiver is alive: it is held below.
                Err(_) => drop(sender.send(Outcome { client, reply: Err(ClientFailure::Disconnected) })),
            }
        }
        state.outcomes = Some(sender);
        drop(state);
        self.0.changed.notify_all();
        Box::new(Exchange { link: &self.0, outcomes, outstanding, deadline: Instant::now().checked_add(timeout) })
    }

    fn close_round(&mut self, round: RoundIndex, included: &[ClientId]) -> Result<(), TransportError> {
        let mut state = self.0.lock();
        for client in included {
            state.included.entry(*client).or_default().insert(round);
        }
        Ok(())
    }

    fn checkpointed(&mut self, _: RoundIndex, oldest: RoundIndex) -> Result<(), TransportError> {
        self.0.lock().durable = oldest;
        Ok(())
    }
}

impl<B: Backend> Drop for LinkServer<B> {
    fn drop(&mut self) {
        self.0.lock().open = false;
        self.0.changed.notify_all();
    }
}

struct Exchange<'a, B: Backend> {
    link: &'a Link<B>,
    outcomes: Receiver<Outcome<B>>,
    outstanding: BTreeSet<ClientId>,
    /// `None` where the timeout is beyond what a clock can hold.
    deadline: Option<Instant>,
}

impl<B: Backend> Iterator for Exchange<'_, B> {
    type Item = Outcome<B>;

    fn next(&mut self) -> Option<Outcome<B>> {
        let first = *self.outstanding.first()?;
        let received = match self.deadline {
            Some(deadline) => self.outcomes.recv_timeout(deadline.saturating_duration_since(Instant::now())).ok(),
            None => self.outcomes.recv().ok(),
        };
        let outcome = received.unwrap_or(Outcome { client: first, reply: Err(ClientFailure::TimedOut) });
        self.outstanding.remove(&outcome.client);
        Some(outcome)
    }
}

impl<B: Backend> Drop for Exchange<'_, B> {
    fn drop(&mut self) {
        let mut state = self.link.lock();
        state.waiting.clear();
        state.given.clear();
        state.outcomes = None;
    }
}

impl<B: Backend> Link<B> {
    fn lock(&self) -> MutexGuard<'_, State<B>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<B: Backend> ClientTransport<B> for LinkClient<B> {
    fn next(&self) -> Result<Option<Asked<B>>, TransportError> {
        let mut state = self.link.lock();
        loop {
            if state.connection != self.connection {
                return Err(TransportError::Closed { reason: "another connection took over".to_owned() });
            }
            if let Some(asked) = state.waiting.pop_front() {
                state.given.insert(asked.client, asked.clone());
                return Ok(Some(asked));
            }
            if !state.open {
                return Ok(None);
            }
            state = self.link.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn reply(
        &self,
        client: ClientId,
        round: RoundIndex,
        reply: Result<Reply<B>, ClientFailure>,
    ) -> Result<(), TransportError> {
        let mut state = self.link.lock();
        let wanted = state.given.get(&client).is_some_and(|asked| asked.request.round() == round);
        if wanted && state.connection == self.connection {
            state.given.remove(&client);
            if let Some(outcomes) = &state.outcomes {
                // The receiver is gone where the exchange was given up.
                let _ = outcomes.send(Outcome { client, reply });
            }
        }
        Ok(())
    }
}
