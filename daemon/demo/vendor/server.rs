//! The HTTP side of a simulated vendor: limits, faults, journal.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming as Body};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use super::faults::{Fate, Faults};
use super::form::decode_component;
use super::journal::{Call, Journal};
use super::{Effect, Incoming, Reply, Vendor};

/// The vendor's own limit: so many requests in any window.
#[derive(Debug, Clone, Copy)]
pub struct Limit {
    /// Requests.
    pub requests: usize,
    /// Window in seconds.
    pub window_s: f64,
}

/// An answer as it goes over the wire.
#[derive(Debug, Clone)]
pub struct Raw {
    /// HTTP status.
    pub status: u16,
    /// Headers.
    pub headers: Vec<(String, String)>,
    /// Body.
    pub body: Vec<u8>,
}

/// Spoils answers after the request was carried out.
pub type Tamper = Arc<dyn Fn(&Incoming, &mut Raw) + Send + Sync>;

struct Inner<V> {
    tamper: Option<Tamper>,
    vendor: V,
    limit: Limit,
    recent: VecDeque<f64>,
    faults: Faults,
    journal: Journal,
    swallowed: usize,
    started: Instant,
}

/// A running simulated vendor.
pub struct VendorServer<V> {
    inner: Arc<Mutex<Inner<V>>>,
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl<V> Drop for VendorServer<V> {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl<V: Vendor> VendorServer<V> {
    /// Starts on a free loopback port.
    pub async fn start(vendor: V, limit: Limit) -> io::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = listener.local_addr()?;
        let inner = Inner {
            tamper: None,
            vendor,
            limit,
            recent: VecDeque::new(),
            faults: Faults::default(),
            journal: Journal::default(),
            swallowed: 0,
            started: Instant::now(),
        };
        let inner = Arc::new(Mutex::new(inner));
        let task = tokio::spawn(accept(listener, inner.clone()));
        Ok(Self { inner, address, task })
    }

    /// `http://127.0.0.1:port`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Changes what it allows from now on.
    pub fn set_limit(&self, limit: Limit) {
        lock(&self.inner).limit = limit;
    }

    /// Changes what goes wrong from now on.
    pub fn set_faults(&self, faults: Faults) {
        lock(&self.inner).faults = faults;
    }

    /// Spoils answers from now on, or lets them be.
    pub fn set_tamper(&self, tamper: Option<Tamper>) {
        lock(&self.inner).tamper = tamper;
    }

    /// The vendor's clock: seconds since it started, as in [`Call::at_s`].
    #[must_use]
    pub fn now_s(&self) -> f64 {
        lock(&self.inner).started.elapsed().as_secs_f64()
    }

    /// What it saw so far.
    #[must_use]
    pub fn journal(&self) -> Journal {
        lock(&self.inner).journal.clone()
    }

    /// Requests that were carried out and whose answer was swallowed.
    #[must_use]
    pub fn swallowed(&self) -> usize {
        lock(&self.inner).swallowed
    }

    /// Requests so far.
    #[must_use]
    pub fn calls(&self) -> usize {
        lock(&self.inner).journal.calls.len()
    }

    /// Requests so far that changed something.
    #[must_use]
    pub fn effects(&self) -> usize {
        lock(&self.inner).journal.effects()
    }

    /// Requests so far that were refused for coming too fast.
    #[must_use]
    pub fn refused(&self) -> usize {
        lock(&self.inner).journal.calls.iter().filter(|call| call.status == 429).count()
    }

    /// Looks into the vendor.
    pub fn with<T>(&self, look: impl FnOnce(&mut V) -> T) -> T {
        look(&mut lock(&self.inner).vendor)
    }
}

fn lock<V>(inner: &Mutex<Inner<V>>) -> MutexGuard<'_, Inner<V>> {
    inner.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Works on the vendor; where others may wait long for it, beside the runtime's own threads.
async fn locked<V: Vendor, T: Send + 'static>(
    inner: &Arc<Mutex<Inner<V>>>,
    work: impl FnOnce(&mut Inner<V>) -> T + Send + 'static,
) -> io::Result<T> {
    if !V::WAITS {
        return Ok(work(&mut lock(inner)));
    }
    let inner = inner.clone();
    tokio::task::spawn_blocking(move || work(&mut lock(&inner))).await.map_err(io::Error::other)
}

async fn accept<V: Vendor>(listener: TcpListener, inner: Arc<Mutex<Inner<V>>>) {
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        tokio::spawn(serve(stream, inner.clone()));
    }
}

