//! Who holds which part of the model in a round, and how much each counts.

use std::collections::BTreeMap;
use std::num::NonZeroU64;
use std::ops::Range;
use std::sync::Arc;

use burn::tensor::backend::Backend;
use fedburn_core::{ClientId, Codec, CodecError, ParamVector, RoundIndex, Schemas, Seed, Slice, SliceName, SubModels};

/// The parts of the model that there are, and the rule that gives them to clients.
pub(crate) struct Holdings {
    pub(crate) schemas: Schemas,
    pub(crate) sub_models: Arc<dyn SubModels>,
}

/// What the clients of a round hold; of those that are not named, the whole model.
pub(crate) struct Held<B: Backend> {
    clients: BTreeMap<ClientId, Vec<SliceName>>,
    times: BTreeMap<ClientId, NonZeroU64>,
    parts: BTreeMap<Vec<SliceName>, (Slice, ParamVector<B>)>,
}

impl<B: Backend> Held<B> {
    /// What each of `cohort` holds of the model `whole`, as it is written in `down`. A part that many hold is cut out once.
    ///
    /// # Errors
    /// [`CodecError`] where there is no such part.
    pub(crate) fn new(
        holdings: Option<&Holdings>,
        round: RoundIndex,
        cohort: &[ClientId],
        down: Codec,
        whole: &ParamVector<B>,
        rounding: Seed,
    ) -> Result<Self, CodecError> {
        let mut held = Self { clients: BTreeMap::new(), times: BTreeMap::new(), parts: BTreeMap::new() };
        let Some(Holdings { schemas, sub_models }) = holdings else { return Ok(held) };
        for client in cohort {
            held.times.insert(*client, sub_models.times(round, *client));
            let names = sub_models.held(round, *client);
            if !held.parts.contains_key(&names) {
                let Some(slice) = schemas.slice(&names)? else { continue };
                let part = slice.take(whole)?.through(down, rounding)?;
                held.parts.insert(names.clone(), (slice, part));
            }
            held.clients.insert(*client, names);
        }
        Ok(held)
    }

    /// The names of the parts that `client` holds; none for the whole.
    pub(crate) fn names(&self, client: ClientId) -> &[SliceName] {
        self.clients.get(&client).map_or(&[], |names| names)
    }

    /// Where the part of `client` lies and what was sent of it; `None` for the whole.
    pub(crate) fn part(&self, client: ClientId) -> Option<&(Slice, ParamVector<B>)> {
        self.parts.get(self.clients.get(&client)?)
    }

    /// How many times `client` counts.
    pub(crate) fn times(&self, client: ClientId) -> u64 {
        self.times.get(&client).copied().unwrap_or(NonZeroU64::MIN).get()
    }

    /// The weight of those who hold it, for each stretch of a model of `len` values, given the weight of each client;
    /// `None` where everybody holds the whole.
    pub(crate) fn weights(
        &self,
        len: usize,
        clients: impl Iterator<Item = (ClientId, u64)>,
    ) -> Option<Vec<(Range<usize>, u64)>> {
        let mut whole = 0;
        let mut by_part: BTreeMap<&[SliceName], u64> = BTreeMap::new();
        for (client, weight) in clients {
            match self.names(client) {
                [] => whole += weight,
                names => *by_part.entry(names).or_default() += weight,
            }
        }
        if by_part.is_empty() {
            return None;
        }
        // Where the weight changes, and by how much: more first, so that it is never below zero.
        let mut changes: BTreeMap<usize, (u64, u64)> = [(0, (whole, 0)), (len, (0, whole))].into();
        for (names, weight) in by_part {
            for range in self.parts.get(names).map_or(&[][..], |(slice, _)| slice.ranges()) {
                changes.entry(range.start).or_default().0 += weight;
                changes.entry(range.end).or_default().1 += weight;
            }
        }
        let (mut stretches, mut from, mut weight) = (Vec::new(), 0, 0);
        for (at, (more, less)) in changes {
            if at > from {
                stretches.push((from..at, weight));
                from = at;
            }
            weight = weight + more - less;
        }
        Some(stretches)
    }
}
