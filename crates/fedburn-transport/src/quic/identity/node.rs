//! A node's own identity.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::ParsedCertificate;

use super::authority::{read_certificates, validity, wants_renewal, write_certificates};
use super::enrol::{self, ChannelBinding};
use super::keys::PrivateKey;
use super::server::make_private_directory;
use super::{IdentityError, NodeId};

/// What a node is: its key, and the certificate that a server gave it.
///
/// # Examples
///
/// ```
/// use fedburn_transport::quic::NodeIdentity;
///
/// let dir = tempfile::tempdir()?;
/// let id = NodeIdentity::open(dir.path())?.id();
/// assert_eq!(NodeIdentity::open(dir.path())?.id(), id);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct NodeIdentity {
    key: PrivateKey,
    id: NodeId,
    path: PathBuf,
    /// The node's certificate first, the authority's last; empty before the node enrolled.
    chain: Mutex<Vec<CertificateDer<'static>>>,
}

impl NodeIdentity {
    /// Opens the identity in the directory `dir`, which is made at the first time: the key `node.key`, and once the
    /// node has enrolled (or an operator has put it there) the certificate `node.pem`, followed by those of its
    /// authorities.
    ///
    /// # Errors
    /// [`IdentityError`].
    pub fn open(dir: &Path) -> Result<Self, IdentityError> {
        make_private_directory(dir)?;
        let (key, path) = (PrivateKey::open(&dir.join("node.key"))?, dir.join("node.pem"));
        let chain = if path.exists() { read_certificates(&path)? } else { Vec::new() };
        let id = key.node_id();
        if chain.first().is_some_and(|leaf| NodeId::of_certificate(leaf) != Some(id)) {
            return Err(IdentityError::content(&path, "is not a certificate of the key beside it"));
        }
        Ok(Self { key, id, path, chain: Mutex::new(chain) })
    }

    /// Who the node is.
    pub fn id(&self) -> NodeId {
        self.id
    }

    /// Certificate chain and key to show to servers of the authority with this hash; `None` where the node has no
    /// certificate of it that still holds.
    pub(crate) fn credentials(&self, pin: &[u8; 32]) -> Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)> {
        let chain = self.chain.lock().unwrap_or_else(PoisonError::into_inner);
        let of_authority = |certificate: &CertificateDer<'_>| spki_hash(certificate).as_ref() == Some(pin);
        let holds = chain.first().and_then(validity).is_some_and(|(_, until)| SystemTime::now() < until);
        (holds && chain.iter().any(of_authority)).then(|| (chain.clone(), self.key.to_der()))
    }

    /// Whether it is time to ask for another certificate.
    pub(crate) fn wants_renewal(&self) -> bool {
        let chain = self.chain.lock().unwrap_or_else(PoisonError::into_inner);
        chain.first().is_some_and(|leaf| wants_renewal(leaf, SystemTime::now()))
    }

    /// A request for a certificate on a connection.
    pub(crate) fn request(&self, channel: &ChannelBinding) -> Result<Vec<u8>, IdentityError> {
        enrol::request(&self.key, channel)
    }

    /// Keeps a certificate chain that a server gave.
    pub(crate) fn keep(&self, chain: Vec<CertificateDer<'static>>) -> Result<(), IdentityError> {
        if chain.first().and_then(NodeId::of_certificate) != Some(self.id) {
            return Err(IdentityError::Enrolment { reason: "the server's certificate is for another key" });
        }
        write_certificates(&self.path, &chain)?;
        *self.chain.lock().unwrap_or_else(PoisonError::into_inner) = chain;
        Ok(())
    }
}

impl fmt::Debug for NodeIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeIdentity").field("id", &self.id).finish_non_exhaustive()
    }
}

/// The BLAKE3 hash of the public key that a certificate carries.
pub(crate) fn spki_hash(certificate: &CertificateDer<'_>) -> Option<[u8; 32]> {
    let parsed = ParsedCertificate::try_from(certificate).ok()?;
    Some(*blake3::hash(&parsed.subject_public_key_info()).as_bytes())
}
