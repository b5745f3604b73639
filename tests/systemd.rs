//! What systemd is told, and when.

use std::os::unix::net::UnixDatagram;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::support::world::Daemon;
use crate::support::{World, WorldOptions, eventually};

#[tokio::test(flavor = "multi_thread")]
async fn ready_comes_only_once_ledger_slot_and_mapping_are_proven_and_the_watchdog_is_fed() {
    let mut world = World::start(WorldOptions::default()).await;
    let path = world.directory.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_nonblocking(true).unwrap();
    world.erp.stop("fast").unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_tailwater"));
    command.arg("run").arg("--config").arg(&world.config).stdout(Stdio::null()).stderr(Stdio::null());
    let mut daemon = Daemon {
        child: command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "15000000").spawn().unwrap(),
    };
    let mut heard = String::new();
    let mut listen = || {
        let mut buffer = [0; 4096];
        while let Ok(count) = socket.recv(&mut buffer) {
            heard.push_str(&String::from_utf8_lossy(&buffer[..count]));
        }
        heard.clone()
    };
    // With the ERP down there is no slot: not ready, but alive.
    eventually(Duration::from_secs(30), "the watchdog", async || {
        let heard = listen();
        if heard.contains("WATCHDOG=1") { Ok(()) } else { Err(heard) }
    })
    .await;
    assert!(!listen().contains("READY=1"));
    world.erp.resume().await.unwrap();
    eventually(Duration::from_secs(60), "readiness", async || {
        let heard = listen();
        if heard.contains("READY=1") { Ok(()) } else { Err(heard) }
    })
    .await;
    let erp = world.erp.client("erp").await.unwrap();
    let sql = "select active from pg_replication_slots where slot_name = 'tailwater'";
    assert!(
        erp.query_one(sql, &[]).await.unwrap().get::<_, bool>(0),
        "ready means that the slot is being read"
    );
    assert!(daemon.terminate().success());
    assert!(listen().contains("STOPPING=1"));
}
