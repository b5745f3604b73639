//! `application/x-www-form-urlencoded` with brackets, as Stripe reads it: `metadata[a]=1&address[city]=X`.

use serde_json::{Map, Value};

/// Decodes `%XX` and `+`.
#[must_use]
pub fn decode_component(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'+' => out.push(b' '),
            b'%' => {
                let pair: Vec<u8> = bytes.by_ref().take(2).collect();
                let digits = String::from_utf8_lossy(&pair).into_owned();
                match u8::from_str_radix(&digits, 16) {
                    Ok(decoded) => out.push(decoded),
                    Err(_) => out.extend([b'%'].into_iter().chain(pair)),
                }
            }
            other => out.push(other),
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// Decodes a body into nested objects of texts.
#[must_use]
pub fn decode(body: &str) -> Map<String, Value> {
    let mut root = Map::new();
    for pair in body.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let name = decode_component(name);
        let path: Vec<String> = name.split('[').map(|part| part.trim_end_matches(']').to_owned()).collect();
        insert(&mut root, &path, decode_component(value));
    }
    root
}

fn insert(map: &mut Map<String, Value>, path: &[String], value: String) {
    match path {
        [] => {}
        [last] => {
            map.insert(last.clone(), Value::String(value));
        }
        [first, rest @ ..] => {
            let child = map.entry(first.clone()).or_insert_with(|| Value::Object(Map::new()));
            if let Value::Object(child) = child {
                insert(child, rest, value);
            }
        }
    }
}
