//! The client's end of a network: worker threads that answer what the server asks.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use burn::tensor::backend::Backend;
use fedburn_core::{
    Answered, Answerer, Asked, ClientFailure, ClientId, ClientTransport, Population, Reply, Request, TransportError,
};

use crate::ClientStates;

/// Is the clients of `population` that `transport` asks, on `workers` threads (0 for one a core), until the server says
/// goodbye.
///
/// Each worker keeps one resident model, as in a simulation. A client's state is on disk before its update is sent.
/// Requests to one client are answered one after the other; which worker answers does not change the result. A client
/// that panics, or whose state is missing or damaged, is a failure that the server is told of.
///
/// # Errors
/// [`TransportError`] where the connection to the server is lost for good.
pub fn run_clients<B: Backend>(
    transport: &(impl ClientTransport<B> + ?Sized),
    population: &dyn Population<B>,
    states: &ClientStates,
    workers: usize,
) -> Result<(), TransportError> {
    let workers = match workers {
        0 => thread::available_parallelism().map_or(1, NonZeroUsize::get),
        n => n,
    };
    let desk = Desk { transport, intake: Mutex::new(Intake::Open), turns: Turns::default() };
    let work = || {
        let mut answerer = Answerer::new(population);
        while let Some((asked, turn)) = desk.next::<B>()? {
            turn.wait();
            let (client, round) = (asked.client, asked.request.round());
            let reply = answer(&mut answerer, asked, states);
            if let Err(failure) = &reply {
                tracing::warn!(%client, %round, %failure, "answer.failed");
            }
            transport.reply(client, round, reply)?;
        }
        Ok(())
    };
    thread::scope(|scope| {
        let threads: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
        let ends = threads.into_iter().map(|thread| thread.join());
        // Clients' panics are caught; one of the loop itself goes on to the caller.
        let ends = ends.map(|end| end.unwrap_or_else(|cause| std::panic::resume_unwind(cause)));
        // Every thread ends before the first error is told.
        ends.collect::<Vec<_>>().into_iter().collect()
    })
}

fn answer<B: Backend>(
    answerer: &mut Answerer<'_, B>,
    asked: Asked<B>,
    states: &ClientStates,
) -> Result<Reply<B>, ClientFailure> {
    let Asked { client, request, history } = asked;
    let round = request.round();
    let trains = matches!(request, Request::Train(_));
    let state = || if trains { states.begin(client, history) } else { states.load(client, history.state_of) };
    let Answered { reply, state } = answerer.answer(client, request, state)?;
    if let Some(state) = state {
        let kept = states.keep(client, round, &state);
        kept.map_err(|e| ClientFailure::Failed { reason: e.to_string() })?;
    }
    Ok(reply)
}

/// Where workers take requests, one at a time, so that a client's requests keep their order.
struct Desk<'a, T: ?Sized> {
    transport: &'a T,
    intake: Mutex<Intake>,
    turns: Turns,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Intake {
    Open,
    Closed,
}

impl<T: ?Sized> Desk<'_, T> {
    /// The next request, and its place behind earlier ones of the same client; `None` once there are no more.
    fn next<B: Backend>(&self) -> Result<Option<(Asked<B>, Turn<'_>)>, TransportError>
    where
        T: ClientTransport<B>,
    {
        let mut intake = lock(&self.intake);
        if *intake == Intake::Closed {
            return Ok(None);
        }
        let next = self.transport.next();
        if !matches!(next, Ok(Some(_))) {
            *intake = Intake::Closed;
        }
        Ok(next?.map(|asked| {
            let turn = self.turns.take(asked.client);
            (asked, turn)
        }))
    }
}

/// Who answers for which client in which order.
#[derive(Default)]
struct Turns {
    lines: Mutex<BTreeMap<ClientId, Line>>,
    moved: Condvar,
}

/// The line before one client: turns taken so far, and turns over.
#[derive(Default)]
struct Line {
    taken: u64,
    over: u64,
}

/// A place in a line, given up when dropped.
struct Turn<'a> {
    turns: &'a Turns,
    client: ClientId,
    number: u64,
}

impl Turns {
    fn take(&self, client: ClientId) -> Turn<'_> {
        let mut lines = lock(&self.lines);
        let line = lines.entry(client).or_default();
        line.taken += 1;
        Turn { turns: self, client, number: line.taken - 1 }
    }
}

impl Turn<'_> {
    /// Waits until earlier turns are over.
    fn wait(&self) {
        let mut lines = lock(&self.turns.lines);
        while lines.get(&self.client).is_some_and(|line| line.over < self.number) {
            lines = self.turns.moved.wait(lines).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut lines = lock(&self.turns.lines);
        if let Some(line) = lines.get_mut(&self.client) {
            line.over += 1;
            if line.over == line.taken {
                lines.remove(&self.client);
            }
        }
        self.turns.moved.notify_all();
    }
}

/// Nothing panics while it holds one of these locks, and what they guard is whole after every operation.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
