//! A part of a model: some of its tensors, or fewer of their channels.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

use burn::tensor::backend::Backend;

use super::schema::ParamSchema;
use super::vector::ParamVector;
use crate::SchemaError;

/// The name of a part of the model, known to the server and its nodes from the plan.
pub type SliceName = Cow<'static, str>;

/// Which values of a whole model a sub-model holds: tensors of the same paths in the same order, of which some are
/// absent and of others only the leading corner is there, the first `shape[i]` places of each dimension `i`.
///
/// So the sub-model's schema says everything: one without the first blocks, one of half the channels.
///
/// # Laws
/// `put` of what was `take`n changes nothing; `take` of what was `put` gives it back.
#[derive(Clone, Debug)]
pub struct Slice {
    whole: Arc<ParamSchema>,
    part: Arc<ParamSchema>,
    /// Where the part's values lie in the whole, in the order of both.
    ranges: Vec<Range<usize>>,
}

impl Slice {
    /// The place of `part` in `whole`.
    ///
    /// # Errors
    /// [`SchemaError::UnknownPath`] for a tensor that the whole does not have, or has before the one before it,
    /// [`SchemaError::Rank`] and [`SchemaError::Corner`] for one that is no corner of the whole's,
    /// [`SchemaError::Empty`] for a part without values.
    pub fn new(whole: Arc<ParamSchema>, part: Arc<ParamSchema>) -> Result<Self, SchemaError> {
        let mut ranges: Vec<Range<usize>> = Vec::new();
        let mut rest = whole.entries().iter();
        for entry in part.entries() {
            let unknown = || SchemaError::UnknownPath { path: entry.path.clone() };
            let of = rest.find(|of| of.path == entry.path && of.kind == entry.kind).ok_or_else(unknown)?;
            if of.shape.len() != entry.shape.len() {
                let (expected, found) = (of.shape.len(), entry.shape.len());
                return Err(SchemaError::Rank { path: entry.path.clone(), expected, found });
            }
            if entry.shape.iter().zip(&of.shape).any(|(part, whole)| part > whole) {
                let (path, whole, found) = (entry.path.clone(), of.shape.clone(), entry.shape.clone());
                return Err(SchemaError::Corner { path, whole, found });
            }
            for range in corner(&entry.shape, &of.shape) {
                let range = of.offset + range.start..of.offset + range.end;
                match ranges.last_mut() {
                    Some(last) if last.end == range.start => last.end = range.end,
                    _ => ranges.push(range),
                }
            }
        }
        if part.num_values() == 0 {
            return Err(SchemaError::Empty);
        }
        Ok(Self { whole, part, ranges })
    }

    /// The schema of the whole model.
    pub fn whole(&self) -> &Arc<ParamSchema> {
        &self.whole
    }

    /// The schema of the part.
    pub fn part(&self) -> &Arc<ParamSchema> {
        &self.part
    }

    /// Where the part's values lie in the whole: ascending, apart, in the order of the part.
    pub fn ranges(&self) -> &[Range<usize>] {
        &self.ranges
    }

    /// The part of a whole vector.
    ///
    /// # Errors
    /// [`SchemaError::Mismatch`].
    pub fn take<B: Backend>(&self, whole: &ParamVector<B>) -> Result<ParamVector<B>, SchemaError> {
        self.whole.ensure_same(whole.schema())?;
        let values = whole.to_host();
        let taken = self.ranges.iter().flat_map(|range| &values[range.clone()]).copied().collect();
        ParamVector::from_host(taken, self.part.clone(), &whole.device())
    }

    /// A whole vector with the values of `part` where it holds some, and those of `rest` elsewhere.
    ///
    /// # Errors
    /// [`SchemaError::Mismatch`] for either.
    pub fn put<B: Backend>(&self, part: &ParamVector<B>, rest: &ParamVector<B>) -> Result<ParamVector<B>, SchemaError> {
        self.part.ensure_same(part.schema())?;
        self.whole.ensure_same(rest.schema())?;
        let mut values = rest.to_host();
        self.put_values(&part.to_host(), &mut values);
        ParamVector::from_host(values, self.whole.clone(), &rest.device())
    }

    /// As [`Slice::put`], for values on the host; what is too short on either side is left out.
    pub fn put_values(&self, part: &[f32], whole: &mut [f32]) {
        let mut part = part;
        for range in &self.ranges {
            let (Some((now, later)), Some(place)) = (part.split_at_checked(range.len()), whole.get_mut(range.clone()))
            else {
                return;
            };
            place.copy_from_slice(now);
            part = later;
        }
    }
}

