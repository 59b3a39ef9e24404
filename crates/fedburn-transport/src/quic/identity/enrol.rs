//! How a new node gets its first certificate, and a known one its next.
//!
//! A request is the node's public key (SubjectPublicKeyInfo) and its signature over the key and the connection's
//! keying material: it proves that the sender holds the key, and cannot be taken to another connection. The first
//! request is authenticated by the federation's secret besides; later ones by the certificate of the connection.

use aws_lc_rs::hmac;

use super::IdentityError;
use super::keys::{PrivateKey, PublicKey};

/// Keying material of one TLS connection, the same at both ends and nowhere else (RFC 5705).
pub(crate) type ChannelBinding = [u8; 32];

/// The label under which the keying material is exported.
pub(crate) const CHANNEL_LABEL: &[u8] = b"EXPORTER-fedburn-enrol";

/// A request for a certificate for `key`.
pub(crate) fn request(key: &PrivateKey, channel: &ChannelBinding) -> Result<Vec<u8>, IdentityError> {
    let mut request = key.public_key();
    request.extend(key.sign(&signed(&request, channel))?);
    Ok(request)
}

/// The key and its SubjectPublicKeyInfo of a request that its holder made on this connection.
pub(crate) fn verify_request<'a>(
    request: &'a [u8],
    channel: &ChannelBinding,
) -> Result<(PublicKey, &'a [u8]), IdentityError> {
    let refused = |reason| IdentityError::Enrolment { reason };
    let (spki, signature) =
        request.split_last_chunk::<SIGNATURE_LEN>().ok_or_else(|| refused("the request is too short"))?;
    let key = PublicKey::from_spki(spki).ok_or_else(|| refused("the key is not an Ed25519 key"))?;
    match key.verify(&signed(spki, channel), signature) {
        true => Ok((key, spki)),
        false => Err(refused("the request is not signed by its key on this connection")),
    }
}

/// What proves that the sender of `request` knows the federation's secret.
pub(crate) fn mac(secret: &[u8; 32], request: &[u8], channel: &ChannelBinding) -> [u8; 32] {
    let tag = hmac::sign(&mac_key(secret), &[request, channel].concat());
    let mut mac = [0; 32];
    // As long as a SHA-256.
    mac.copy_from_slice(tag.as_ref());
    mac
}

/// Checks what [`mac`] made, in constant time.
pub(crate) fn verify_mac(
    secret: &[u8; 32],
    request: &[u8],
    channel: &ChannelBinding,
    mac: &[u8],
) -> Result<(), IdentityError> {
    hmac::verify(&mac_key(secret), &[request, channel].concat(), mac)
        .map_err(|_| IdentityError::Enrolment { reason: "the join string's secret is not this server's" })
}

fn signed(spki: &[u8], channel: &ChannelBinding) -> Vec<u8> {
    [b"fedburn enrolment v1".as_slice(), spki, channel].concat()
}

fn mac_key(secret: &[u8; 32]) -> hmac::Key {
    hmac::Key::new(hmac::HMAC_SHA256, secret)
}

const SIGNATURE_LEN: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_holds_on_its_connection_for_its_key() {
        let key = PrivateKey::generate().unwrap();
        let made = request(&key, &[1; 32]).unwrap();
        assert_eq!(verify_request(&made, &[1; 32]).unwrap().1, key.public_key());
        assert!(verify_request(&made, &[2; 32]).is_err(), "another connection");
        for at in 0..made.len() {
            let mut changed = made.clone();
            changed[at] ^= 1;
            assert!(verify_request(&changed, &[1; 32]).is_err(), "byte {at}");
        }
        assert!(verify_request(&made[..40], &[1; 32]).is_err());
    }

    #[test]
    fn a_mac_needs_the_secret_and_the_connection() {
        let made = mac(&[3; 32], b"request", &[1; 32]);
        assert!(verify_mac(&[3; 32], b"request", &[1; 32], &made).is_ok());
        assert!(verify_mac(&[4; 32], b"request", &[1; 32], &made).is_err());
        assert!(verify_mac(&[3; 32], b"request!", &[1; 32], &made).is_err());
        assert!(verify_mac(&[3; 32], b"request", &[2; 32], &made).is_err());
    }
}
