//! Searches inputs for one decoder, guided by what the code does with them.
//!
//! The environment's `FEDBURN_FUZZ` names it; without, the decoders are listed with the longest input and the bound of
//! each. All arguments are libFuzzer's.
#![no_main]

use std::cell::{Cell, OnceCell};

use fedburn_fuzz::{Decoder, decoders};
use libfuzzer_sys::fuzz_target;

thread_local! {
    static DECODER: OnceCell<Decoder> = const { OnceCell::new() };
    static HELD: Cell<usize> = const { Cell::new(0) };
}

fuzz_target!(
    init: {
        let name = std::env::var("FEDBURN_FUZZ").unwrap_or_default();
        match decoders().into_iter().find(|decoder| decoder.name == name) {
            Some(decoder) => drop(DECODER.with(|chosen| chosen.set(decoder))),
            None => {
                decoders().iter().for_each(|Decoder { name, longest, bound, .. }| println!("{name} {longest} {bound}"));
                std::process::exit(i32::from(!name.is_empty()));
            }
        }
    },
    |input: &[u8]| {
        let verdict = DECODER.with(|decoder| decoder.get().map(|decoder| decoder.read(input)));
        let held = verdict.map_or(0, |verdict| verdict.held);
        if held > HELD.replace(held.max(HELD.get())) {
            eprintln!("held: {held}");
        }
    }
);
