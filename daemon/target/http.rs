//! HTTP targets: sends a request byte for byte as the ledger has it.

use std::collections::BTreeMap;

use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use serde_json::Value;

use crate::config::secret::{Secret, SecretError};
use crate::connector::classify::Answer;
use crate::connector::request::Request;
use crate::connector::{Auth, Connector, KEY_IN_BODY};

/// Answers to writes are read up to here; the rest cannot matter for the outcome.
const MAX_ANSWER_BYTES: usize = 1 << 20;
/// What is read counts as a whole: a page that is longer than this is no answer.
const MAX_PAGE_BYTES: usize = 16 << 20;

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
    key_header: Option<HeaderName>,
}

impl HttpTarget {
    /// Builds the client. Redirects are not followed: a vendor's API does not redirect, an attacker's would.
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
        let body = if request.reads() { read_page(response).await? } else { read_body(response).await? };
        Ok(Answer { status, headers, body })
    }

    /// The body as it is sent: only here the key stands where its name stood.
    fn with_key(&self, body: &str) -> Result<String, SecretError> {
        match (self.auth, &self.api_key) {
            (Some(Auth::Body), Some(api_key)) => {
                let key = serde_json::Value::from(api_key.read()?.expose()).to_string();
                Ok(body.replace(&format!("\"{KEY_IN_BODY}\""), &key))
            }
            _ => Ok(body.to_owned()),
        }
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
        let mut value = HeaderValue::from_str(&text).unwrap_or_else(|_| HeaderValue::from_static(""));
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

/// A 2xx whose body breaks off is an answer that was lost.
async fn read_body(mut response: reqwest::Response) -> Result<Value, SendError> {
    let mut bytes = Vec::new();
    while let Some(chunk) =
        response.chunk().await.map_err(|error| SendError::NoAnswer(error.without_url().to_string()))?
    {
        if bytes.len() + chunk.len() > MAX_ANSWER_BYTES {
            break;
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(serde_json::from_slice(&bytes).unwrap_or(Value::Null))
}

/// A page is read to its end.
async fn read_page(mut response: reqwest::Response) -> Result<Value, SendError> {
    let mut bytes = Vec::new();
    while let Some(chunk) =
        response.chunk().await.map_err(|error| SendError::NoAnswer(error.without_url().to_string()))?
    {
        if bytes.len() + chunk.len() > MAX_PAGE_BYTES {
            return Err(SendError::NoAnswer("the answer is longer than 16 MB".into()));
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(serde_json::from_slice(&bytes).unwrap_or(Value::Null))
}

fn base64(bytes: &[u8]) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}
