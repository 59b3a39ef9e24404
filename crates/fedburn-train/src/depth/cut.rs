//! How a model is cut into parts that fit a budget.

use std::ops::Range;

use serde::Serialize;
use thiserror::Error;

use super::{Bytes, StepMemory};

/// The parts of a model that a client trains one after another, from input to output.
///
/// # Laws
/// The parts are consecutive and reach the last block. None takes more than the budget, and a part ends before the last
/// block only where the next block would not fit into it. Blocks before the first part are never trained: one of them
/// does not fit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Cut {
    /// The blocks that inputs go through: all but those before the first part that keep the shape of what they get.
    pub route: Vec<usize>,
    /// At least one.
    pub parts: Vec<Part>,
}

/// What is trained at a time, with the head; everything else is frozen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Part {
    /// Blocks, from 0.
    pub blocks: Range<usize>,
    /// Whether the stem is trained too: in the first part, where it sees what the stem makes.
    pub stem: bool,
    /// The block whose own classifier is trained in place of the head.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit: Option<usize>,
    /// What a step takes.
    pub bytes: Bytes,
}

/// A budget in which no block can be trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error(
    "insufficient memory: {}, expected at least {smallest} to train any block and {all} to train all of them",
    budget.rounded()
)]
pub struct TooLittleMemory {
    /// The budget.
    pub budget: Bytes,
    /// The smallest in which some block can be trained.
    pub smallest: Bytes,
    /// The smallest in which every block can be trained.
    pub all: Bytes,
}

impl StepMemory {
    /// Cuts the model for a budget: from input to output each block joins the part before it while that fits. Where a
    /// block does not fit alone, it and all before it are left untrained.
    ///
    /// # Errors
    /// [`TooLittleMemory`] where the last block is among them.
    pub fn cut(&self, budget: Bytes) -> Result<Cut, TooLittleMemory> {
        let count = self.num_blocks();
        let Some(first) = (0..count).find(|&first| self.needed_from(first) <= budget) else {
            let smallest = (0..count).map(|first| self.needed_from(first)).min().unwrap_or(budget);
            return Err(TooLittleMemory { budget, smallest, all: self.needed_from(0) });
        };
        let mut parts: Vec<Part> = Vec::new();
        for block in first..count {
            let joined = parts.last().map(|part| (part.blocks.start..block + 1, part.stem));
            let joined = joined.map(|(blocks, stem)| self.part(blocks, stem));
            match (joined.filter(|part| part.bytes <= budget), parts.last_mut()) {
                (Some(joined), Some(last)) => *last = joined,
                _ => {
                    let (blocks, stem) = (block..block + 1, block == first && self.sees_stem(first));
                    parts.push(self.part(blocks, stem));
                }
            }
        }
        let route = (0..count).filter(|&block| block >= first || !self.blocks[block].keeps_shape).collect();
        Ok(Cut { route, parts })
    }

    fn part(&self, blocks: Range<usize>, stem: bool) -> Part {
        Part { bytes: self.step(blocks.clone(), stem), exit: self.exit(&blocks, stem), blocks, stem }
    }

    /// The smallest budget in which every block from `first` can be trained.
    pub fn needed_from(&self, first: usize) -> Bytes {
        let alone = |block: usize| self.step(block..block + 1, block == first && self.sees_stem(first));
        (first..self.num_blocks()).map(alone).max().unwrap_or_default()
    }

