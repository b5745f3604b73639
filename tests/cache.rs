//! Redis in every shape, and in every trouble: an answer, or none, and never a long wait.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use tailwater::cache::{Cache, CacheSettings, Shape};
use tailwater::config::secret::Secret;
use tailwater::connector::limit::Rate;
use tailwater::demo::private::write_secret;
use tailwater::demo::private::{PrivateRedis, TemporaryDirectory, free_port};
use tailwater::dispatch::quota::shared::{Draw, SharedBuckets};
use tokio::time::Instant;

use crate::support::eventually;
use crate::tls::{authority, certificate};

const PATIENCE: Duration = Duration::from_secs(30);

/// A Redis with settings of its own.
struct Server(Child, u16);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn server(directory: &Path, port: u16, arguments: &[&str]) -> Server {
    let mut command = Command::new("redis-server");
    command
        .args(arguments)
        .args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir"])
        .arg(directory);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    Server(command.spawn().unwrap(), port)
}

async fn works(settings: CacheSettings) {
    let cache = Cache::new(settings);
    eventually(PATIENCE, "Redis", async || {
        let mut set = redis::cmd("SET");
        set.arg("tailwater:test").arg("there").arg("EX").arg(60);
        let mut get = redis::cmd("GET");
        get.arg("tailwater:test");
        let script = redis::Script::new("return redis.call('GET', KEYS[1])");
        cache.query::<redis::Value>(&set).await.ok_or("SET")?;
        let got: Option<String> = cache.query(&get).await.ok_or("GET")?;
        let scripted: Option<String> =
            cache.script(script.prepare_invoke().key("tailwater:test")).await.ok_or("script")?;
        match (got.as_deref(), scripted.as_deref()) {
            (Some("there"), Some("there")) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
}

fn port() -> u16 {
    free_port().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn over_verified_tls_as_an_acl_user() {
    let directory = TemporaryDirectory::new("redis-tls").unwrap();
    let path = directory.path();
    authority(path, "ca");
    certificate(path, "redis", "localhost");
    let file = |name: &str| path.join(name).display().to_string();
    let port = port();
    let _server = server(
        path,
        port,
        &[
            "--port",
            "0",
            "--tls-port",
            &port.to_string(),
            "--tls-cert-file",
            &file("redis.crt"),
            "--tls-key-file",
            &file("redis.key"),
            "--tls-ca-cert-file",
            &file("ca.crt"),
            "--tls-auth-clients",
            "no",
            "--user",
            "tailwater",
            "on",
            ">secret",
            "~tailwater:*",
            "+get",
            "+set",
            "+exists",
            "+eval",
            "+evalsha",
            "+script|load",
            "+time",
            "+info",
            "--user",
            "default",
            "off",
        ],
    );
    write_secret(path.join("password"), "secret").unwrap();
    let settings = CacheSettings {
        user: Some("tailwater".into()),
        password: Some(Secret::File(path.join("password"))),
        root_certificates: Some(path.join("ca.crt")),
        ..CacheSettings::single(&format!("rediss://localhost:{port}/0"))
    };
    works(settings.clone()).await;
    // Nobody else's certificate, and nobody else's password.
    authority(path, "other");
    let other = CacheSettings { root_certificates: Some(path.join("other.crt")), ..settings.clone() };
    assert!(!Cache::new(other).is_up().await);
    write_secret(path.join("password"), "guessed").unwrap();
    assert!(!Cache::new(settings).is_up().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_master_that_sentinels_name_also_after_a_failover() {
    let directory = TemporaryDirectory::new("redis-sentinel").unwrap();
    let (first, second, sentinel) = (port(), port(), port());
    let _first = server(directory.path(), first, &["--port", &first.to_string()]);
    let replica =
        ["--port", &second.to_string(), "--replicaof", "127.0.0.1", &first.to_string()].map(str::to_owned);
    let _second = server(directory.path(), second, &replica.each_ref().map(String::as_str));
    let conf = directory.path().join("sentinel.conf");
    let text = format!(
        "port {sentinel}\nbind 127.0.0.1\ndir {}\nsentinel monitor mymaster 127.0.0.1 {first} 1\nsentinel down-after-milliseconds mymaster 500\nsentinel failover-timeout mymaster 2000\n",
        directory.path().display()
    );
    std::fs::write(&conf, text).unwrap();
    let mut command = Command::new("redis-server");
    command.arg(&conf).arg("--sentinel").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let _sentinel = Server(command.spawn().unwrap(), sentinel);
    let settings = CacheSettings {
        shape: Shape::Sentinel("mymaster".into()),
        ..CacheSettings::single(&format!("redis://127.0.0.1:{sentinel}"))
    };
    works(settings.clone()).await;
    // The replica has to be known before the master goes.
    let client = redis::Client::open(format!("redis://127.0.0.1:{sentinel}")).unwrap();
    eventually(PATIENCE, "the replica to be known", async || {
        let mut connection = client.get_multiplexed_async_connection().await.map_err(|e| e.to_string())?;
        let mut ask = redis::cmd("SENTINEL");
        ask.arg("REPLICAS").arg("mymaster");
        let known: Vec<redis::Value> = ask.query_async(&mut connection).await.map_err(|e| e.to_string())?;
        if known.is_empty() { Err("none".into()) } else { Ok(()) }
    })
    .await;
    drop(_first);
    works(settings).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_of_three() {
    let directory = TemporaryDirectory::new("redis-cluster").unwrap();
    let mut nodes = Vec::new();
    for _ in 0..3 {
        let port = port();
        let own = directory.path().join(port.to_string());
        std::fs::create_dir(&own).unwrap();
        nodes.push(server(&own, port, &["--port", &port.to_string(), "--cluster-enabled", "yes"]));
    }
    for (n, node) in nodes.iter().enumerate() {
        let client = redis::Client::open(format!("redis://127.0.0.1:{}", node.1)).unwrap();
        eventually(PATIENCE, "a node", async || {
            let mut connection =
                client.get_multiplexed_async_connection().await.map_err(|e| e.to_string())?;
            let (from, to) = (n * 5462, if n == 2 { 16_383 } else { n * 5462 + 5461 });
            let mut slots = redis::cmd("CLUSTER");
            slots.arg("ADDSLOTSRANGE").arg(from).arg(to);
            slots.query_async::<redis::Value>(&mut connection).await.map_err(|e| e.to_string())?;
            let mut meet = redis::cmd("CLUSTER");
            meet.arg("MEET").arg("127.0.0.1").arg(nodes[0].1);
            meet.query_async::<redis::Value>(&mut connection).await.map_err(|e| e.to_string()).map(|_| ())
        })
        .await;
    }
    let urls = nodes.iter().map(|node| format!("redis://127.0.0.1:{}", node.1)).collect();
    works(CacheSettings { urls, shape: Shape::Cluster, ..CacheSettings::single("") }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_full_or_gone_it_never_keeps_anybody_waiting() {
    let directory = TemporaryDirectory::new("redis-trouble").unwrap();
    let mut redis = PrivateRedis::start(directory.path()).await.unwrap();
    let admin = redis::Client::open(redis.url()).unwrap();
    let mut admin = admin.get_multiplexed_async_connection().await.unwrap();
    let mut config = async |name: &str, value: &str| {
        let mut set = redis::cmd("CONFIG");
        set.arg("SET").arg(name).arg(value);
        set.query_async::<redis::Value>(&mut admin).await.unwrap();
    };
    config("maxmemory-policy", "allkeys-lru").await;
    let cache = Cache::new(CacheSettings::single(&redis.url()));
    assert_eq!(cache.eviction_policy().await.as_deref(), Some("allkeys-lru"));
    config("maxmemory-policy", "noeviction").await;
    config("maxmemory", "1").await;
    let mut set = redis::cmd("SET");
    set.arg("tailwater:test").arg("x");
    assert!(cache.query::<redis::Value>(&set).await.is_none(), "full: no answer, and no error");
    config("maxmemory", "0").await;
    let mut pause = redis::cmd("CLIENT");
    pause.arg("PAUSE").arg(3_000);
    pause.query_async::<redis::Value>(&mut admin).await.unwrap();
    let cache = Cache::new(CacheSettings::single(&redis.url()));
    let started = Instant::now();
    assert!(cache.query::<redis::Value>(&set).await.is_none());
    assert!(cache.query::<redis::Value>(&set).await.is_none(), "left alone for a while");
    assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
    redis.stop();
    let cache = Cache::new(CacheSettings::single(&redis.url()));
    let started = Instant::now();
    assert!(!cache.is_up().await);
    assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
}

/// Draws for two seconds as two processes would, each several at a time; gives how often, and for how long.
async fn drawn(redis: &PrivateRedis, weight: u32) -> (u32, f64) {
    let rate = Rate::parse("100/s").unwrap();
    let (burst, interval) = rate.bucket();
    let began = Instant::now();
    let mut workers = tokio::task::JoinSet::new();
    for _ in 0..8 {
        // Four of each of two processes.
        let cache = Arc::new(Cache::new(CacheSettings::single(&redis.url())));
        let buckets = SharedBuckets::new(cache, "stripe");
        buckets.belong_to(&format!("of weight {weight}"));
        let draw = Draw { key: "account".into(), burst: burst.get(), interval, weight };
        workers.spawn(async move {
            let mut count = 0_u32;
            while began.elapsed() < Duration::from_secs(2) {
                // Without an answer a process draws from its own buckets.
                count += u32::from(buckets.take(std::slice::from_ref(&draw)).await);
            }
            count
        });
    }
    let counts = workers.join_all().await;
    (counts.iter().sum(), began.elapsed().as_secs_f64())
}

#[tokio::test(flavor = "multi_thread")]
async fn processes_draw_from_one_budget_and_heavy_requests_take_what_they_weigh() {
    let directory = TemporaryDirectory::new("redis-budget").unwrap();
    let redis = PrivateRedis::start(directory.path()).await.unwrap();
    works(CacheSettings::single(&redis.url())).await;
    for weight in [1, 7] {
        let (count, seconds) = drawn(&redis, weight).await;
        let (drawn, allowed) = (f64::from(count * weight), 100.0 * seconds);
        println!("# {count} requests of weight {weight} in {seconds:.2} s, {allowed:.0} allowed");
        assert!(drawn <= allowed + 1.0, "{drawn} of {allowed}");
        assert!(drawn > 0.3 * allowed, "{drawn} of {allowed}");
    }
}
