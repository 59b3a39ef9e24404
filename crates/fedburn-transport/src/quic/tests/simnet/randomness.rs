//! Cryptography whose randomness comes from the world's seed: real keys, real TLS, the same in every run.
//!
//! A world lives on one thread, which its randomness belongs to.

use std::cell::RefCell;
use std::sync::Arc;

use aws_lc_rs::agreement::{PrivateKey, UnparsedPublicKey, X25519, agree};
use fedburn_core::Seed;
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use rustls::crypto::{
    ActiveKeyExchange, CryptoProvider, GetRandomFailed, SecureRandom, SharedSecret, SupportedKxGroup,
};
use rustls::{Error, NamedGroup};

use crate::quic::tls;

thread_local! {
    static RANDOM: RefCell<ChaCha8Rng> = RefCell::new(Seed::new(0).rng());
}

/// Starts this thread's randomness anew.
pub(super) fn begin(seed: Seed) {
    RANDOM.set(seed.rng());
}

/// Cryptography that draws from this thread's randomness.
pub(super) fn provider() -> Arc<CryptoProvider> {
    let real = CryptoProvider::clone(&tls::provider());
    Arc::new(CryptoProvider { secure_random: &Seeded, kx_groups: vec![&Seeded], ..real })
}

#[derive(Debug)]
struct Seeded;

impl SecureRandom for Seeded {
    fn fill(&self, buffer: &mut [u8]) -> Result<(), GetRandomFailed> {
        RANDOM.with_borrow_mut(|random| random.fill_bytes(buffer));
        Ok(())
    }
}

impl SupportedKxGroup for Seeded {
    fn start(&self) -> Result<Box<dyn ActiveKeyExchange>, Error> {
        let mut secret = [0; 32];
        RANDOM.with_borrow_mut(|random| random.fill_bytes(&mut secret));
        let key = PrivateKey::from_private_key(&X25519, &secret).unwrap();
        let public = key.compute_public_key().unwrap().as_ref().to_vec();
        Ok(Box::new(Exchange { key, public }))
    }

    fn name(&self) -> NamedGroup {
        NamedGroup::X25519
    }
}

struct Exchange {
    key: PrivateKey,
    public: Vec<u8>,
}

impl ActiveKeyExchange for Exchange {
    fn complete(self: Box<Self>, peer: &[u8]) -> Result<SharedSecret, Error> {
        let wrong = Error::General("no key of X25519".to_owned());
        agree(&self.key, UnparsedPublicKey::new(&X25519, peer), wrong, |secret| Ok(SharedSecret::from(secret)))
    }

    fn pub_key(&self) -> &[u8] {
        &self.public
    }

    fn group(&self) -> NamedGroup {
        NamedGroup::X25519
    }
}
