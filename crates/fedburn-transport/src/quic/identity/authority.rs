//! The certificate authority of one federation: it signs keys, and nothing else.

use std::path::Path;
use std::time::{Duration, SystemTime};

use aws_lc_rs::rand::{SecureRandom, SystemRandom};
use fedburn_durable::{self as durable, Access};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyUsagePurpose, PublicKeyData, SerialNumber,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use super::keys::PrivateKey;
use super::{IdentityError, NodeId};

/// What a certificate lets its key be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// The federation's server.
    Server,
    /// A node.
    Node,
}

/// A key that signs certificates, and its own certificate.
pub(crate) struct Authority {
    key: PrivateKey,
    certificate: CertificateDer<'static>,
}

impl Authority {
    /// Opens the authority of the directory, which is made at the first time.
    pub(crate) fn open(dir: &Path) -> Result<Self, IdentityError> {
        let key = PrivateKey::open(&dir.join("ca.key"))?;
        let path = dir.join("ca.pem");
        if path.exists() {
            return Ok(Self { key, certificate: read_certificates(&path)?.swap_remove(0) });
        }
        let authority = Self::new(key)?;
        write_certificates(&path, std::slice::from_ref(&authority.certificate))?;
        Ok(authority)
    }

    fn new(key: PrivateKey) -> Result<Self, IdentityError> {
        let mut params = params(IsCa::Ca(BasicConstraints::Constrained(0)), SystemTime::now(), AUTHORITY_LIFETIME)?;
        params.distinguished_name = name();
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(key.pair()).map_err(|e| cannot_make(&e))?;
        Ok(Self { certificate: certificate.der().clone(), key })
    }

    pub(crate) fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// A certificate of [`LEAF_LIFETIME`] for the holder of `key`, whose identity is `node`.
    pub(crate) fn issue(
        &self,
        key: &impl PublicKeyData,
        node: NodeId,
        role: Role,
    ) -> Result<CertificateDer<'static>, IdentityError> {
        self.issue_for(key, node, role, SystemTime::now(), LEAF_LIFETIME)
    }

    /// As [`Authority::issue`], valid for `lifetime` from `start`.
    pub(crate) fn issue_for(
        &self,
        key: &impl PublicKeyData,
        node: NodeId,
        role: Role,
        start: SystemTime,
        lifetime: Duration,
    ) -> Result<CertificateDer<'static>, IdentityError> {
        let mut params = params(IsCa::NoCa, start, lifetime)?;
        // The role is in the purpose and in the name: a node's certificate cannot speak for the server.
        let mut names = vec![node.to_string()];
        let purpose = match role {
            Role::Server => {
                names.push(SERVER_NAME.to_owned());
                ExtendedKeyUsagePurpose::ServerAuth
            }
            Role::Node => ExtendedKeyUsagePurpose::ClientAuth,
        };
        params.subject_alt_names = CertificateParams::new(names).map_err(|e| cannot_make(&e))?.subject_alt_names;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![purpose];
        let mut issuer = CertificateParams::default();
        issuer.distinguished_name = name();
        let issued = params.signed_by(key, &Issuer::new(issuer, self.key.pair()));
        Ok(issued.map_err(|e| cannot_make(&e))?.der().clone())
    }
}

/// The certificates of a PEM file, at least one.
pub(crate) fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    let bytes = std::fs::read(path).map_err(|e| IdentityError::file(path, e))?;
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    match read {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        Ok(_) => Err(IdentityError::content(path, "holds no certificate")),
        Err(e) => Err(IdentityError::content(path, e)),
    }
}

/// Writes certificates as PEM.
pub(crate) fn write_certificates(path: &Path, chain: &[CertificateDer<'_>]) -> Result<(), IdentityError> {
    let text: String = chain.iter().map(|c| to_pem(c)).collect();
    durable::replace(path, text.as_bytes(), Access::Owner).map_err(|e| IdentityError::file(path, e))
}

/// From when to when a certificate holds.
pub(crate) fn validity(certificate: &CertificateDer<'_>) -> Option<(SystemTime, SystemTime)> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let time = |seconds: i64| Some(SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).ok()?));
    Some((time(parsed.validity().not_before.timestamp())?, time(parsed.validity().not_after.timestamp())?))
}

/// Whether two thirds of a certificate's time are over, or it is none: time to get another.
pub(crate) fn wants_renewal(certificate: &CertificateDer<'_>, now: SystemTime) -> bool {
    validity(certificate).is_none_or(|(from, until)| {
        let lifetime = until.duration_since(from).unwrap_or_default();
        now > from + lifetime * 2 / 3
    })
}

fn params(is_ca: IsCa, start: SystemTime, lifetime: Duration) -> Result<CertificateParams, IdentityError> {
    let mut params = CertificateParams::default();
    params.is_ca = is_ca;
    // Clocks differ.
    params.not_before = (start - CLOCK_TOLERANCE).into();
    params.not_after = (start + lifetime).into();
    let mut serial = [0; 16];
    let drawn = SystemRandom::new().fill(&mut serial);
    drawn.map_err(|_| IdentityError::Make { what: "certificate", reason: "no randomness".to_owned() })?;
    // A serial number is positive, and all certificates are of one length.
    serial[0] = serial[0] & 0x7f | 0x40;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    Ok(params)
}

fn name() -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, "fedburn authority");
    name
}

fn cannot_make(error: &rcgen::Error) -> IdentityError {
    IdentityError::Make { what: "certificate", reason: error.to_string() }
}

fn to_pem(certificate: &CertificateDer<'_>) -> String {
    let text = data_encoding::BASE64.encode(certificate);
    let lines = text.as_bytes().chunks(64).map(|line| String::from_utf8_lossy(line).into_owned() + "\n");
    format!("-----BEGIN CERTIFICATE-----\n{}-----END CERTIFICATE-----\n", lines.collect::<String>())
}

/// The name by which every server is known to TLS: who it is, the authority's key decides.
pub(crate) const SERVER_NAME: &str = "fedburn-server";
/// How long a node's or a server's certificate holds.
pub(crate) const LEAF_LIFETIME: Duration = Duration::from_secs(90 * 24 * 3600);
const AUTHORITY_LIFETIME: Duration = Duration::from_secs(20 * 365 * 24 * 3600);
const CLOCK_TOLERANCE: Duration = Duration::from_secs(300);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_authority_is_kept_and_certificates_carry_the_key() {
        let dir = tempfile::tempdir().unwrap();
        let made = Authority::open(dir.path()).unwrap();
        let read = Authority::open(dir.path()).unwrap();
        assert_eq!(made.certificate(), read.certificate());
        let key = PrivateKey::generate().unwrap();
        let leaf = read.issue(key.pair(), key.node_id(), Role::Node).unwrap();
        assert_eq!(NodeId::of_certificate(&leaf), Some(key.node_id()));
    }

    #[test]
    fn certificates_are_renewed_at_two_thirds() {
        let (key, day) = (PrivateKey::generate().unwrap(), Duration::from_secs(24 * 3600));
        let authority = Authority::new(PrivateKey::generate().unwrap()).unwrap();
        let leaf = authority.issue(key.pair(), key.node_id(), Role::Node).unwrap();
        let now = SystemTime::now();
        assert!(!wants_renewal(&leaf, now + 59 * day));
        assert!(wants_renewal(&leaf, now + 61 * day));
    }
}
