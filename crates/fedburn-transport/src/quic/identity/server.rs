//! The server's own identity.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use aws_lc_rs::rand::{SecureRandom, SystemRandom};
use fedburn_durable::{self as durable, Access};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use rustls::{RootCertStore, crypto::CryptoProvider};

use super::authority::{Authority, Role, read_certificates, wants_renewal, write_certificates};
use super::enrol::{self, ChannelBinding};
use super::keys::{PrivateKey, from_base32, to_base32};
use super::node::spki_hash;
use super::operator::{CERTIFICATE, SECRET};
use super::stamp::{Stamp, stamp};
use super::{IdentityError, NodeId, NodeRegistry, Standing};

/// What a server is and whom it admits.
///
/// # Examples
///
/// ```
/// use fedburn_transport::quic::ServerIdentity;
///
/// let dir = tempfile::tempdir()?;
/// let identity = ServerIdentity::open(dir.path())?;
/// assert!(identity.nodes().list().is_empty(), "nobody has enrolled yet");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct ServerIdentity {
    key: PrivateKeyDer<'static>,
    chain: Mutex<Vec<CertificateDer<'static>>>,
    /// The authority that nodes' certificates come from.
    root: CertificateDer<'static>,
    enrolment: Option<Enrolment>,
    nodes: NodeRegistry,
}

/// What a server needs to admit nodes by itself.
struct Enrolment {
    authority: Authority,
    key: PrivateKey,
    secret: Mutex<[u8; 32]>,
    secret_path: PathBuf,
    leaf_path: PathBuf,
    /// Of the certificate and the secret that are in force.
    stamps: Mutex<[Option<Stamp>; 2]>,
}

impl ServerIdentity {
    /// Opens the identity in the directory `dir`, which is made at the first time: an authority, a key, a certificate
    /// of 90 days (renewed when two thirds are over) and the secret of the join string. Only their owner can read the
    /// files.
    ///
    /// # Errors
    /// [`IdentityError`].
    pub fn open(dir: &Path) -> Result<Self, IdentityError> {
        make_private_directory(dir)?;
        let authority = Authority::open(dir)?;
        let key = PrivateKey::open(&dir.join("server.key"))?;
        let (leaf_path, secret_path) = (dir.join(CERTIFICATE), dir.join(SECRET));
        let secret = Mutex::new(open_secret(&secret_path)?);
        let enrolment = Enrolment { authority, key, secret, secret_path, leaf_path, stamps: Mutex::default() };
        let chain = enrolment.chain()?;
        *lock(&enrolment.stamps) = enrolment.stamps()?;
        Ok(Self {
            key: enrolment.key.to_der(),
            chain: Mutex::new(chain),
            root: enrolment.authority.certificate().clone(),
            enrolment: Some(enrolment),
            nodes: NodeRegistry::open(dir)?,
        })
    }

    /// The identity of a server whose certificates an operator made: PEM files with the authority's certificate `ca`,
    /// the server's `certificate` (for the name `fedburn-server`) with intermediate ones behind it, and its `key`. No
    /// node can enrol; whoever has a certificate of the authority may take part unless it was revoked. The registry of
    /// nodes is in `dir`.
    ///
    /// # Errors
    /// [`IdentityError`].
    pub fn from_files(dir: &Path, ca: &Path, certificate: &Path, key: &Path) -> Result<Self, IdentityError> {
        make_private_directory(dir)?;
        let root = read_certificates(ca)?.swap_remove(0);
        let mut chain = read_certificates(certificate)?;
        // Nodes know the authority by its hash and need to see it.
        if chain.last() != Some(&root) {
            chain.push(root.clone());
        }
        let key = PrivateKeyDer::from_pem_file(key).map_err(|e| IdentityError::content(key, e))?;
        Ok(Self { key, chain: Mutex::new(chain), root, enrolment: None, nodes: NodeRegistry::open(dir)? })
    }

    /// Makes another certificate and another secret for join strings.
    pub(super) fn renew_own(&self) -> Result<(), IdentityError> {
        self.enrolment.as_ref().map_or(Ok(()), Enrolment::renew)
    }

    /// The nodes that may take part.
    pub fn nodes(&self) -> &NodeRegistry {
        &self.nodes
    }

