//! The thread of a replication connection.
//!
//! A reader that is behind should let the socket fill before it reads again: both sides then wake up once for many
//! messages instead of once for each. On a shared runtime the kernel would go on waking it for every one of them, so the
//! connection has a thread and an I/O driver of its own, which can simply sleep.

use std::io;
use std::time::Duration;

use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;

/// A runtime on one thread; it ends when this is dropped, and with it every task on it.
#[derive(Debug)]
pub struct ReaderThread {
    handle: Handle,
    /// Dropping it ends the thread.
    _running: oneshot::Sender<()>,
}

impl ReaderThread {
    /// Starts it.
    pub fn start() -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (running, ended) = oneshot::channel::<()>();
        let run = move || {
            // An error means that the other end was dropped, which is what is waited for.
            let _ = runtime.block_on(ended);
        };
        std::thread::Builder::new().name("replication".into()).spawn(run)?;
        Ok(Self { handle, _running: running })
    }

    /// Where to spawn what reads and writes the connection.
    #[must_use]
    pub fn handle(&self) -> &Handle {
        &self.handle
    }
}

/// Lets the socket fill. To be called on a [`ReaderThread`] only: nothing else runs there meanwhile.
pub fn let_the_socket_fill(pause: Duration) {
    std::thread::sleep(pause);
}
