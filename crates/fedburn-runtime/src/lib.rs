//! The server loop, samplers, populations, stores, checkpoints and observers.