    /// The hash of the authority's key and the secret, for the join string.
    pub(crate) fn pin_and_secret(&self) -> Result<([u8; 32], Option<[u8; 32]>), IdentityError> {
        let unreadable = || IdentityError::Make { what: "join string", reason: "authority unreadable".to_owned() };
        let pin = spki_hash(&self.root).ok_or_else(unreadable)?;
        Ok((pin, self.enrolment.as_ref().map(|e| *lock(&e.secret))))
    }

    /// What nobody else has: other keys are derived from it.
    pub(crate) fn secret_key(&self) -> &[u8] {
        self.key.secret_der()
    }

    /// The authorities whose certificates nodes may show.
    pub(crate) fn roots(&self) -> Result<RootCertStore, rustls::Error> {
        let mut roots = RootCertStore::empty();
        roots.add(self.root.clone())?;
        Ok(roots)
    }

    /// Whether an operator renewed certificate and secret, which are then the new ones.
    pub(crate) fn refresh(&self) -> Result<bool, IdentityError> {
        let Some(enrolment) = &self.enrolment else { return Ok(false) };
        let stamps = enrolment.stamps()?;
        if *lock(&enrolment.stamps) == stamps || stamps.contains(&None) {
            return Ok(false);
        }
        *lock(&enrolment.secret) = open_secret(&enrolment.secret_path)?;
        *lock(&self.chain) = enrolment.chain()?;
        *lock(&enrolment.stamps) = stamps;
        Ok(true)
    }

    /// What TLS shows, renewed where it is time.
    pub(crate) fn certified_key(&self, provider: &CryptoProvider) -> Result<Arc<CertifiedKey>, IdentityError> {
        let mut chain = lock(&self.chain);
        if let Some(enrolment) = &self.enrolment
            && wants_renewal(&chain[0], SystemTime::now())
        {
            *chain = enrolment.chain()?;
        }
        let made = CertifiedKey::from_der(chain.clone(), self.key.clone_key(), provider);
        made.map(Arc::new).map_err(|e| IdentityError::Make { what: "TLS certificate", reason: e.to_string() })
    }

    /// Answers a node that shows the secret: the chain of its certificate, the authority's included.
    pub(crate) fn enrol(
        &self,
        request: &[u8],
        mac: &[u8],
        channel: &ChannelBinding,
    ) -> Result<(NodeId, Vec<CertificateDer<'static>>), IdentityError> {
        let refused = IdentityError::Enrolment { reason: "this server's certificates are made by its operator" };
        let enrolment = self.enrolment.as_ref().ok_or(refused)?;
        enrol::verify_mac(&lock(&enrolment.secret), request, channel, mac)?;
        let (node, chain) = enrolment.certify(request, channel)?;
        // Enrolling again does not undo a revocation: the secret outlives many nodes.
        if self.nodes.standing(node) == Some(Standing::Revoked) {
            return Err(IdentityError::Enrolment { reason: "this node was revoked" });
        }
        self.nodes.allow(node)?;
        Ok((node, chain))
    }

    /// Answers a node that is known by its certificate and asks for another one for the same key.
    pub(crate) fn renew(
        &self,
        node: NodeId,
        request: &[u8],
        channel: &ChannelBinding,
    ) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
        let refused = IdentityError::Enrolment { reason: "this server's certificates are made by its operator" };
        match self.enrolment.as_ref().ok_or(refused)?.certify(request, channel)? {
            (asking, chain) if asking == node => Ok(chain),
            _ => Err(IdentityError::Enrolment { reason: "the request is for another key than the connection's" }),
        }
    }

    /// Whether a node with a good certificate may take part.
    pub(crate) fn admits(&self, node: NodeId) -> bool {
        let admitted = || match self.nodes.standing(node) {
            Some(standing) => standing == Standing::Allowed,
            // Where an operator certifies nodes, the certificate is the permission.
            None => self.enrolment.is_none(),
        };
        // Whom an operator has just allowed is not turned away until the next look at the list.
        admitted() || (self.nodes.refresh().is_ok() && admitted())
    }
}

impl fmt::Debug for ServerIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerIdentity").field("nodes", &self.nodes).finish_non_exhaustive()
    }
}

impl Enrolment {
    fn stamps(&self) -> Result<[Option<Stamp>; 2], IdentityError> {
        Ok([stamp(&self.leaf_path)?, stamp(&self.secret_path)?])
    }

