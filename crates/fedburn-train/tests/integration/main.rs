//! Local training from outside, one file a subject; one program, so that the backends are compiled once.
#![allow(clippy::unwrap_used)]

mod client;
mod common;
mod corrections;
mod depthwise;
mod ensembles;
mod evaluate;
mod fedgen;
mod heterofl;
mod moon;
mod ntd;
mod personal;
mod resampling;
mod sgd;
mod sharpened;
mod sharpness;