    /// Whether the block `first` sees what the stem makes when it is the first to be trained: inputs go past all before
    /// it.
    fn sees_stem(&self, first: usize) -> bool {
        self.blocks[..first].iter().all(|size| size.keeps_shape)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::memory::Size;
    use super::*;

    const ACTIVATIONS: [u64; 9] = [65536, 65536, 65536, 49152, 32768, 32768, 24576, 16384, 16384];
    const PARAMETERS: [u64; 9] = [4672, 4672, 4672, 14432, 18560, 18560, 57536, 73984, 73984];

    fn size(parameters: u64, activations: u64, keeps_shape: bool) -> Size {
        Size { parameters, tensors: 0, activations, in_hand: 0, keeps_shape }
    }

    /// PreResNet-20 for ten classes and 32 by 32 pixels, trained with momentum in batches of 128.
    fn preresnet20() -> StepMemory {
        let block = |i: usize| size(PARAMETERS[i], ACTIVATIONS[i], i != 3 && i != 6);
        StepMemory {
            stem: size(464, 16384, false),
            blocks: (0..9).map(block).collect(),
            head: size(778, 8256, false),
            exits: Vec::new(),
            own_heads: false,
            batch: 128,
            input: 3072,
            workspace: 0,
            slots: 1,
            number: 4,
        }
    }

    /// The same with nothing counted but what blocks leave of one example.
    fn activations_only(memory: StepMemory) -> StepMemory {
        let only = |of: Size| size(0, of.activations, of.keeps_shape);
        let none = size(0, 0, false);
        StepMemory {
            blocks: memory.blocks.into_iter().map(only).collect(),
            stem: none,
            head: none,
            exits: Vec::new(),
            own_heads: false,
            batch: 1,
            input: 0,
            workspace: 0,
            slots: 0,
            number: 1,
        }
    }

    fn blocks(cut: &Cut) -> Vec<Range<usize>> {
        cut.parts.iter().map(|part| part.blocks.clone()).collect()
    }

    #[test]
    fn full_training_takes_what_the_formula_says() {
        let memory = preresnet20();
        assert_eq!(memory.parameters(), 272_314);
        assert_eq!(memory.lasting(0..9, true), Bytes(204_627_128));
        let activations =
            |memory: &StepMemory| memory.stem.activations + memory.head.activations + ACTIVATIONS.iter().sum::<u64>();
        assert_eq!(activations(&memory), 393_280);
        assert!((128.0 * 4.0 * 393_280.0 / 204_627_128.0f64 - 0.98).abs() < 0.005);
    }

    #[test]
    fn shares_of_the_activations_give_the_published_parts() {
        let memory = activations_only(preresnet20());
        for (of, parts, shares) in [
            (6, vec![0..1, 1..2, 2..3, 3..4, 4..6, 6..9], vec![0.1666, 0.1666, 0.1666, 0.125, 0.1666, 0.1458]),
            (3, vec![0..2, 2..4, 4..9], vec![0.3333, 0.2916, 0.3124]),
            (2, vec![0..3, 3..9], vec![0.4999, 0.4374]),
        ] {
            let cut = memory.cut(Bytes(393_280 / of)).unwrap();
            assert_eq!(blocks(&cut), parts, "1/{of}");
            assert_eq!(cut.route, Vec::from_iter(0..9));
            for (part, share) in cut.parts.iter().zip(shares) {
                let found = part.bytes.0 as f64 / 393_280.0;
                assert!((found - share).abs() < 1e-4, "1/{of}, {:?}: {found}, expected {share}", part.blocks);
            }
        }
    }

    #[test]
    fn enough_for_everything_is_one_part() {
        let memory = activations_only(preresnet20());
        let whole = Part { blocks: 0..9, stem: true, exit: None, bytes: memory.whole() };
        assert_eq!(memory.cut(Bytes(393_280)).unwrap(), Cut { route: Vec::from_iter(0..9), parts: vec![whole] });
    }

    #[test]
    fn with_everything_counted_the_same_parts_need_more() {
        let memory = preresnet20();
        for (largest, parts) in [
            (0.2312, vec![0..1, 1..2, 2..3, 3..4, 4..6, 6..9]),
            (0.3953, vec![0..2, 2..4, 4..9]),
            (0.5595, vec![0..3, 3..9]),
        ] {
            let bytes = |(i, range): (usize, &Range<usize>)| memory.lasting(range.clone(), i == 0);
            let most = parts.iter().enumerate().map(bytes).max().unwrap();
            assert!((most.0 as f64 / memory.lasting(0..9, true).0 as f64 - largest).abs() < 5e-5, "{largest}: {most}");
        }
    }

    #[test]
    fn an_eighth_goes_past_the_first_three_blocks() {
        let cut = activations_only(preresnet20()).cut(Bytes(393_280 / 8)).unwrap();
        assert_eq!(blocks(&cut), [3..4, 4..5, 5..6, 6..8, 8..9]);
        assert_eq!(cut.route, [3, 4, 5, 6, 7, 8]);
        assert!(cut.parts[0].stem && cut.parts[1..].iter().all(|part| !part.stem));
    }

    #[test]
    fn layers_of_a_transformer_are_shared_out_evenly() {
        let layer = size(444_864, 15_585, true);
        let memory = StepMemory {
            stem: size(148_800, 3072, false),
            blocks: vec![layer; 12],
            head: size(2_314, 384, false),
            ..preresnet20()
        };
        let memory = activations_only(memory);
        let total = 12 * 15_585 + 3072 + 384;
        for (of, parts) in [(6, 6), (3, 3), (2, 2), (1, 1)] {
            let cut = memory.cut(Bytes(total / of)).unwrap();
            let each = 12 / parts;
            assert_eq!(blocks(&cut), (0..parts).map(|i| i * each..(i + 1) * each).collect::<Vec<_>>(), "1/{of}");
        }
    }

    #[test]
    fn too_little_says_what_would_do() {
        let memory = preresnet20();
        let error = memory.cut(Bytes(1 << 20)).unwrap_err();
        // Block 8, or 9, which is as large, everything before frozen; when it is at work the head has its gradient.
        let last = 4 * (272_314 + 2 * 74_762 + 128 * (3072 + 16_384));
        let last = last.max(4 * (272_314 + 74_762 + 778 + 128 * (3072 + 16_384 + 8_256)));
        assert_eq!(error.smallest, Bytes(last));
        assert_eq!(error.all, memory.step(0..1, true));
        assert!(error.to_string().starts_with("insufficient memory: 1.00 MiB, expected at least"), "{error}");
        let cut = memory.cut(error.smallest).unwrap();
        assert_eq!(blocks(&cut), [7..8, 8..9]);
        assert_eq!(cut.route, [3, 6, 7, 8], "blocks that change the shape stay on the way");
        assert!(!cut.parts[0].stem, "they lie between it and the stem");
    }

    #[test]
    fn what_is_in_hand_comes_on_top_and_gradients_take_the_place_of_activations() {
        let in_hand = |of: Size, in_hand| Size { in_hand, ..of };
        let memory = StepMemory {
            stem: in_hand(size(1, 5, false), 50),
            blocks: vec![in_hand(size(2, 10, true), 9), in_hand(size(300, 20, true), 4)],
            head: in_hand(size(1, 7, false), 2),
            exits: Vec::new(),
            own_heads: false,
            batch: 10,
            input: 3,
            workspace: 100,
            slots: 1,
            number: 4,
        };
        let bytes = |lasting: u64, most: u64| Bytes(4 * (304 + 100 + 10 * 3 + lasting + most));
        assert_eq!(memory.whole(), bytes(304, 304 + 10 * (5 + 50)), "at the stem everything else has a gradient");
        assert_eq!(memory.step(0..1, true), bytes(4, 4 + 10 * (5 + 50)));
        assert_eq!(memory.step(0..1, false), bytes(3, 10 * 50), "the frozen stem");
        let small = StepMemory { stem: size(1, 5, false), ..memory.clone() };
        assert_eq!(small.whole(), bytes(304, 301 + 10 * (5 + 10 + 20 + 4)), "the second block");
        assert_eq!(small.step(0..1, true), bytes(4, 304), "the model once more, to be sent");
        assert_eq!(small.step(1..2, false), bytes(301, 301 + 10 * (20 + 4)));
        let tensors = |of: Size, tensors| Size { tensors, ..of };
        let blocks = vec![tensors(small.blocks[0], 2), tensors(small.blocks[1], 3)];
        let kept_account_of = StepMemory { blocks, ..small.clone() };
        assert_eq!(kept_account_of.step(1..2, false).0 - small.step(1..2, false).0, 4096 * (5 + 3));
        let deep = StepMemory { head: in_hand(size(1, 7, false), 20), ..small };
        assert_eq!(deep.step(0..1, true), bytes(4, 1 + 10 * (5 + 10 + 7 + 20)), "the head");
        assert_eq!(deep.lasting(0..1, true), Bytes(4 * (304 + 2 * 4 + 10 * (5 + 10 + 7))));
    }

    #[test]
    fn parts_of_the_model_have_heads_of_their_own_and_the_whole_has_its_head() {
        let exits = (0..9).map(|block| size(1000, ACTIVATIONS[block] / 64, false)).collect();
        let memory = StepMemory { exits, own_heads: true, ..preresnet20() };
        assert_eq!(memory.parameters(), 272_314 + 9000);
        let heads = |cut: &Cut| cut.parts.iter().map(|part| part.exit).collect::<Vec<_>>();
        assert_eq!(heads(&memory.cut(memory.whole()).unwrap()), [None]);
        let cut = memory.cut(memory.needed_from(0)).unwrap();
        assert!(cut.parts.len() > 1);
        assert!(cut.parts.iter().all(|part| part.exit == Some(part.blocks.end - 1)), "{cut:?}");
        let lasting = |exit: u64, kept: u64| Bytes(4 * (281_314 + 2 * (73_984 + exit) + 128 * (16_384 + kept)));
        assert_eq!(memory.lasting(8..9, false), lasting(1000, 256));
        let shared = StepMemory { own_heads: false, ..memory };
        assert_eq!(shared.lasting(8..9, false), lasting(778, 8256));
    }

    fn any_memory() -> impl Strategy<Value = StepMemory> {
        let size = |(parameters, activations, in_hand, keeps_shape)| Size {
            parameters,
            tensors: 0,
            activations,
            in_hand,
            keeps_shape,
        };
        let sizes = move || (0u64..50, 0u64..50, 0u64..50, any::<bool>()).prop_map(size);
        (sizes(), prop::collection::vec(sizes(), 1..12), sizes(), 1u64..5, 0u64..3).prop_map(
            |(stem, blocks, head, batch, slots)| {
                let (input, workspace) = (3, 7);
                let (exits, own_heads) = (Vec::new(), false);
                StepMemory { stem, blocks, head, exits, own_heads, batch, input, workspace, slots, number: 4 }
            },
        )
    }

    proptest! {
        #[test]
        fn cuts_keep_their_laws(memory in any_memory(), budget in 1u64..8000) {
            let (count, budget) = (memory.num_blocks(), Bytes(budget));
            let Ok(cut) = memory.cut(budget) else {
                let error = memory.cut(budget).unwrap_err();
                prop_assert!(budget < error.smallest && error.smallest <= error.all);
                return Ok(());
            };
            let first = cut.parts[0].blocks.start;
            prop_assert_eq!(cut.parts.last().unwrap().blocks.end, count);
            for (i, part) in cut.parts.iter().enumerate() {
                prop_assert!(!part.blocks.is_empty() && part.bytes <= budget);
                prop_assert_eq!(part.bytes, memory.step(part.blocks.clone(), part.stem));
                prop_assert_eq!(part.stem, i == 0 && memory.sees_stem(first));
                if let Some(next) = cut.parts.get(i + 1) {
                    prop_assert_eq!(part.blocks.end, next.blocks.start);
                    prop_assert!(memory.step(part.blocks.start..part.blocks.end + 1, part.stem) > budget);
                }
            }
            // Were one block more trained, some block would not fit.
            prop_assert!(first == 0 || memory.needed_from(first - 1) > budget);
            let left_out: Vec<usize> = (0..count).filter(|block| !cut.route.contains(block)).collect();
            prop_assert!(left_out.iter().all(|&block| block < first && memory.blocks[block].keeps_shape));
            prop_assert!((0..first).all(|block| !memory.blocks[block].keeps_shape || left_out.contains(&block)));
        }

        #[test]
        fn the_smallest_budget_works_and_less_does_not(memory in any_memory()) {
            let Err(error) = memory.cut(Bytes(0)) else { return Ok(()) };
            prop_assert!(memory.cut(error.smallest).is_ok());
            prop_assert!(error.smallest.0 == 0 || memory.cut(Bytes(error.smallest.0 - 1)).is_err());
            let whole = memory.cut(memory.whole()).unwrap();
            prop_assert_eq!(whole.parts, vec![Part { blocks: 0..memory.num_blocks(), stem: true, exit: None, bytes: memory.whole() }]);
        }
    }
}
