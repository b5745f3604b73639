//! `[ledger.checkpoints]`: when and where the ledger's tree head is signed and kept outside the database.

use std::path::Path;
use std::time::Duration;

use super::address;
use super::node::{Fields, Node, Problems};
use super::settings::read_secret;
use super::source::read_time;
use super::target::refused_at;
use crate::audit::checkpoint::PublicKey;
use crate::audit::directory::LogDirectory;
use crate::audit::publish::CheckpointSettings;
use crate::audit::witness::{Manner, Place};

/// See the module's text.
pub(super) fn read_checkpoints(fields: &mut Fields, problems: &mut Problems) -> Option<CheckpointSettings> {
    let node = fields.optional("checkpoints")?;
    let mut inner = node.fields(problems);
    let key = inner.required("key", "{ credential = \"ledger\" }, of `tailwater ledger key`", problems);
    let key = key.and_then(|node| read_secret(&node, problems));
    let directory = inner.string("directory", "\"/var/lib/tailwater/log\"", problems);
    let every = read_time(&mut inner, "every", problems).unwrap_or(Duration::from_secs(60));
    let entries = inner.optional("entries").and_then(|node| node.whole(1, problems)).unwrap_or(10_000);
    let mut places = Vec::new();
    for node in list(&mut inner, "witnesses", problems) {
        places.extend(read_place(&node, true, problems));
    }
    for node in list(&mut inner, "stores", problems) {
        places.extend(read_place(&node, false, problems));
    }
    inner.finish(problems);
    let directory = LogDirectory::new(Path::new(&directory?));
    Some(CheckpointSettings { key: key?, directory, every, entries, places })
}

fn list(fields: &mut Fields, key: &'static str, problems: &mut Problems) -> Vec<Node> {
    fields.optional(key).map(|node| node.list(problems)).unwrap_or_default()
}

fn read_place(node: &Node, is_witness: bool, problems: &mut Problems) -> Option<Place> {
    let mut fields = node.fields(problems);
    let url = fields.required("url", "\"https://witness.example.com\"", problems);
    let token = fields.optional("token").and_then(|node| read_secret(&node, problems));
    let key = if is_witness {
        fields.required("key", "\"witness.example.com+1a2b3c4d+…\", as the witness publishes it", problems)
    } else {
        None
    };
    fields.finish(problems);
    let manner = match key {
        Some(node) => {
            let key = node.string(problems)?;
            if let Err(error) = PublicKey::parse(&key) {
                problems.add(&node.at, error.to_string(), "NAME+ID+KEY, as the witness publishes it");
                return None;
            }
            Manner::Witness { key }
        }
        None if is_witness => return None,
        None => Manner::Store,
    };
    let at = url?;
    let url = address::http(&at.string(problems)?);
    let url = refused_at(&at.at, url, "https://…  (http only for this machine)", problems)?;
    Some(Place { url, manner, token })
}
