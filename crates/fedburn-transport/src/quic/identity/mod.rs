//! Who is who: keys, certificates, and which nodes may take part.
//!
//! An identity is an Ed25519 key. A server's first start makes a certificate authority; it certifies the server, and
//! every node that shows the secret of the join string. Both sides authenticate themselves in every connection, and
//! there is no mode without.

mod authority;
pub(crate) mod enrol;
mod error;
mod join;
mod keys;
mod node;
mod operator;
mod registry;
mod server;
mod stamp;

pub use error::IdentityError;
pub use join::JoinString;
pub use keys::NodeId;
pub use node::NodeIdentity;
pub use operator::{ServerRecord, page_token};
pub use registry::{NodeRecord, NodeRegistry, Standing};
pub use server::ServerIdentity;

pub(crate) use authority::SERVER_NAME;
#[cfg(test)]
pub(crate) use authority::{Authority, Role};
#[cfg(feature = "fuzz")]
pub(crate) use authority::{validity, wants_renewal};
#[cfg(test)]
pub(crate) use keys::PrivateKey;
pub(crate) use node::spki_hash;
