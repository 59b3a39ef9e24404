//! The thread on which an endpoint lives.

use std::num::NonZeroUsize;
use std::thread::JoinHandle;

use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::oneshot;

use super::QuicError;

/// A thread of its own with an event loop; what takes time to compute goes to other threads.
pub(crate) struct EndpointThread {
    handle: Handle,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl EndpointThread {
    pub(crate) fn start(name: &str) -> Result<Self, QuicError> {
        let cores = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        let runtime = Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(cores.saturating_sub(1).max(1) + BLOCKING_FILES)
            .thread_name(format!("{name}-work"))
            .build();
        let runtime: Runtime = runtime.map_err(|source| QuicError::Thread { source })?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel::<()>();
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            // An error means that the sender is gone: that is the end too.
            let _ = runtime.block_on(stopped);
            runtime.shutdown_background();
        });
        let thread = thread.map_err(|source| QuicError::Thread { source })?;
        Ok(Self { handle, stop: Some(stop), thread: Some(thread) })
    }

    /// Runs futures on the caller's thread; their timers and sockets are the endpoint's.
    pub(crate) fn handle(&self) -> &Handle {
        &self.handle
    }
}

impl Drop for EndpointThread {
    fn drop(&mut self) {
        self.end();
    }
}

impl EndpointThread {
    /// Ends whatever lives on the thread, where it is.
    pub(crate) fn end(&mut self) {
        if let Some(stop) = self.stop.take() {
            // The thread has ended already where nobody listens.
            let _ = stop.send(());
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Threads for what waits for a disk or a name server rather than computing.
const BLOCKING_FILES: usize = 1;