/// The flat ranges of the leading corner `part` of a tensor of shape `whole`.
fn corner(part: &[usize], whole: &[usize]) -> Vec<Range<usize>> {
    // Trailing dimensions that are whole lie together with one that is not.
    let Some(cut) = part.iter().zip(whole).rposition(|(part, whole)| part != whole) else {
        return std::iter::once(0..whole.iter().product()).collect();
    };
    let inner: usize = whole[cut + 1..].iter().product();
    let (run, stride) = (part[cut] * inner, whole[cut] * inner);
    let mut starts = vec![0];
    for (dim, size) in part[..cut].iter().zip(&whole[..cut]) {
        starts = starts.iter().flat_map(|start| (0..*dim).map(move |index| start * size + index)).collect();
    }
    starts.into_iter().map(|start| start * stride..start * stride + run).filter(|range| !range.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use burn_flex::{Flex, FlexDevice};
    use proptest::prelude::*;

    use super::*;
    use crate::{ParamEntry, ParamKind};

    fn schema(entries: &[(&str, &[usize])]) -> Arc<ParamSchema> {
        let entry = |(path, shape): &(&str, &[usize])| ParamEntry::new(*path, shape.to_vec(), ParamKind::Weight);
        Arc::new(ParamSchema::new(entries.iter().map(entry).collect()).unwrap())
    }

    fn vector(schema: &Arc<ParamSchema>, values: impl Iterator<Item = f32>) -> ParamVector<Flex> {
        ParamVector::from_host(values.take(schema.num_values()).collect(), schema.clone(), &FlexDevice).unwrap()
    }

    #[test]
    fn a_corner_of_a_matrix_and_an_absent_tensor() {
        let whole = schema(&[("a", &[3, 3]), ("b", &[2]), ("c", &[2, 2])]);
        let slice = Slice::new(whole.clone(), schema(&[("a", &[2, 2]), ("c", &[2, 2])])).unwrap();
        assert_eq!(slice.ranges(), [0..2, 3..5, 11..15]);
        let counted = vector(&whole, (0..).map(|i| i as f32));
        let part = slice.take(&counted).unwrap();
        assert_eq!(part.to_host(), [0.0, 1.0, 3.0, 4.0, 11.0, 12.0, 13.0, 14.0]);
        let put = slice.put(&part, &ParamVector::zeros(whole, &FlexDevice)).unwrap();
        assert_eq!(put.to_host(), [0., 1., 0., 3., 4., 0., 0., 0., 0., 0., 0., 11., 12., 13., 14.]);
    }

    #[test]
    fn what_is_no_part_is_refused_by_name() {
        let whole = schema(&[("a", &[3, 3]), ("b", &[2])]);
        for (part, words) in [
            (schema(&[("b", &[2]), ("a", &[3, 3])]), "no tensor `a`"),
            (schema(&[("x", &[1])]), "no tensor `x`"),
            (schema(&[("a", &[9])]), "`a` has 2 dimensions, not 1"),
            (schema(&[("a", &[4, 3])]), "`a` is [4, 3], expected at most [3, 3]"),
            (schema(&[]), "no parameters"),
        ] {
            let error = Slice::new(whole.clone(), part).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }

    proptest! {
        #[test]
        fn taken_and_put_back_is_the_same(
            shapes in prop::collection::vec(prop::collection::vec((1usize..5, 0usize..5), 0..4), 1..5),
            absent: u8,
        ) {
            let names: Vec<String> = (0..shapes.len()).map(|i| format!("t{i}")).collect();
            let entries = |part: bool| {
                let shape = |dims: &Vec<(usize, usize)>| {
                    dims.iter().map(|&(whole, less)| if part { whole - less % whole } else { whole }).collect::<Vec<_>>()
                };
                let all = names.iter().zip(&shapes).enumerate();
                let held = all.filter(|(i, _)| !part || absent >> i & 1 == 0 || i + 1 == shapes.len());
                let entries = held.map(|(_, (name, dims))| ParamEntry::new(name, shape(dims), ParamKind::Weight));
                Arc::new(ParamSchema::new(entries.collect()).unwrap())
            };
            let (whole, part) = (entries(false), entries(true));
            let slice = Slice::new(whole.clone(), part.clone()).unwrap();
            let ranges = slice.ranges();
            prop_assert_eq!(ranges.iter().map(ExactSizeIterator::len).sum::<usize>(), part.num_values());
            prop_assert!(ranges.windows(2).all(|pair| pair[0].end < pair[1].start));

            let counted = vector(&whole, (0..).map(|i| i as f32));
            let taken = slice.take(&counted).unwrap();
            prop_assert_eq!(slice.put(&taken, &counted).unwrap().to_host(), counted.to_host());
            let other = vector(&part, (0..).map(|i| -1.0 - i as f32));
            let put = slice.put(&other, &counted).unwrap();
            prop_assert_eq!(slice.take(&put).unwrap().to_host(), other.to_host());
            // Each value is where its tensor and its index in all dimensions say.
            for entry in part.entries() {
                let of = whole.entry(&entry.path).unwrap();
                for at in 0..entry.len() {
                    let (mut rest, mut place, mut stride) = (at, 0, 1);
                    for (dim, size) in entry.shape.iter().zip(&of.shape).rev() {
                        (place, rest, stride) = (place + rest % dim * stride, rest / dim, stride * size);
                    }
                    prop_assert_eq!(taken.to_host()[entry.offset + at], (of.offset + place) as f32);
                }
            }
        }
    }
}
