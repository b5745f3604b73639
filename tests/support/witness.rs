//! A witness as <https://c2sp.org/tlog-witness> has it, and a store of objects: both keep what they were told.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use ring::signature::{Ed25519KeyPair, KeyPair};
use signed_note::{Note, Signature, key_id};
use tailwater::audit::checkpoint::PublicKey;
use tailwater::audit::cosignature::{COSIGNATURE, message};
use tlog_tiles::Checkpoint;
use tlog_tiles::tlog::{Hash, check_tree};
use tokio::net::TcpListener;

/// Its name.
const NAME: &str = "witness.example";

/// What it knows.
#[derive(Default)]
pub struct Known {
    /// Size and root of the newest tree.
    pub head: (u64, Option<Hash>),
    /// Requests by their status.
    pub answers: BTreeMap<u16, usize>,
    /// Objects that were put.
    pub objects: BTreeMap<String, String>,
    /// It answers nothing but this.
    pub broken: Option<u16>,
}

pub struct Witness {
    pub address: SocketAddr,
    pub key: String,
    pub known: Arc<Mutex<Known>>,
}

impl Witness {
    /// `log`: the public key whose checkpoints it signs.
    pub async fn start(log: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut seed = [0; 32];
        rand::fill(&mut seed);
        let private = Arc::new(Ed25519KeyPair::from_seed_unchecked(&seed).unwrap());
        let public = typed(&private);
        let key = format!("{NAME}+{:08x}+{}", key_id(NAME, &public), BASE64_STANDARD.encode(public));
        let (known, log) = (Arc::new(Mutex::new(Known::default())), PublicKey::parse(log).unwrap());
        let shared = known.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (known, log, private) = (shared.clone(), log.clone(), private.clone());
                let service = service_fn(move |request: Request<Incoming>| {
                    let (known, log, private) = (known.clone(), log.clone(), private.clone());
                    async move {
                        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
                        let body = request.into_body().collect().await.unwrap().to_bytes();
                        let body = String::from_utf8(body.to_vec()).unwrap();
                        let mut known = known.lock().unwrap();
                        let (status, answer) = match known.broken {
                            Some(status) => (status, String::new()),
                            None if method == Method::PUT => put(&mut known, path, body),
                            None => add_checkpoint(&mut known, &body, &log, &private),
                        };
                        *known.answers.entry(status).or_default() += 1;
                        let response =
                            Response::builder().status(status).body(Full::new(Bytes::from(answer)));
                        Ok::<_, hyper::Error>(response.unwrap())
                    }
                });
                tokio::spawn(
                    hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service),
                );
            }
        });
        Self { address, key, known }
    }
}

fn put(known: &mut Known, path: String, body: String) -> (u16, String) {
    if known.objects.contains_key(&path) {
        return (412, String::new());
    }
    known.objects.insert(path, body);
    (201, String::new())
}

fn add_checkpoint(known: &mut Known, body: &str, log: &PublicKey, private: &Ed25519KeyPair) -> (u16, String) {
    let (head, note) = body.split_once("\n\n").unwrap();
    let mut lines = head.lines();
    let old: u64 = lines.next().unwrap().strip_prefix("old ").unwrap().parse().unwrap();
    let proof: Vec<Hash> =
        lines.map(|line| Hash(BASE64_STANDARD.decode(line).unwrap().try_into().unwrap())).collect();
    let Ok(signed) = log.verify(note) else { return (403, String::new()) };
    if old > signed.size {
        return (400, String::new());
    }
    let (size, root) = known.head;
    if old != size {
        return (409, format!("{size}\n"));
    }
    let follows = match root {
        None => proof.is_empty(),
        Some(root) => check_tree(&proof, signed.size, signed.root, size, root).is_ok(),
    };
    if !follows {
        return (422, String::new());
    }
    known.head = (signed.size, Some(signed.root));
    let parsed = Note::from_bytes(note.as_bytes()).unwrap();
    assert!(Checkpoint::from_bytes(parsed.text()).is_ok());
    let time: u64 = 1_764_400_000;
    let signature = private.sign(&message(time, parsed.text()));
    let timed = [time.to_be_bytes().as_slice(), signature.as_ref()].concat();
    let id = key_id(NAME, &typed(private));
    let line = Signature::new(NAME.into(), id, timed).unwrap().to_bytes();
    (200, String::from_utf8(line).unwrap())
}

/// Public key with the type of one that signs with a time.
fn typed(pair: &Ed25519KeyPair) -> Vec<u8> {
    [&[COSIGNATURE], pair.public_key().as_ref()].concat()
}
