//! How much memory each thread holds: an allocator that counts, and what it counted.
//!
//! What a client's training takes can only be measured where all of it happens on one thread, as here, and apart from
//! what other threads do meanwhile. Memory counts for the thread that asked for it, and is taken off the one that frees
//! it: work that hands its results to another thread ends with more than it began with, and only differences over a
//! piece of work mean something.
//!
//! # Examples
//!
//! ```
//! use fedburn_meter::{Counting, held, most, restart};
//!
//! #[global_allocator]
//! static COUNTING: Counting = Counting;
//!
//! let before = held();
//! restart();
//! let kept = vec![0u8; 1000];
//! drop(vec![0u8; 5000]);
//! assert_eq!((held() - before, most() - before), (1000, 6000));
//! # drop(kept);
//! ```

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod counting;

pub use counting::{Counting, held, is_counting, most, peak, restart};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
