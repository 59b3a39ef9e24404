//! The one line that lets a machine join a federation.

use std::fmt;
use std::str::FromStr;

use super::IdentityError;
use super::keys::{from_base32, to_base32};

/// Where a server is, which authority speaks for it, and the secret that admits new nodes:
/// `fedburn1:<host>:<port>:<hash of the authority's key>:<secret>`.
///
/// Whoever has it may enrol: hand it over as you would a password. Without the secret (`fedburn1:…:<hash>:`) it lets a
/// node find the server and be sure of it, and the node must have its certificate already.
///
/// # Examples
///
/// ```
/// use fedburn_transport::quic::JoinString;
///
/// let hash = "aebagbafaydqqcikbmga2dqpcaireeyuculbogazdinryhi6d4qa";
/// let join: JoinString = format!("fedburn1:server.example:4843:{hash}:").parse()?;
/// assert_eq!((join.host(), join.port()), ("server.example", 4843));
/// # Ok::<(), fedburn_transport::quic::IdentityError>(())
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct JoinString {
    host: String,
    port: u16,
    pin: [u8; 32],
    secret: Option<[u8; 32]>,
}

impl JoinString {
    pub(crate) fn new(host: String, port: u16, pin: [u8; 32], secret: Option<[u8; 32]>) -> Self {
        Self { host, port, pin, secret }
    }

    /// The server's name or address.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The server's UDP port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The BLAKE3 hash of the authority's public key.
    pub(crate) fn pin(&self) -> [u8; 32] {
        self.pin
    }

    pub(crate) fn secret(&self) -> Option<[u8; 32]> {
        self.secret
    }
}

impl fmt::Display for JoinString {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let secret = self.secret.as_ref().map(to_base32).unwrap_or_default();
        match self.host.contains(':') {
            true => write!(f, "{PREFIX}[{}]:{}:{}:{secret}", self.host, self.port, to_base32(&self.pin)),
            false => write!(f, "{PREFIX}{}:{}:{}:{secret}", self.host, self.port, to_base32(&self.pin)),
        }
    }
}

impl fmt::Debug for JoinString {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JoinString({}:{}, {})", self.host, self.port, to_base32(&self.pin))
    }
}

impl FromStr for JoinString {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, IdentityError> {
        let parse = || {
            let mut parts = text.trim().strip_prefix(PREFIX)?.rsplitn(4, ':');
            let (secret, pin, port) = (parts.next()?, parts.next()?, parts.next()?);
            let host = parts.next()?;
            let host = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
            let secret = if secret.is_empty() { None } else { Some(from_base32(secret)?) };
            let known = !host.is_empty() && !host.contains(char::is_whitespace);
            known.then_some(Self::new(host.to_owned(), port.parse().ok()?, from_base32(pin)?, secret))
        };
        // The text may hold a secret: only its beginning is repeated.
        let shown = || format!("{}…", text.chars().take(24).collect::<String>());
        parse().ok_or_else(|| IdentityError::Text { text: shown(), expected: EXPECTED })
    }
}

const PREFIX: &str = "fedburn1:";
const EXPECTED: &str = "a join string: fedburn1:<host>:<port>:<hash of the authority's key>:<secret>";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn join_strings_read_what_they_write() {
        for host in ["127.0.0.1", "::1", "server.example"] {
            for secret in [None, Some([7; 32])] {
                let join = JoinString::new(host.to_owned(), 4843, [9; 32], secret);
                assert_eq!(join.to_string().parse::<JoinString>().unwrap(), join);
            }
        }
    }

    #[test]
    fn secrets_stay_out_of_messages() {
        let join = JoinString::new("localhost".to_owned(), 1, [9; 32], Some([7; 32]));
        let secret = to_base32(&[7; 32]);
        assert!(!format!("{join:?}").contains(&secret));
        let error = format!("{join}x").parse::<JoinString>().unwrap_err().to_string();
        assert!(!error.contains(&secret), "{error}");
    }

    #[test]
    fn other_texts_are_refused() {
        for text in ["", "fedburn1:", "fedburn2:a:1:b:c", "fedburn1:a:99999:b:", "fedburn1::1:x:y"] {
            assert!(text.parse::<JoinString>().is_err(), "{text}");
        }
    }
}
