//! Proofs and checkpoints, against an implementation and formats that others wrote.

use ct_merkle::mem_backed_tree::MemoryBackedTree;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use sha2::Sha256;
use signed_note::{Note, StandardVerifier, VerifierList};
use tailwater::audit::checkpoint::{self, CheckpointKey, PublicKey, public_of, split};
use tailwater::audit::directory::{LogDirectory, PublishedLeaves};
use tailwater::demo::private::TemporaryDirectory;
use tailwater::ledger::hashes::{consistency, inclusion, root_at};
use tailwater::ledger::tree::Tree;
use tlog_tiles::Checkpoint;
use tlog_tiles::tlog::{Hash, record_hash};

use crate::support::entries::LedgerAlone;

/// 32 bytes for each hash, one behind the other.
fn bytes(hashes: &[Hash]) -> Vec<u8> {
    hashes.iter().flat_map(|hash| hash.0).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn proofs_of_a_ledger_are_those_of_another_implementation() {
    let long = std::env::var_os("TAILWATER_BENCH").is_some();
    let size: usize = if long { 100_000 } else { 2_100 };
    let alone = LedgerAlone::start().await;
    alone.fill(size).await;
    let client = alone.ledger.reader();
    let rows = client.query("select body from entry order by seq", &[]).await.unwrap();
    let bodies: Vec<Vec<u8>> = rows.iter().map(|row| row.get(0)).collect();
    assert_eq!(bodies.len(), size);
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let mut sizes: Vec<usize> = vec![1, 2, 3, 255, 256, 257, 511, 512, 513, size - 1, size];
    sizes.extend((0..20).map(|_| random.random_range(1..=size)));
    sizes.sort_unstable();
    let mut theirs = MemoryBackedTree::<Sha256, Vec<u8>>::new();
    let mut before = 0;
    for at in sizes {
        bodies[before..at].iter().for_each(|body| theirs.push(body.clone()));
        before = at;
        let head = root_at(client, at as u64).await.unwrap();
        assert_eq!(head.0.as_slice(), theirs.root().as_bytes().as_slice(), "head at {at}");
        for index in [0, at / 2, at - 1, random.random_range(0..at)] {
            let (leaf, ours) = inclusion(client, index as u64 + 1, at as u64).await.unwrap();
            assert_eq!(leaf, record_hash(&bodies[index]));
            assert_eq!(bytes(&ours), theirs.prove_inclusion(index).as_bytes(), "{index} in {at}");
        }
        let old = random.random_range(1..=at);
        if old < at {
            let ours = consistency(client, old as u64, at as u64).await.unwrap();
            assert_eq!(bytes(&ours), theirs.prove_consistency(at - old).as_bytes(), "{old} to {at}");
        }
    }
    assert!(inclusion(client, 0, 5).await.is_err() && inclusion(client, 6, 5).await.is_err());
    assert!(inclusion(client, size as u64 + 1, size as u64 + 1).await.is_err());
    assert!(consistency(client, 6, 5).await.is_err());
}

/// The tiles on disk are those of the tree whatever the steps in which they were written, a crash between tiles and checkpoint included.
#[test]
fn a_published_log_has_the_hashes_of_its_tree() {
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let directory = TemporaryDirectory::new("log").unwrap();
    let log = LogDirectory::new(directory.path());
    let leaves: Vec<Hash> = (0..200_000_u32).map(|n| record_hash(&n.to_be_bytes())).collect();
    let (mut tree, mut size) = (Tree::default(), 0);
    for step in [1, 1, 254, 1, 256, 65_000, 700, 66_000, 3] {
        let step: usize = step + random.random_range(0..3);
        let lost = step + random.random_range(0..600);
        log.extend(size as u64, &leaves[size..size + lost]).unwrap();
        let published = log.extend(size as u64, &leaves[size..size + step]).unwrap();
        leaves[size..size + step].iter().for_each(|leaf| tree.append(*leaf));
        size += step;
        assert_eq!((published.size(), published.root()), (size as u64, tree.root()));
    }
    let mut read = PublishedLeaves::new(log.clone(), size as u64);
    assert!((1..=size).all(|seq| read.leaf(seq as u64) == Some(leaves[seq - 1])));
    assert_eq!((read.leaf(0), read.leaf(size as u64 + 1)), (None, None));
    assert!(directory.path().join("tile/0/000").exists() && directory.path().join("tile/1/000").exists());
    assert_eq!(std::fs::read(directory.path().join("tile/0/000")).unwrap(), bytes(&leaves[..256]));
}

#[test]
fn checkpoints_are_signed_notes_that_others_can_read() {
    let (private, public) = checkpoint::generate("example.com/ledger").unwrap();
    let key = CheckpointKey::parse(&private).unwrap();
    assert_eq!(public_of(&private).unwrap().text(), public);
    let first = key.sign(7, record_hash(b"7")).unwrap();
    let second = key.sign(8, record_hash(b"8")).unwrap();
    let note = Note::from_bytes(first.note.as_bytes()).unwrap();
    let verifiers = VerifierList::new(vec![Box::new(StandardVerifier::new(&public).unwrap())]);
    assert_eq!(note.verify(&verifiers).unwrap().0.len(), 1);
    let head = Checkpoint::from_bytes(note.text()).unwrap();
    assert_eq!((head.origin(), head.size(), *head.hash()), ("example.com/ledger", 7, record_hash(b"7")));
    let both = format!("{}{}", first.note, second.note);
    assert_eq!(split(&both).collect::<Vec<_>>(), [&first.note, &second.note]);
    let ours = PublicKey::parse(&public).unwrap();
    assert_eq!(ours.verify(&second.note).unwrap(), second);
    let forged = second.note.replace("\n8\n", "\n9\n");
    assert!(ours.verify(&forged).unwrap_err().to_string().contains("not signed"));
    let (_, another) = checkpoint::generate("example.com/ledger").unwrap();
    assert!(PublicKey::parse(&another).unwrap().verify(&second.note).is_err());
    let (_, other_name) = checkpoint::generate("example.com/other").unwrap();
    assert!(
        PublicKey::parse(&other_name)
            .unwrap()
            .verify(&second.note)
            .unwrap_err()
            .to_string()
            .contains("is of the log")
    );
    for name in ["", "two words", "a+b", "a\nb"] {
        assert!(checkpoint::generate(name).is_err(), "{name:?}");
    }
    for cut in 0..first.note.len() {
        let Some(part) = first.note.get(..cut) else { continue };
        assert!(ours.verify(part).is_err(), "{part:?}");
    }
}
