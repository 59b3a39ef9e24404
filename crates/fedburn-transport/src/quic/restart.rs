//! How nodes learn soon that their server was killed and is back.
//!
//! A server that was killed said nothing, and its next life does not know the connections of the last. QUIC has a
//! message for that (the stateless reset, RFC 9000, section 10.3): who gets a packet of an unknown connection answers
//! with a token that only the server of that connection can make. The key behind it comes from the server's own key, so
//! that it is the same in every life; a node hears of the restart with the first packet that it sends.

use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::hmac;
use quinn::{ConnectionId, ConnectionIdGenerator, EndpointConfig};
use rustls::crypto::SecureRandom;

/// Lets an endpoint reset connections of earlier lives of the server with this `secret` key.
pub(crate) fn resets(config: &mut EndpointConfig, secret: &[u8], random: &'static dyn SecureRandom) {
    let key = blake3::derive_key("fedburn/1 stateless resets", secret);
    config.reset_key(Arc::new(hmac::Key::new(hmac::HMAC_SHA256, &key)));
    config.cid_generator(|| Box::new(AnyLife(random)));
}

/// Random connection ids. The library's own generator tells those of this life from others, which it does not answer.
struct AnyLife(&'static dyn SecureRandom);

impl ConnectionIdGenerator for AnyLife {
    fn generate_cid(&mut self) -> ConnectionId {
        let mut id = [0; CONNECTION_ID];
        // Without randomness there is no TLS either; an id that is taken is drawn again.
        let _ = self.0.fill(&mut id);
        ConnectionId::new(&id)
    }

    fn cid_len(&self) -> usize {
        CONNECTION_ID
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

/// Bytes of a connection id.
const CONNECTION_ID: usize = 8;
