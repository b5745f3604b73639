//! How a PostgreSQL connection is secured: the modes of `sslmode`, and what each of them verifies.
//!
//! Meaning of the modes: <https://www.postgresql.org/docs/current/libpq-ssl.html#LIBPQ-SSL-PROTECTION>. Whatever the mode,
//! where there is TLS and a password, SCRAM is bound to the channel, so that nobody in between can pass it on.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};

use crate::pg::ConnectError;

/// `sslmode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TlsMode {
    /// Never. Local servers only.
    Disable,
    /// If the server has it. Local servers only: anybody in between could say that it has not.
    Prefer,
    /// Always; who the server is, is not verified.
    Require,
    /// Always, with a certificate of a trusted authority, whatever its name.
    VerifyCa,
    /// Always, with a certificate of a trusted authority for this very host.
    VerifyFull,
}

impl TlsMode {
    /// The word in a URL.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "disable" => Self::Disable,
            "prefer" => Self::Prefer,
            "require" => Self::Require,
            "verify-ca" => Self::VerifyCa,
            "verify-full" => Self::VerifyFull,
            _ => return None,
        })
    }

    /// True when a server without TLS is refused.
    #[must_use]
    pub fn insists(self) -> bool {
        !matches!(self, Self::Disable | Self::Prefer)
    }
}

/// A certificate of our own, and its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientCertificate {
    /// `sslcert`: PEM, with the authorities between.
    pub certificate: PathBuf,
    /// `sslkey`: PEM, unencrypted.
    pub key: PathBuf,
}

fn unreadable(path: &Path, error: impl ToString) -> ConnectError {
    ConnectError::Certificates(format!("{}: {}", path.display(), error.to_string()))
}

/// The TLS settings of a connection.
pub fn client_config(
    mode: TlsMode,
    root_certificates: Option<&Path>,
    own: Option<&ClientCertificate>,
) -> Result<ClientConfig, ConnectError> {
    let failed = |error: &dyn ToString| ConnectError::Certificates(error.to_string());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| failed(&error))?;
    let builder = match mode {
        TlsMode::VerifyFull => builder.with_root_certificates(roots(root_certificates)?),
        TlsMode::VerifyCa => {
            let verifier = WebPkiServerVerifier::builder_with_provider(
                Arc::new(roots(root_certificates)?),
                provider.clone(),
            );
            let inner = verifier.build().map_err(|error| failed(&error))?;
            let verifier = Lenient { authority: Some(inner), provider };
            builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier))
        }
        TlsMode::Disable | TlsMode::Prefer | TlsMode::Require => {
            let verifier = Lenient { authority: None, provider };
            builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier))
        }
    };
    let Some(own) = own else { return Ok(builder.with_no_client_auth()) };
    let chain = CertificateDer::pem_file_iter(&own.certificate)
        .and_then(Iterator::collect)
        .map_err(|error| unreadable(&own.certificate, error))?;
    let key = PrivateKeyDer::from_pem_file(&own.key).map_err(|error| unreadable(&own.key, error))?;
    builder.with_client_auth_cert(chain, key).map_err(|error| failed(&error))
}

fn roots(path: Option<&Path>) -> Result<RootCertStore, ConnectError> {
    let mut roots = RootCertStore::empty();
    let Some(path) = path else {
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        return Ok(roots);
    };
    for certificate in CertificateDer::pem_file_iter(path).map_err(|error| unreadable(path, error))? {
        let certificate = certificate.map_err(|error| unreadable(path, error))?;
        roots.add(certificate).map_err(|error| unreadable(path, error))?;
    }
    Ok(roots)
}

/// Accepts a certificate whatever its name, and without an `authority` whoever signed it. That the server holds the key is
/// verified all the same.
#[derive(Debug)]
struct Lenient {
    authority: Option<Arc<WebPkiServerVerifier>>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Lenient {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let Some(authority) = &self.authority else { return Ok(ServerCertVerified::assertion()) };
        // The name is looked at last, so this error means that everything else is in order.
        match authority.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now) {
            Err(Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => Ok(ServerCertVerified::assertion()),
            verified => verified,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
