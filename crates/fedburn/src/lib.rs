//! Federated learning in Rust on burn: the facade over the fedburn crates.
