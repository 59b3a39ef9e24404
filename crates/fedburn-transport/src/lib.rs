//! Carries requests and replies between server and clients: the in-process worker pool.
