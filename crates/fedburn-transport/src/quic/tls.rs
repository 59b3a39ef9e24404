//! TLS 1.3 on both sides, both sides authenticated; no session is ever resumed, since that would not look at the
//! certificates again.

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

use quinn::ConnectionError;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::{
    ClientHello, NoServerSessionStorage, ParsedCertificate, ResolvesServerCert, WebPkiClientVerifier,
};
use rustls::sign::CertifiedKey;
use rustls::{CertificateError, DigitallySignedStruct, RootCertStore, SignatureScheme};

use super::identity::spki_hash;
use super::{QuicError, ServerIdentity};
use crate::wire::limits::PROTOCOL;

/// The cryptography: AES with 128 bits first, which processors have instructions for.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    use aws_lc_rs::cipher_suite::{TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256};
    let cipher_suites = match has_aes() {
        true => vec![TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256],
        // QUIC itself needs AES-128 to be there.
        false => vec![TLS13_CHACHA20_POLY1305_SHA256, TLS13_AES_128_GCM_SHA256],
    };
    Arc::new(CryptoProvider { cipher_suites, ..aws_lc_rs::default_provider() })
}

fn has_aes() -> bool {
    #[cfg(target_arch = "x86_64")]
    let has = std::arch::is_x86_feature_detected!("aes");
    #[cfg(target_arch = "aarch64")]
    let has = std::arch::is_aarch64_feature_detected!("aes");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let has = false;
    has
}

/// The server's TLS. Strangers may connect, to enrol; what else they may is not decided here.
pub(crate) fn server(
    identity: &ServerIdentity,
    leaf: Arc<CurrentLeaf>,
    provider: Arc<CryptoProvider>,
) -> Result<QuicServerConfig, QuicError> {
    let roots = identity.roots().map_err(tls)?;
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .allow_unauthenticated()
        .build()
        .map_err(tls)?;
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(tls)?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(leaf);
    config.alpn_protocols = vec![PROTOCOL.to_vec()];
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    QuicServerConfig::try_from(config).map_err(tls)
}

/// A node's TLS: it talks to servers that the authority with the hash `pin` speaks for, and shows `credentials` if it
/// has any.
pub(crate) fn client(
    pin: [u8; 32],
    credentials: Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>,
    provider: Arc<CryptoProvider>,
) -> Result<QuicClientConfig, QuicError> {
    let verifier = PinnedServer { pin, provider: provider.clone() };
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(tls)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let mut config = match credentials {
        Some((chain, key)) => config.with_client_auth_cert(chain, key).map_err(tls)?,
        None => config.with_no_client_auth(),
    };
    config.alpn_protocols = vec![PROTOCOL.to_vec()];
    config.resumption = Resumption::disabled();
    QuicClientConfig::try_from(config).map_err(tls)
}

/// Why a connection could not be made, with what to do where a certificate's time is the reason.
pub(crate) fn explained(error: &ConnectionError) -> String {
    let reason = error.to_string();
    let over = matches!(error, ConnectionError::TransportError(e) if u64::from(e.code) == EXPIRED)
        || matches!(error, ConnectionError::ConnectionClosed(e) if u64::from(e.error_code) == EXPIRED);
    match over {
        true => format!("{reason}: the certificate is over, or the clock of one side is wrong"),
        false => reason,
    }
}

/// TLS's alert for a certificate that holds no longer, or not yet (RFC 8446, section 6), as QUIC numbers it.
const EXPIRED: u64 = 0x100 + 45;

fn tls(error: impl ToString) -> QuicError {
    QuicError::Tls { reason: error.to_string() }
}

/// The certificate that a server shows, exchanged while it runs.
pub(crate) struct CurrentLeaf(RwLock<Arc<CertifiedKey>>);

impl CurrentLeaf {
    pub(crate) fn new(leaf: Arc<CertifiedKey>) -> Self {
        Self(RwLock::new(leaf))
    }

    pub(crate) fn set(&self, leaf: Arc<CertifiedKey>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = leaf;
    }
}

impl fmt::Debug for CurrentLeaf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CurrentLeaf")
    }
}

impl ResolvesServerCert for CurrentLeaf {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.read().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

/// Accepts servers whose chain ends in the authority of the join string.
#[derive(Debug)]
struct PinnedServer {
    pin: [u8; 32],
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for PinnedServer {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let root = chain.iter().find(|certificate| spki_hash(certificate) == Some(self.pin));
        let root = root.ok_or(rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer))?;
        let mut roots = RootCertStore::empty();
        roots.add(root.clone().into_owned())?;
        let parsed = ParsedCertificate::try_from(leaf)?;
        let algorithms = self.provider.signature_verification_algorithms.all;
        verify_server_cert_signed_by_trust_anchor(&parsed, &roots, chain, now, algorithms)?;
        verify_server_name(&parsed, name)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 is not spoken".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
