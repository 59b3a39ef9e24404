//! A federation in one process: worker threads over a population.

use std::collections::{BTreeSet, VecDeque};
use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use burn::tensor::backend::Backend;
use fedburn_core::{
    ClientFailure, ClientId, ClientInfo, Outcome, Population, Reply, Request, RoundIndex, ServerTransport, StateDict,
    StateStore, TrainError, TransportError, Worker,
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
    /// Without a `store` clients begin every round without state: right for stateless local rules only.
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

    fn checkpointed(&mut self, round: RoundIndex) -> Result<(), TransportError> {
        match &self.store {
            Some(store) => Ok(store.checkpointed(round)?),
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
    let mut worker = None;
    while let Some(job) = queue.next() {
        let round = match &job.request {
            Request::Train(task) => task.round,
            Request::Evaluate { round, .. } => *round,
        };
        let served = catch_unwind(AssertUnwindSafe(|| {
            let worker = worker.get_or_insert_with(|| population.worker());
            serve(&mut **worker, job.client, round, job.request, job.store.as_deref())
        }));
        let (reply, state) = match served {
            Ok(Ok((reply, state))) => (Ok(reply), state),
            Ok(Err(failure)) => (Err(failure), None),
            Err(panic) => {
                // The resident model may be torn: build a new one.
                worker = None;
                tracing::error!(client = %job.client, %round, "client panicked");
                (Err(ClientFailure::Failed { reason: format!("panicked: {}", message(&*panic)) }), None)
            }
        };
        // The receiver is gone where the exchange was given up.
        let _ = job.answers.send(Answer { client: job.client, round, reply, state });
    }
}

fn serve<B: Backend>(
    worker: &mut dyn Worker<B>,
    id: ClientId,
    round: RoundIndex,
    request: Request<B>,
    store: Option<&dyn StateStore>,
) -> Result<(Reply<B>, Option<StateDict>), ClientFailure> {
    let failed = |reason: String| ClientFailure::Failed { reason };
    let training = |e: TrainError| match e {
        TrainError::NoData { .. } => ClientFailure::NoData,
        other => failed(other.to_string()),
    };
    let mut client = worker.client(id).map_err(training)?;
    // A round's training sees the state before that round, an evaluation the state after it.
    let before = match request {
        Request::Train(_) => round,
        Request::Evaluate { .. } => round.next(),
    };
    if let Some(store) = store
        && let Some(state) = store.load(id, before).map_err(|e| failed(e.to_string()))?
    {
        client.restore(state).map_err(|e| failed(e.to_string()))?;
    }
    match request {
        Request::Train(task) => {
            let update = client.train(&task).map_err(training)?;
            let state = client.state();
            Ok((Reply::Trained(update), (!state.is_empty()).then_some(state)))
        }
        Request::Evaluate { global, .. } => Ok((Reply::Evaluated(client.evaluate(&global).map_err(training)?), None)),
    }
}

fn message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "unknown cause".to_owned())
}
