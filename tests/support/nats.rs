//! A private NATS server with JetStream.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use async_nats::jetstream::{self, Context};
use futures_util::StreamExt;
use serde_json::Value;

use super::eventually;

pub struct PrivateNats {
    child: Child,
    pub port: u16,
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
        let store = directory.join("nats");
        let program = ["/usr/sbin/nats-server", "/usr/bin/nats-server", "/usr/local/bin/nats-server"];
        let program =
            program.into_iter().find(|path| Path::new(path).exists()).expect("nats-server is missing");
        let child = Command::new(program)
            .args(["-a", "127.0.0.1", "-p", &port.to_string(), "-js", "-sd"])
            .arg(&store)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let server = Self { child, port };
        eventually(Duration::from_secs(20), "NATS", async || {
            server.context().await.map(|_| ()).map_err(|error| error.to_string())
        })
        .await;
        server
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
