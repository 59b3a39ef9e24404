//! A federation in one process: worker threads over a population.

use std::collections::{BTreeSet, VecDeque};
use std::num::NonZeroUsize;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use burn::tensor::backend::Backend;
use fedburn_core::{
    Answered, Answerer, ClientFailure, ClientId, ClientInfo, Outcome, Population, Reply, Request, RoundIndex,
    ServerTransport, StateDict, StateStore, TransportError,
};

/// Worker threads over a population of clients that are built when they are asked.
///
/// Each worker keeps one resident model for its whole life; nothing else is kept per client but the state that the
/// [`StateStore`] holds, so memory depends on the number of workers and not on the number of clients. Which worker
/// trains a client does not change the result.
pub struct InProcess<B: Backend> {
    clients: Arc<[ClientInfo]>,
    store: Option<Arc<dyn StateStore>>,
    queue: Arc<Queue<B>>,
    threads: Vec<JoinHandle<()>>,
}

impl<B: Backend> InProcess<B> {
    /// Starts `workers` threads (0 for one a core) over `population`.
    ///
    /// Without a `store` clients begin every round without state: right for stateless local rules only, and only where
    /// updates lose nothing on their way (what a lossy codec leaves out of one is state until the next).
    ///
    /// # Errors
    /// [`TransportError::Closed`] where the system refuses a thread.
    pub fn new(
        population: Arc<dyn Population<B>>,
        store: Option<Arc<dyn StateStore>>,
        workers: usize,
    ) -> Result<Self, TransportError> {
        let workers = match workers {
            0 => std::thread::available_parallelism().map_or(1, NonZeroUsize::get),
            n => n,
        };
        let queue = Arc::new(Queue {
            jobs: Mutex::new(Jobs { waiting: VecDeque::new(), open: true }),
            changed: Condvar::new(),
        });
        let mut transport = Self { clients: population.clients(), store, queue, threads: Vec::with_capacity(workers) };
        for index in 0..workers {
            let (population, queue) = (population.clone(), transport.queue.clone());
            let thread =
                std::thread::Builder::new().name(format!("worker-{index}")).spawn(move || work(&*population, &queue));
            transport.threads.push(
                thread.map_err(|e| TransportError::Closed { reason: format!("cannot start worker {index}: {e}") })?,
            );
        }
        Ok(transport)
    }

    fn num_examples(&self, client: ClientId) -> u64 {
        self.clients.binary_search_by_key(&client, |c| c.id).map_or(0, |i| self.clients[i].num_examples)
    }
}

impl<B: Backend> ServerTransport<B> for InProcess<B> {
    fn clients(&self) -> Arc<[ClientInfo]> {
        self.clients.clone()
    }

    fn wait(&mut self, _: Duration) -> Result<(), TransportError> {
        Ok(())
    }

    fn exchange<'a>(
        &'a mut self,
        mut requests: Vec<(ClientId, Request<B>)>,
        timeout: Duration,
    ) -> Box<dyn Iterator<Item = Outcome<B>> + 'a> {
        let outstanding = requests.iter().map(|(client, _)| *client).collect();
        // The longest first, so that the round does not wait for one straggler that started last.
        requests.sort_by_key(|(client, _)| std::cmp::Reverse(self.num_examples(*client)));
        let (answers, replies) = channel();
        let mut jobs = self.queue.lock();
        jobs.waiting.extend(requests.into_iter().map(|(client, request)| Job {
            client,
            request,
            store: self.store.clone(),
            answers: answers.clone(),
        }));
        drop(jobs);
        self.queue.changed.notify_all();
        Box::new(Exchange {
            store: self.store.as_deref(),
            queue: &self.queue,
            replies,
            deadline: Instant::now().checked_add(timeout),
            outstanding,
        })
    }

    fn close_round(&mut self, round: RoundIndex, included: &[ClientId]) -> Result<(), TransportError> {
        match &self.store {
            Some(store) => Ok(store.commit(round, included)?),
            None => Ok(()),
        }
    }

    fn checkpointed(&mut self, _: RoundIndex, oldest: RoundIndex) -> Result<(), TransportError> {
        match &self.store {
            Some(store) => Ok(store.checkpointed(oldest)?),
            None => Ok(()),
        }
    }
}

