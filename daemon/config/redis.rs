//! Where Redis is.

use std::path::PathBuf;

use super::node::{Fields, Node, Problems};
use super::settings::read_secret;
use crate::cache::{CacheSettings, Shape};
use crate::pg::is_local;

const EXAMPLE: &str = "\"redis://127.0.0.1:6379/0\"";

/// Reads `[redis]`: `url`, or `sentinels` with `master`, or `cluster`.
pub(super) fn read_redis(fields: &mut Fields, problems: &mut Problems) -> Option<CacheSettings> {
    let node = fields.required("redis", "[redis]", problems)?;
    let mut inner = node.fields(problems);
    let url = inner.optional("url");
    let sentinels = inner.optional("sentinels");
    let master = inner.optional("master").and_then(|node| node.string(problems));
    let cluster = inner.optional("cluster");
    let user = inner.optional("user").and_then(|node| node.string(problems));
    let password = inner.optional("password").and_then(|node| read_secret(&node, problems));
    let root_certificates = inner.optional("root_certificates").and_then(|node| node.string(problems));
    if url.is_none() && sentinels.is_none() && cluster.is_none() {
        inner.required("url", EXAMPLE, problems);
    }
    inner.finish(problems);
    let (urls, shape) = match (url, sentinels, cluster) {
        (Some(url), None, None) => (vec![url], Shape::Single),
        (None, Some(sentinels), None) => match master {
            Some(master) => (sentinels.list(problems), Shape::Sentinel(master)),
            None => {
                let what = "Sentinels are asked for a master by its name";
                problems.add(&sentinels.at, what, "master = \"mymaster\"");
                return None;
            }
        },
        (None, None, Some(cluster)) => (cluster.list(problems), Shape::Cluster),
        (None, None, None) => return None,
        _ => {
            let what = "Redis is one of `url`, `sentinels` and `cluster`";
            problems.add(&node.at, what, "leave out what it is not");
            return None;
        }
    };
    let urls = urls.iter().map(|node| read_url(node, problems)).collect::<Option<Vec<String>>>()?;
    let root_certificates = root_certificates.map(PathBuf::from);
    Some(CacheSettings { urls, shape, user, password, root_certificates })
}

fn read_url(node: &Node, problems: &mut Problems) -> Option<String> {
    let text = node.string(problems)?;
    let client = match redis::Client::open(text.as_str()) {
        Ok(client) => client,
        Err(error) => {
            problems.add(&node.at, format!("not a Redis URL: {error}"), EXAMPLE);
            return None;
        }
    };
    if client.get_connection_info().redis_settings().password().is_some() {
        let instead = "password = { file = \"/etc/tailwater/secrets/redis\" }";
        problems.add(&node.at, "a password does not belong into the settings", instead);
        return None;
    }
    if let redis::ConnectionAddr::Tcp(host, _) = client.get_connection_info().addr()
        && !is_local(host)
    {
        problems.add(&node.at, "Redis on another machine is spoken to over TLS", "\"rediss://…\"");
        return None;
    }
    Some(text)
}
