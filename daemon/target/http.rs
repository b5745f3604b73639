//! HTTP targets: sends a request byte for byte as the ledger has it.

use std::collections::BTreeMap;

use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use serde_json::Value;

use crate::bounds::{ANSWER_BYTES, PAGE_BYTES};
use crate::config::secret::{Secret, SecretError};
use crate::connector::classify::{Answer, Flaw};
use crate::connector::lenient;
use crate::connector::request::{Request, climbs};
use crate::connector::{Auth, Connector, KEY_IN_BODY};

/// What is known when no answer came.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// The request did not leave: safe to repeat.
    #[error("not sent: {0}")]
    NotSent(String),
    /// It may have arrived (INV-3).
    #[error("no answer: {0}")]
    NoAnswer(String),
}

/// Where and as whom requests go.
#[derive(Debug)]
pub struct HttpTarget {
    client: reqwest::Client,
    base_url: String,
    auth: Option<Auth>,
    user: Option<String>,
    /// Where the key is the user.
    password: String,
    api_key: Option<Secret>,
    /// Where in a body the key stands.
    key_at: Option<String>,
    key_header: Option<HeaderName>,
}

impl HttpTarget {
    /// Builds the client. Redirects are not followed: a vendor's API does not redirect, an attacker's would. No proxy of the environment
    /// is used: nobody has said that it may see the key.
    pub fn new(
        connector: &Connector,
        base_url: &str,
        user: Option<&str>,
        api_key: Option<Secret>,
    ) -> Result<Self, reqwest::Error> {
        let mut headers = HeaderMap::new();
        for (name, value) in &connector.headers {
            let value = filled(value, &connector.set);
            if let (Ok(name), Ok(value)) =
                (HeaderName::try_from(name.as_str()), HeaderValue::from_str(&value))
            {
                headers.insert(name, value);
            }
        }
        let client = reqwest::Client::builder()
            .default_headers(headers)
            .user_agent(concat!("tailwater/", env!("CARGO_PKG_VERSION")))
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .timeout(connector.timeout)
            .connect_timeout(std::time::Duration::from_secs(5))
            .tcp_nodelay(true)
            .build()?;
        let key_header = connector.idempotency.as_ref().map(|idempotency| idempotency.header.as_str());
        Ok(Self {
            client,
            base_url: base_url.trim_end_matches('/').to_owned(),
            auth: connector.auth,
            user: user.map(|user| format!("{user}{}", connector.user_suffix)),
            password: connector.user_suffix.clone(),
            api_key,
            key_at: connector.key_at.clone(),
            key_header: key_header.and_then(|name| HeaderName::try_from(name).ok()),
        })
    }

    /// Where it is.
    #[must_use]
    pub fn base_url(&self) -> &str {
        &self.base_url
    }

    /// Sends `request` once.
    pub async fn send(&self, request: &Request, idempotency_key: &str) -> Result<Answer, SendError> {
        let not_sent = |reason: String| SendError::NotSent(reason);
        let method = reqwest::Method::from_bytes(request.method.as_bytes())
            .map_err(|error| not_sent(error.to_string()))?;
        if climbs(&request.path) {
            return Err(not_sent("the path leads elsewhere than the connector's".into()));
        }
        let mut builder = self.client.request(method, format!("{}{}", self.base_url, request.path));
        if let Some(authorization) = self.authorization().map_err(|error| not_sent(error.to_string()))? {
            builder = builder.header(AUTHORIZATION, authorization);
        }
        if let (Some(name), "POST") = (&self.key_header, request.method.as_str()) {
            builder = builder.header(name, idempotency_key);
        }
        if let (Some(body), Some(content_type)) = (&request.body, &request.content_type) {
            let body = self.with_key(body).map_err(|error| not_sent(error.to_string()))?;
            builder = builder.header(CONTENT_TYPE, content_type).body(body);
        }
        let response = builder.send().await.map_err(classify_error)?;
        let status = response.status().as_u16();
        let headers: BTreeMap<String, String> = response
            .headers()
            .iter()
            .filter_map(|(name, value)| Some((name.as_str().to_owned(), value.to_str().ok()?.to_owned())))
            .collect();
        let (body, flaw) = read(response, if request.reads() { PAGE_BYTES } else { ANSWER_BYTES }).await?;
        Ok(Answer { status, headers, body, flaw })
    }

