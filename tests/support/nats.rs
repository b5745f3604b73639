//! A private NATS server with JetStream.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use async_nats::jetstream::{self, Context};
use futures_util::StreamExt;
use serde_json::Value;

use super::eventually;

pub struct PrivateNats {
    child: Child,
    pub port: u16,
    directory: PathBuf,
}

impl Drop for PrivateNats {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl PrivateNats {
    /// Starts on a free loopback port; `make test` installs the program.
    pub async fn start(directory: &Path) -> Self {
        let port = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port();
        let server = Self { child: spawn(directory, port), port, directory: directory.to_owned() };
        server.answers().await;
        server
    }

    /// Stops it, as a crash would.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Starts it again with what it has stored, and takes no messages of more than `max_payload` bytes.
    pub async fn restart(&mut self, max_payload: usize) {
        let settings = format!("max_payload: {max_payload}\n");
        std::fs::write(self.directory.join("nats.conf"), settings).unwrap();
        self.child = spawn(&self.directory, self.port);
        self.answers().await;
    }

    async fn answers(&self) {
        eventually(Duration::from_secs(20), "NATS", async || {
            self.context().await.map(|_| ()).map_err(|error| error.to_string())
        })
        .await;
    }

    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    pub async fn context(&self) -> Result<Context, async_nats::ConnectError> {
        Ok(jetstream::new(async_nats::connect(self.url()).await?))
    }

    /// Makes a stream that takes `tailwater.>`.
    pub async fn make_stream(&self) {
        let config = jetstream::stream::Config {
            name: "TAILWATER".into(),
            subjects: vec!["tailwater.>".into()],
            ..Default::default()
        };
        self.context().await.unwrap().create_stream(config).await.unwrap();
    }

    /// All messages: subject and body.
    pub async fn messages(&self) -> Vec<(String, Value)> {
        let stream = self.context().await.unwrap().get_stream("TAILWATER").await.unwrap();
        let count = stream.get_info().await.unwrap().state.messages;
        let config = jetstream::consumer::pull::OrderedConfig::default();
        let consumer = stream.create_consumer(config).await.unwrap();
        let mut messages = consumer.messages().await.unwrap();
        let mut found = Vec::new();
        for _ in 0..count {
            let message = messages.next().await.unwrap().unwrap();
            found.push((message.subject.to_string(), serde_json::from_slice(&message.payload).unwrap()));
        }
        found
    }
}

fn spawn(directory: &Path, port: u16) -> Child {
    let program = ["/usr/sbin/nats-server", "/usr/bin/nats-server", "/usr/local/bin/nats-server"];
    let program = program.into_iter().find(|path| Path::new(path).exists()).expect("nats-server is missing");
    let mut command = Command::new(program);
    command.args(["-a", "127.0.0.1", "-p", &port.to_string(), "-js", "-sd"]).arg(directory.join("nats"));
    let settings = directory.join("nats.conf");
    if settings.exists() {
        command.arg("-c").arg(settings);
    }
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}
