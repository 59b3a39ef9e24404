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
    /// Of those who hold values that do not count.
    uncounted: BTreeMap<ClientId, Uncounted>,
    parts: BTreeMap<Vec<SliceName>, (Slice, ParamVector<B>)>,
}

/// Where values lie that do not count.
struct Uncounted {
    /// In what the client holds.
    own: Vec<Range<usize>>,
    /// In the whole model.
    whole: Vec<Range<usize>>,
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
        let mut held = Self {
            clients: BTreeMap::new(),
            times: BTreeMap::new(),
            uncounted: BTreeMap::new(),
            parts: BTreeMap::new(),
        };
        let Some(Holdings { schemas, sub_models }) = holdings else { return Ok(held) };
        for client in cohort {
            held.times.insert(*client, sub_models.times(round, *client));
            let names = sub_models.held(round, *client);
            if !held.parts.contains_key(&names)
                && let Some(slice) = schemas.slice(&names)?
            {
                let part = slice.take(whole)?.through(down, rounding)?;
                held.parts.insert(names.clone(), (slice, part));
            }
            if held.parts.contains_key(&names) {
                held.clients.insert(*client, names);
            }
            held.leave_out(*client, sub_models.uncounted(round, *client), whole.num_values());
        }
        Ok(held)
    }

    /// Lets `ranges` of what `client` holds of a model of `len` values not count.
    fn leave_out(&mut self, client: ClientId, ranges: Vec<Range<usize>>, len: usize) {
        let part = self.part(client).map(|(slice, _)| slice);
        let own_len = part.map_or(len, |slice| slice.part().num_values());
        let within = |range: Range<usize>| range.start.min(own_len)..range.end.min(own_len);
        let own: Vec<_> = ranges.into_iter().map(within).filter(|range| !range.is_empty()).collect();
        if own.is_empty() {
            return;
        }
        let mut marks = vec![0.0; own_len];
        own.iter().for_each(|range| marks[range.clone()].fill(1.0));
        if let Some(slice) = part {
            let own_marks = std::mem::replace(&mut marks, vec![0.0; len]);
            slice.put_values(&own_marks, &mut marks);
        }
        let mut whole: Vec<Range<usize>> = Vec::new();
        for (index, _) in marks.iter().enumerate().filter(|(_, mark)| **mark > 0.0) {
            match whole.last_mut() {
                Some(last) if last.end == index => last.end += 1,
                _ => whole.push(index..index + 1),
            }
        }
        self.uncounted.insert(client, Uncounted { own, whole });
    }

    /// Which values of what `client` holds do not count.
    pub(crate) fn uncounted(&self, client: ClientId) -> &[Range<usize>] {
        self.uncounted.get(&client).map_or(&[], |uncounted| &uncounted.own)
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
    /// `None` where everybody holds the whole and all of it counts.
    pub(crate) fn weights(
        &self,
        len: usize,
        clients: impl Iterator<Item = (ClientId, u64)>,
    ) -> Option<Vec<(Range<usize>, u64)>> {
        let mut whole = 0;
        let mut by_part: BTreeMap<&[SliceName], u64> = BTreeMap::new();
        let mut left_out: Vec<(&Range<usize>, u64)> = Vec::new();
        for (client, weight) in clients {
            let uncounted = self.uncounted.get(&client).map_or(&[][..], |uncounted| &uncounted.whole);
            left_out.extend(uncounted.iter().map(|range| (range, weight)));
            match self.names(client) {
                [] => whole += weight,
                names => *by_part.entry(names).or_default() += weight,
            }
        }
        if by_part.is_empty() && left_out.is_empty() {
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
        for (range, weight) in left_out {
            changes.entry(range.start).or_default().1 += weight;
            changes.entry(range.end).or_default().0 += weight;
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