/// Serves one connection. An error from the service closes it without an answer.
async fn serve<V: Vendor>(stream: TcpStream, inner: Arc<Mutex<Inner<V>>>) {
    // Latency matters to what is measured here.
    let _ = stream.set_nodelay(true);
    let service = service_fn(move |request| respond(request, inner.clone()));
    // A connection that ends in an error is what some of the faults are.
    let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

async fn respond<V: Vendor>(
    request: Request<Body>,
    inner: Arc<Mutex<Inner<V>>>,
) -> Result<Response<Full<Bytes>>, io::Error> {
    let request = read(request).await?;
    let latency = locked(&inner, |inner| inner.faults.latency).await?;
    if !latency.is_zero() {
        sleep(latency).await;
    }
    let reply = locked(&inner, move |inner| {
        let (reply, tamper) = (decide(&request, inner)?, inner.tamper.clone());
        let body = if reply.body.is_null() { Vec::new() } else { reply.body.to_string().into_bytes() };
        let mut headers = reply.headers;
        headers.push(("content-type".into(), "application/json".into()));
        let mut raw = Raw { status: reply.status, headers, body };
        if let Some(tamper) = tamper {
            tamper(&request, &mut raw);
        }
        Some(raw)
    });
    let Some(raw) = reply.await? else { return Err(io::Error::from(io::ErrorKind::ConnectionReset)) };
    let mut builder = Response::builder().status(raw.status);
    for (name, value) in &raw.headers {
        builder = builder.header(name, value);
    }
    builder.body(Full::new(Bytes::from(raw.body))).map_err(io::Error::other)
}

async fn read(request: Request<Body>) -> Result<Incoming, io::Error> {
    let method = request.method().to_string();
    let path = request.uri().path().to_owned();
    let query = request.uri().query().unwrap_or_default();
    let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    let query = pairs.map(|(name, value)| (decode_component(name), decode_component(value))).collect();
    let headers: BTreeMap<String, String> = request
        .headers()
        .iter()
        .filter_map(|(name, value)| Some((name.as_str().to_owned(), value.to_str().ok()?.to_owned())))
        .collect();
    let body = request.into_body().collect().await.map_err(io::Error::other)?.to_bytes().to_vec();
    Ok(Incoming { method, path, query, headers, body })
}

/// The answer, or none when the connection is to be closed.
fn decide<V: Vendor>(request: &Incoming, inner: &mut Inner<V>) -> Option<Reply> {
    let now_s = inner.started.elapsed().as_secs_f64();
    let fate = inner.faults.fate(rand::random());
    let reply = match fate {
        Fate::Reset => None,
        Fate::Error => Some(Reply::plain(500, serde_json::json!({"error": {"type": "api_error"}}))),
        Fate::Throttle => Some(throttled(&inner.vendor, 1.0)),
        Fate::Normal | Fate::Swallow => Some(answer(request, inner, now_s)),
    };
    record(request, reply.as_ref(), (now_s, fate == Fate::Swallow), &mut inner.journal);
    inner.swallowed += usize::from(fate == Fate::Swallow);
    reply.filter(|_| fate != Fate::Swallow)
}

fn answer<V: Vendor>(request: &Incoming, inner: &mut Inner<V>, now_s: f64) -> Reply {
    let Limit { requests, window_s } = inner.limit;
    while inner.recent.front().is_some_and(|at| now_s - at >= window_s) {
        inner.recent.pop_front();
    }
    if inner.recent.len() >= requests {
        let oldest = inner.recent.front().copied().unwrap_or(now_s);
        return throttled(&inner.vendor, (oldest + window_s - now_s).ceil().max(1.0));
    }
    inner.recent.push_back(now_s);
    let mut reply = match inner.vendor.refuse(request) {
        Some(reply) => reply,
        None => inner.vendor.handle(request, now_s),
    };
    let oldest = inner.recent.front().copied().unwrap_or(now_s);
    let left = requests - inner.recent.len();
    reply.headers.extend(inner.vendor.limit_headers(requests, left, oldest + window_s - now_s));
    reply
}

fn throttled<V: Vendor>(vendor: &V, wait_s: f64) -> Reply {
    Reply {
        headers: vec![("retry-after".into(), format!("{wait_s:.0}"))],
        ..Reply::plain(429, vendor.throttled())
    }
}

fn digest(request: &Incoming) -> String {
    let query: Vec<String> = request.query.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let line = format!("{} {}?{}\n", request.method, request.path, query.join("&"));
    crate::event::sha256_hex(&[line.as_bytes(), &request.body].concat())
}

fn record(request: &Incoming, reply: Option<&Reply>, (now_s, swallowed): (f64, bool), journal: &mut Journal) {
    let effect = reply.map_or(&Effect::None, |reply| &reply.effect);
    journal.calls.push(Call {
        at_s: now_s,
        line: format!("{} {}", request.method, request.path),
        status: reply.map_or(0, |reply| reply.status),
        key: request.headers.get("idempotency-key").cloned(),
        changed: if let Effect::Changed(id) = effect { Some(id.clone()) } else { None },
        nil: matches!(effect, Effect::Nil(_)),
        digest: digest(request),
        swallowed,
    });
}
