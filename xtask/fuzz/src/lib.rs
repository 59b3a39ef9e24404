//! Everything that reads bytes of a peer, a file or a user, and what must hold whatever the bytes are: no panic, no more
//! memory than a bound, and the decoder's own laws.
//!
//! [`decoders`] is the one list. `corpus/<decoder>.hex` holds inputs that each go through a decoder in a way of their own,
//! one a line; `cargo xtask fault fuzz` searches for more, guided by what the code does with them.

mod corpus;
mod decoder;
mod decoders;

pub use corpus::corpus;
pub use decoder::{Decoder, Verdict};
pub use decoders::decoders;

/// What decoders hold is measured by it.
#[global_allocator]
static COUNTING: fedburn_meter::Counting = fedburn_meter::Counting;