impl<B: Backend> Drop for InProcess<B> {
    fn drop(&mut self) {
        let mut jobs = self.queue.lock();
        jobs.open = false;
        jobs.waiting.clear();
        drop(jobs);
        self.queue.changed.notify_all();
        for thread in self.threads.drain(..) {
            // A worker catches its clients' panics, so joining cannot fail; if it did, there would be nothing left to do.
            let _ = thread.join();
        }
    }
}

/// Outcomes of one exchange as they come.
struct Exchange<'a, B: Backend> {
    store: Option<&'a dyn StateStore>,
    queue: &'a Queue<B>,
    replies: Receiver<Answer<B>>,
    /// `None` where the timeout is beyond what a clock can hold.
    deadline: Option<Instant>,
    outstanding: BTreeSet<ClientId>,
}

impl<B: Backend> Iterator for Exchange<'_, B> {
    type Item = Outcome<B>;

    fn next(&mut self) -> Option<Outcome<B>> {
        let first = *self.outstanding.first()?;
        let received = match self.deadline {
            Some(deadline) => self.replies.recv_timeout(deadline.saturating_duration_since(Instant::now())).ok(),
            None => self.replies.recv().ok(),
        };
        let Some(Answer { client, round, reply, state }) = received else {
            self.outstanding.remove(&first);
            return Some(Outcome { client: first, reply: Err(ClientFailure::TimedOut) });
        };
        self.outstanding.remove(&client);
        // State is staged here, not by the worker: an answer that comes after the deadline must leave no trace.
        let staged = match (self.store, state) {
            (Some(store), Some(state)) if reply.is_ok() => store.stage(client, round, state),
            _ => Ok(()),
        };
        let reply = staged.map_err(|e| ClientFailure::Failed { reason: e.to_string() }).and(reply);
        Some(Outcome { client, reply })
    }
}

impl<B: Backend> Drop for Exchange<'_, B> {
    fn drop(&mut self) {
        // What no worker has begun is not worth beginning; answers under way go into a closed channel.
        self.queue.lock().waiting.clear();
    }
}

struct Queue<B: Backend> {
    jobs: Mutex<Jobs<B>>,
    changed: Condvar,
}

struct Jobs<B: Backend> {
    waiting: VecDeque<Job<B>>,
    open: bool,
}

struct Job<B: Backend> {
    client: ClientId,
    request: Request<B>,
    store: Option<Arc<dyn StateStore>>,
    answers: Sender<Answer<B>>,
}

struct Answer<B: Backend> {
    client: ClientId,
    round: RoundIndex,
    reply: Result<Reply<B>, ClientFailure>,
    state: Option<StateDict>,
}

impl<B: Backend> Queue<B> {
    fn lock(&self) -> MutexGuard<'_, Jobs<B>> {
        // Nothing panics while it holds the lock, and a queue is whole after every operation.
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next job; waits for one. `None` once the transport is dropped.
    fn next(&self) -> Option<Job<B>> {
        let mut jobs = self.lock();
        loop {
            if let Some(job) = jobs.waiting.pop_front() {
                return Some(job);
            }
            if !jobs.open {
                return None;
            }
            jobs = self.changed.wait(jobs).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

fn work<B: Backend>(population: &dyn Population<B>, queue: &Queue<B>) {
    let mut answerer = Answerer::new(population);
    while let Some(Job { client, request, store, answers }) = queue.next() {
        let (round, before) = (request.round(), request.state_before());
        let state = || store.as_deref().map_or(Ok(None), |store| store.load(client, before));
        let (reply, state) = match answerer.answer(client, request, state) {
            Ok(Answered { reply, state }) => (Ok(reply), state.filter(|state| !state.is_empty())),
            Err(failure) => (Err(failure), None),
        };
        // The receiver is gone where the exchange was given up.
        let _ = answers.send(Answer { client, round, reply, state });
    }
}