    /// The body as it is sent: only here the key stands where the connector's file has its name, and nowhere else.
    fn with_key(&self, body: &str) -> Result<String, KeyError> {
        let (Some(Auth::Body), Some(api_key), Some(at)) = (self.auth, &self.api_key, &self.key_at) else {
            return Ok(body.to_owned());
        };
        let mut value: Value = serde_json::from_str(body).map_err(|_| KeyError::NoPlace)?;
        let place = value.pointer_mut(at).filter(|place| place.as_str() == Some(KEY_IN_BODY));
        *place.ok_or(KeyError::NoPlace)? = Value::from(api_key.read()?.expose());
        Ok(value.to_string())
    }

    fn authorization(&self) -> Result<Option<HeaderValue>, SecretError> {
        let (Some(auth), Some(api_key)) = (self.auth, &self.api_key) else { return Ok(None) };
        let secret = api_key.read()?;
        let text = match auth {
            Auth::Body => return Ok(None),
            Auth::Bearer => format!("Bearer {}", secret.expose()),
            Auth::Key => {
                let pair = format!("{}:{}", secret.expose(), self.password);
                format!("Basic {}", base64(pair.as_bytes()))
            }
            Auth::Basic => {
                let pair = format!("{}:{}", self.user.as_deref().unwrap_or_default(), secret.expose());
                format!("Basic {}", base64(pair.as_bytes()))
            }
        };
        let mut value = HeaderValue::from_str(&text).map_err(|_| api_key.unusable())?;
        value.set_sensitive(true);
        Ok(Some(value))
    }
}

/// `{name}` in a header stands for a setting.
fn filled(text: &str, settings: &Value) -> String {
    let mut filled = text.to_owned();
    for (name, value) in settings.as_object().into_iter().flatten() {
        let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        filled = filled.replace(&format!("{{{name}}}"), &value);
    }
    filled
}

/// A connection that was never made carried nothing; anything later may have.
fn classify_error(error: reqwest::Error) -> SendError {
    let connect = error.is_connect() || error.is_builder();
    // Without the URL: its query may hold personal values (INV-12).
    let error = error.without_url();
    let mut reason = error.to_string();
    let mut source = std::error::Error::source(&error);
    while let Some(inner) = source {
        reason = inner.to_string();
        source = inner.source();
    }
    if connect { SendError::NotSent(reason) } else { SendError::NoAnswer(reason) }
}

/// The key cannot be put where it belongs.
#[derive(Debug, thiserror::Error)]
enum KeyError {
    #[error(transparent)]
    Secret(#[from] SecretError),
    #[error("the body has no place for the key where the connector file says")]
    NoPlace,
}

/// Reads the body up to `most` bytes; what is longer, or breaks off, says nothing.
async fn read(mut response: reqwest::Response, most: usize) -> Result<(Value, Option<Flaw>), SendError> {
    let mut bytes = Vec::new();
    while let Some(chunk) =
        response.chunk().await.map_err(|error| SendError::NoAnswer(error.without_url().to_string()))?
    {
        if bytes.len() + chunk.len() > most {
            return Ok((Value::Null, Some(Flaw::TooLarge)));
        }
        bytes.extend_from_slice(&chunk);
    }
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Ok((Value::Null, Some(Flaw::Empty)));
    }
    Ok(match lenient::parse(&bytes) {
        Some(value) => (value, None),
        None => (Value::Null, Some(Flaw::NotJson)),
    })
}

fn base64(bytes: &[u8]) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}
