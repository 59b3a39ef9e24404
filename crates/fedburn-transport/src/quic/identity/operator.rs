//! What an operator may see of a server's identity, and renew.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use super::authority::{read_certificates, validity};
use super::keys::to_base32;
use super::node::spki_hash;
use super::server::{make_private_directory, open_secret};
use super::{IdentityError, JoinString, NodeId, ServerIdentity};

/// A server's identity as its operator sees it.
///
/// # Examples
///
/// ```
/// use fedburn_transport::quic::{ServerIdentity, ServerRecord};
///
/// let dir = tempfile::tempdir()?;
/// ServerIdentity::open(dir.path())?;
/// let (before, after) = (ServerRecord::of(dir.path())?, ServerRecord::renew(dir.path())?);
/// assert_eq!((before.authority, before.server), (after.authority, after.server));
/// assert!(after.valid_until >= before.valid_until);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerRecord {
    /// The hash of the authority's key, as join strings carry it.
    pub authority: String,
    /// Who the server is.
    pub server: NodeId,
    /// The end of the server's certificate, in seconds since 1970.
    pub valid_until: u64,
}

impl ServerRecord {
    /// Reads the identity in the directory `dir`, which [`ServerIdentity::open`] made.
    ///
    /// # Errors
    /// [`IdentityError`].
    pub fn of(dir: &Path) -> Result<Self, IdentityError> {
        let path = dir.join(CERTIFICATE);
        let chain = read_certificates(&path)?;
        let record = || {
            let (leaf, authority) = (chain.first()?, chain.last()?);
            let valid_until = validity(leaf)?.1.duration_since(UNIX_EPOCH).ok()?.as_secs();
            Some(Self {
                authority: to_base32(&spki_hash(authority)?),
                server: NodeId::of_certificate(leaf)?,
                valid_until,
            })
        };
        record().ok_or_else(|| IdentityError::content(&path, "is no certificate of a server"))
    }

    /// Makes another certificate for the server and another secret for join strings. A server that runs has the new ones
    /// within a second; nodes that have enrolled stay what they are.
    ///
    /// # Errors
    /// [`IdentityError`].
    pub fn renew(dir: &Path) -> Result<Self, IdentityError> {
        Self::of(dir)?;
        ServerIdentity::open(dir)?.renew_own()?;
        Self::of(dir)
    }

    /// The join string of the server in `dir`, which nodes reach at `host` and `port`.
    ///
    /// # Errors
    /// [`IdentityError`].
    pub fn join_string(dir: &Path, host: &str, port: u16) -> Result<JoinString, IdentityError> {
        let (pin, secret) = ServerIdentity::open(dir)?.pin_and_secret()?;
        Ok(JoinString::new(host.to_owned(), port, pin, secret))
    }

    /// How long the certificate is still good, in seconds; 0 where it is over.
    pub fn seconds_left(&self) -> u64 {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
        self.valid_until.saturating_sub(now)
    }
}

/// The token of the server's page, 52 characters, made at the first time together with the server's directory `dir`; the
/// file can be read by its owner only.
///
/// # Errors
/// [`IdentityError`].
pub fn page_token(dir: &Path) -> Result<String, IdentityError> {
    make_private_directory(dir)?;
    Ok(to_base32(&open_secret(&dir.join(PAGE_TOKEN))?))
}

/// The secret of the server's page.
const PAGE_TOKEN: &str = "page.token";
/// The server's certificate and the authority's.
pub(super) const CERTIFICATE: &str = "server.pem";
/// The secret of the join string.
pub(super) const SECRET: &str = "join.secret";
