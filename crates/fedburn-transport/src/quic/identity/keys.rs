//! Ed25519 keys and the identities that they are.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use data_encoding::BASE32_NOPAD;
use fedburn_durable::{self as durable, Access};
use rcgen::{KeyPair, PKCS_ED25519, PublicKeyData, SignatureAlgorithm, SigningKey};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::ParsedCertificate;
use serde::{Deserialize, Serialize};

use super::IdentityError;

/// Who a node is: the BLAKE3 hash, 256 bits, of its public key (as SubjectPublicKeyInfo, DER). Certificates come and
/// go; the key and this number stay. Written as 52 characters of base32.
///
/// # Examples
///
/// ```
/// use fedburn_transport::quic::NodeId;
///
/// let text = "aebagbafaydqqcikbmga2dqpcaireeyuculbogazdinryhi6d4qa";
/// let node: NodeId = text.parse()?;
/// assert_eq!(node.to_string(), text);
/// # Ok::<(), fedburn_transport::quic::IdentityError>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NodeId([u8; 32]);

impl NodeId {
    /// The identity of a public key given as SubjectPublicKeyInfo (DER).
    pub(crate) fn of_public_key(spki: &[u8]) -> Self {
        Self(*blake3::hash(spki).as_bytes())
    }

    /// The identity of the key that a certificate carries; `None` where it is no certificate.
    pub(crate) fn of_certificate(certificate: &CertificateDer<'_>) -> Option<Self> {
        let parsed = ParsedCertificate::try_from(certificate).ok()?;
        Some(Self::of_public_key(&parsed.subject_public_key_info()))
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&to_base32(&self.0))
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NodeId({self})")
    }
}

impl FromStr for NodeId {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, IdentityError> {
        let expected = "a node id: 52 characters of base32";
        from_base32(text).map(Self).ok_or_else(|| IdentityError::Text { text: text.to_owned(), expected })
    }
}

impl TryFrom<String> for NodeId {
    type Error = IdentityError;

    fn try_from(text: String) -> Result<Self, IdentityError> {
        text.parse()
    }
}

impl From<NodeId> for String {
    fn from(node: NodeId) -> Self {
        node.to_string()
    }
}

/// 32 bytes as 52 characters.
pub(crate) fn to_base32(bytes: &[u8; 32]) -> String {
    BASE32_NOPAD.encode(bytes).to_ascii_lowercase()
}

/// What [`to_base32`] wrote.
pub(crate) fn from_base32(text: &str) -> Option<[u8; 32]> {
    BASE32_NOPAD.decode(text.to_ascii_uppercase().as_bytes()).ok()?.try_into().ok()
}

/// A node's or a server's own key pair.
pub(crate) struct PrivateKey(KeyPair);

impl PrivateKey {
    pub(crate) fn generate() -> Result<Self, IdentityError> {
        let made = KeyPair::generate_for(&PKCS_ED25519);
        made.map(Self).map_err(|e| IdentityError::Make { what: "key", reason: e.to_string() })
    }

    /// Reads the key in `path`; makes and writes one where there is none.
    pub(crate) fn open(path: &Path) -> Result<Self, IdentityError> {
        let text = durable::unless_missing(std::fs::read_to_string(path)).map_err(|e| IdentityError::file(path, e))?;
        if !text.is_empty() {
            return KeyPair::from_pem(&text).map(Self).map_err(|e| IdentityError::content(path, e));
        }
        let key = Self::generate()?;
        durable::replace(path, key.0.serialize_pem().as_bytes(), Access::Owner)
            .map_err(|e| IdentityError::file(path, e))?;
        Ok(key)
    }

    pub(crate) fn node_id(&self) -> NodeId {
        NodeId::of_public_key(&self.public_key())
    }

    /// The public key as SubjectPublicKeyInfo (DER).
    pub(crate) fn public_key(&self) -> Vec<u8> {
        self.0.subject_public_key_info()
    }

    pub(crate) fn to_der(&self) -> PrivateKeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.0.serialize_der()).into()
    }

    pub(crate) fn sign(&self, message: &[u8]) -> Result<Vec<u8>, IdentityError> {
        self.0.sign(message).map_err(|e| IdentityError::Make { what: "signature", reason: e.to_string() })
    }

    pub(crate) fn pair(&self) -> &KeyPair {
        &self.0
    }
}

/// The public half of an Ed25519 key that somebody else holds.
#[derive(Clone, Copy)]
pub(crate) struct PublicKey([u8; 32]);

impl PublicKey {
    /// Takes the key out of a SubjectPublicKeyInfo; `None` for anything but Ed25519.
    pub(crate) fn from_spki(spki: &[u8]) -> Option<Self> {
        spki.strip_prefix(&ED25519_SPKI)?.try_into().ok().map(Self)
    }

    pub(crate) fn verify(&self, message: &[u8], signature: &[u8]) -> bool {
        use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};
        UnparsedPublicKey::new(&ED25519, &self.0).verify(message, signature).is_ok()
    }
}

impl PublicKeyData for PublicKey {
    fn der_bytes(&self) -> &[u8] {
        &self.0
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_ED25519
    }
}

/// What precedes the 32 bytes of an Ed25519 key in its SubjectPublicKeyInfo (RFC 8410).
const ED25519_SPKI: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_kept_and_signs_as_itself() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node.key");
        let made = PrivateKey::open(&path).unwrap();
        let read = PrivateKey::open(&path).unwrap();
        assert_eq!(made.node_id(), read.node_id());
        let public = PublicKey::from_spki(&made.public_key()).unwrap();
        let signature = read.sign(b"message").unwrap();
        assert!(public.verify(b"message", &signature));
        assert!(!public.verify(b"massage", &signature));
        assert_ne!(made.node_id(), PrivateKey::generate().unwrap().node_id());
    }

    #[test]
    fn node_ids_read_what_they_write() {
        let node = PrivateKey::generate().unwrap().node_id();
        assert_eq!(node.to_string().len(), 52);
        assert_eq!(node.to_string().parse::<NodeId>().unwrap(), node);
        assert!("abc".parse::<NodeId>().is_err());
        assert!("0".repeat(52).parse::<NodeId>().is_err());
    }
}
