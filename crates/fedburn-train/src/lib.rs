//! The client half: local training rules and evaluation.
