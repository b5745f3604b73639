//! A TCP proxy that can cut connections, or swallow everything without a word, as a firewall does.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

#[derive(Clone, Default)]
struct State {
    black_hole: Arc<AtomicBool>,
    cut: Arc<Notify>,
}

pub struct Proxy {
    pub port: u16,
    state: State,
}

impl Proxy {
    pub async fn start(target_port: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = State::default();
        let shared = state.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(carry(client, target_port, shared.clone()));
            }
        });
        Self { port, state }
    }

    /// Ends every connection that stands.
    pub fn cut(&self) {
        self.state.cut.notify_waiters();
    }

    /// From now on nothing comes through, and nobody is told.
    pub fn black_hole(&self, yes: bool) {
        self.state.black_hole.store(yes, Ordering::SeqCst);
    }
}

async fn carry(client: TcpStream, target_port: u16, state: State) {
    let Ok(server) = TcpStream::connect(("127.0.0.1", target_port)).await else { return };
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    tokio::select! {
        () = pump(from_client, to_server, &state) => {}
        () = pump(from_server, to_client, &state) => {}
        () = state.cut.notified() => {}
    }
}

async fn pump(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    state: &State,
) {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let Ok(count @ 1..) = from.read(&mut buffer).await else { return };
        if state.black_hole.load(Ordering::SeqCst) {
            // Swallowed: the connection stands, and its other end never hears of it.
            std::future::pending::<()>().await;
        }
        if to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
}
