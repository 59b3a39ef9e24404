//! Every committed input through its decoder, and some thousand that are a few edits away from one.
//!
//! `cargo xtask fault fuzz` searches for more.
#![allow(clippy::unwrap_used)]

use std::cell::Cell;
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use fedburn_fuzz::{corpus, decoders};
use proptest::prelude::*;
use proptest::sample::{Index, select};
use proptest::test_runner::{RngAlgorithm, TestError, TestRng, TestRunner};

/// Inputs of each decoder besides the committed ones.
const EDITED: u32 = 300;

#[test]
fn every_decoder_has_a_corpus_and_every_corpus_a_decoder() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    let file = |entry: fs::DirEntry| entry.file_name().into_string().unwrap();
    let files: BTreeSet<String> = fs::read_dir(&folder).unwrap().map(|entry| file(entry.unwrap())).collect();
    let expected: BTreeSet<String> = decoders().iter().map(|decoder| format!("{}.hex", decoder.name)).collect();
    assert_eq!(files, expected);
    let size: u64 = files.iter().map(|file| fs::metadata(folder.join(file)).unwrap().len()).sum();
    assert!(size < 1 << 20, "{size} bytes: committed inputs stay below a mebibyte");
}

#[test]
fn committed_inputs_keep_every_law() {
    for decoder in decoders() {
        let inputs = corpus(&decoder.name).unwrap();
        let accepted = inputs.iter().filter(|input| decoder.read(input).accepted).count();
        assert!(accepted > 0, "{}: nothing was accepted, so what is behind was not tried", decoder.name);
    }
}

#[test]
fn edited_inputs_keep_every_law() {
    for decoder in decoders() {
        let config = ProptestConfig { cases: EDITED, failure_persistence: None, ..ProptestConfig::default() };
        let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &[7; 32]);
        let edited = |mut input: Vec<u8>, edits: &[Edit]| {
            edits.iter().for_each(|edit| edit.apply(&mut input));
            input.truncate(decoder.longest);
            input
        };
        let inputs = (select(corpus(&decoder.name).unwrap()), prop::collection::vec(edit(decoder.longest), 1..4));
        let refused = Cell::new(0);
        let tried = TestRunner::new_with_rng(config, rng).run(&inputs, |(input, edits)| {
            refused.set(refused.get() + u32::from(!decoder.read(&edited(input, &edits)).accepted));
            Ok(())
        });
        if let Err(TestError::Fail(reason, (input, edits))) = &tried {
            let hex: String = edited(input.clone(), edits).iter().map(|byte| format!("{byte:02x}")).collect();
            panic!("{}: {reason}; the input, to go into its corpus:\n{hex}", decoder.name);
        }
        assert!(tried.is_ok(), "{}: no inputs could be made", decoder.name);
        assert!(refused.get() > 0, "{}: nothing was refused, so nothing was tried", decoder.name);
    }
}

/// Some bytes in the place of some others.
#[derive(Clone, Debug)]
struct Edit {
    start: Index,
    removed: usize,
    bytes: Vec<u8>,
    repeated: usize,
}

impl Edit {
    fn apply(&self, input: &mut Vec<u8>) {
        let start = self.start.index(input.len() + 1);
        let end = (start + self.removed).min(input.len());
        input.splice(start..end, self.bytes.repeat(self.repeated));
    }
}

/// Small ones, and seldom one as long as an input can be: long lists of small elements cost the most memory.
fn edit(longest: usize) -> impl Strategy<Value = Edit> {
    let byte = prop_oneof![any::<u8>(), select(vec![0, 1, 0x7f, 0x80, 0xff, b'"', b'\n'])];
    let repeated = prop_oneof![50 => Just(1), 1 => Just(longest)];
    (any::<Index>(), 0..9usize, prop::collection::vec(byte, 0..6), repeated)
        .prop_map(|(start, removed, bytes, repeated)| Edit { start, removed, bytes, repeated })
}
