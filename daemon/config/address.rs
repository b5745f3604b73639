//! Addresses of systems, parsed once and by the library that sends: what it would connect to is what is looked at.

use reqwest::Url;

use crate::pg::is_local;

/// Why an address is refused: what is wrong, without the address where it may hold a secret.
pub type Refused = String;

/// An address of an HTTP system: encrypted, unless it is on this machine; without user, query and fragment, in which keys might stand.
/// Without the slash at its end.
pub fn http(text: &str) -> Result<String, Refused> {
    let url = parsed(text, ("http", "https"))?;
    if url.query().is_some() || url.fragment().is_some() {
        return Err(
            "an address has no `?` and no `#`; a key belongs into a file: api_key = { file = \"…\" }".into(),
        );
    }
    Ok(url.as_str().trim_end_matches('/').to_owned())
}

/// An address of a bus, with the plain and the encrypted scheme; as it was written.
pub fn bus(text: &str, schemes: (&str, &str)) -> Result<String, Refused> {
    parsed(text, schemes)?;
    Ok(text.to_owned())
}

fn parsed(text: &str, (plain, encrypted): (&str, &str)) -> Result<Url, Refused> {
    if text.contains(|c: char| c == '\\' || c.is_whitespace() || c.is_control()) {
        return Err("an address has no backslash, no blank and no control character".into());
    }
    // What such an address means is told in two ways.
    if text.split_once("://").is_some_and(|(_, rest)| rest.starts_with('/')) {
        return Err("the address names no host".into());
    }
    let url = Url::parse(text).map_err(|error| format!("this is not an address: {error}"))?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err(
            "neither user nor password belong into an address: user = \"…\", api_key = { file = \"…\" }"
                .into(),
        );
    }
    let host = url.host_str().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
    if host.is_empty() {
        return Err("the address names no host".into());
    }
    match url.scheme() {
        scheme if scheme == encrypted => Ok(url),
        scheme if scheme == plain && is_local(host) => Ok(url),
        scheme if scheme == plain => Err(format!("`{plain}://{host}` is not an {encrypted} address")),
        scheme => Err(format!("`{scheme}` is neither {plain} nor {encrypted}")),
    }
}
