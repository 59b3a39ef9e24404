//! Answering requests in the name of clients: one worker's part, the same in a simulation and at the end of a network.

use std::panic::{AssertUnwindSafe, catch_unwind};

use burn::tensor::backend::Backend;

use crate::{
    ClientFailure, ClientId, CompressionConfig, LocalUpdate, ParamVector, Population, Purpose, Reply, Request,
    StateDict, StateError, TrainError, TrainTask, Worker,
};

/// One worker of a population, which becomes whichever client is asked.
///
/// A client that panics is a failure of that client: the worker, whose resident model may be torn, is built anew. Updates
/// are compressed here as their task says, so that they are what the server reads wherever the client is.
pub struct Answerer<'a, B: Backend> {
    population: &'a dyn Population<B>,
    worker: Option<Box<dyn Worker<B>>>,
}

/// What a client answered.
#[derive(Clone, Debug)]
pub struct Answered<B: Backend> {
    /// For the server.
    pub reply: Reply<B>,
    /// The client's state after training, with what compression left out; empty for a client that keeps none. `None`
    /// after an evaluation, which changes none.
    pub state: Option<StateDict>,
}

impl<'a, B: Backend> Answerer<'a, B> {
    /// A worker of `population`, made when the first request comes.
    pub fn new(population: &'a dyn Population<B>) -> Self {
        Self { population, worker: None }
    }

    /// Becomes `client` with what `state` loads, `None` for no state, and does what is asked.
    ///
    /// # Errors
    /// [`ClientFailure`]: what the server is told where there is no answer.
    pub fn answer(
        &mut self,
        client: ClientId,
        request: Request<B>,
        state: impl FnOnce() -> Result<Option<StateDict>, StateError>,
    ) -> Result<Answered<B>, ClientFailure> {
        let answered = catch_unwind(AssertUnwindSafe(|| {
            let worker = self.worker.get_or_insert_with(|| self.population.worker());
            answer(&mut **worker, client, request, state)
        }));
        answered.unwrap_or_else(|panic| {
            self.worker = None;
            Err(ClientFailure::Failed { reason: format!("panicked: {}", message(&*panic)) })
        })
    }
}

fn answer<B: Backend>(
    worker: &mut dyn Worker<B>,
    id: ClientId,
    request: Request<B>,
    state: impl FnOnce() -> Result<Option<StateDict>, StateError>,
) -> Result<Answered<B>, ClientFailure> {
    let failed = |e: StateError| ClientFailure::Failed { reason: e.to_string() };
    let training = |e: TrainError| match e {
        TrainError::NoData { .. } => ClientFailure::NoData,
        other => ClientFailure::Failed { reason: other.to_string() },
    };
    let mut client = worker.client(id).map_err(training)?;
    let mut left_out = StateDict::new();
    if let Some(mut state) = state().map_err(failed)? {
        left_out = state.split_off(COMPRESSION);
        client.restore(state).map_err(failed)?;
    }
    match request {
        Request::Train(task) => {
            let update = client.train(&task).map_err(training)?;
            let (update, left_out) = compress(&task, update, left_out)?;
            let mut state = client.state();
            state.nest(COMPRESSION, left_out);
            Ok(Answered { reply: Reply::Trained(update), state: Some(state) })
        }
        Request::Evaluate { global, .. } => {
            let metrics = client.evaluate(&global).map_err(training)?;
            Ok(Answered { reply: Reply::Evaluated(metrics), state: None })
        }
    }
}

/// The update as it is sent, and what is left out of it; `left_out` is that of earlier ones.
fn compress<B: Backend>(
    task: &TrainTask<B>,
    mut update: LocalUpdate<B>,
    mut left_out: StateDict,
) -> Result<(LocalUpdate<B>, StateDict), ClientFailure> {
    let CompressionConfig { up, error_feedback, .. } = task.compression;
    if up.is_lossless() {
        return Ok((update, StateDict::new()));
    }
    let failed = |reason: String| ClientFailure::Failed { reason };
    let (global, seed) = (&task.global, task.seed.purpose(Purpose::Compression));
    let before: Option<ParamVector<B>> = match left_out.is_empty() {
        true => None,
        false => {
            let before = left_out.take_params(LEFT_OUT, global.schema(), &global.device());
            Some(before.map_err(|e| failed(e.to_string()))?)
        }
    };
    let sent = update.params.update_through(up, global, before.as_ref(), seed);
    let (params, now) = sent.map_err(|e| failed(format!("the update cannot be compressed: {e}")))?;
    update.params = params;
    if error_feedback {
        left_out.insert_params(LEFT_OUT, &now);
    }
    Ok((update, left_out))
}

fn message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "unknown cause".to_owned())
}

/// Names the state of compression, beside the client's own.
const COMPRESSION: &str = "compression";
/// What the updates so far have left out, `e_k`.
const LEFT_OUT: &str = "left_out";