    /// Another certificate and another secret, each written over the last one.
    pub(super) fn renew(&self) -> Result<(), IdentityError> {
        self.issue()?;
        let secret = draw_secret(&self.secret_path)?;
        *lock(&self.secret) = secret;
        Ok(())
    }

    /// The server's certificate and the authority's; a new one is made and kept where there is none or it is old.
    fn chain(&self) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
        let node = self.key.node_id();
        let kept = if self.leaf_path.exists() { read_certificates(&self.leaf_path)? } else { Vec::new() };
        let ours = |chain: &[CertificateDer<'_>]| {
            chain.len() == 2
                && chain[1] == *self.authority.certificate()
                && NodeId::of_certificate(&chain[0]) == Some(node)
                && !wants_renewal(&chain[0], SystemTime::now())
        };
        if ours(&kept) {
            return Ok(kept);
        }
        self.issue()
    }

    /// A new certificate, kept.
    fn issue(&self) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
        let leaf = self.authority.issue(self.key.pair(), self.key.node_id(), Role::Server)?;
        let chain = vec![leaf, self.authority.certificate().clone()];
        write_certificates(&self.leaf_path, &chain)?;
        Ok(chain)
    }

    fn certify(
        &self,
        request: &[u8],
        channel: &ChannelBinding,
    ) -> Result<(NodeId, Vec<CertificateDer<'static>>), IdentityError> {
        let (key, spki) = enrol::verify_request(request, channel)?;
        let node = NodeId::of_public_key(spki);
        let leaf = self.authority.issue(&key, node, Role::Node)?;
        Ok((node, vec![leaf, self.authority.certificate().clone()]))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing panics while it holds one of these locks.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(super) fn make_private_directory(dir: &Path) -> Result<(), IdentityError> {
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(dir).map_err(|e| IdentityError::file(dir, e))
}

pub(super) fn open_secret(path: &Path) -> Result<[u8; 32], IdentityError> {
    let text = durable::unless_missing(std::fs::read_to_string(path)).map_err(|e| IdentityError::file(path, e))?;
    if !text.is_empty() {
        return from_base32(text.trim()).ok_or_else(|| IdentityError::content(path, "is not 52 characters of base32"));
    }
    draw_secret(path)
}

fn draw_secret(path: &Path) -> Result<[u8; 32], IdentityError> {
    let mut secret = [0; 32];
    let drawn = SystemRandom::new().fill(&mut secret);
    drawn.map_err(|_| IdentityError::Make { what: "secret", reason: "no randomness".to_owned() })?;
    durable::replace(path, to_base32(&secret).as_bytes(), Access::Owner).map_err(|e| IdentityError::file(path, e))?;
    Ok(secret)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_the_same_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let (first, again) = (ServerIdentity::open(dir.path()).unwrap(), ServerIdentity::open(dir.path()).unwrap());
        assert_eq!(first.pin_and_secret().unwrap(), again.pin_and_secret().unwrap());
        assert_eq!(*first.chain.lock().unwrap(), *again.chain.lock().unwrap());
    }

    #[test]
    fn the_secret_admits_and_a_revocation_stays() {
        let dir = tempfile::tempdir().unwrap();
        let server = ServerIdentity::open(dir.path()).unwrap();
        let (_, secret) = server.pin_and_secret().unwrap();
        let (key, channel) = (PrivateKey::generate().unwrap(), [5; 32]);
        let request = enrol::request(&key, &channel).unwrap();
        assert!(server.enrol(&request, &[0; 32], &channel).is_err());
        assert!(!server.admits(key.node_id()));

        let mac = enrol::mac(&secret.unwrap(), &request, &channel);
        let (node, chain) = server.enrol(&request, &mac, &channel).unwrap();
        assert_eq!((node, NodeId::of_certificate(&chain[0])), (key.node_id(), Some(key.node_id())));
        assert!(server.admits(node));
        assert!(server.renew(node, &request, &channel).is_ok());
        assert!(server.renew(NodeId::of_public_key(b"another"), &request, &channel).is_err());

        server.nodes().revoke(node).unwrap();
        assert!(!server.admits(node));
        assert!(server.enrol(&request, &mac, &channel).is_err());
    }
}
