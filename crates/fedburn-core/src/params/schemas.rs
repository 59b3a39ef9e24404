//! What the vectors of a federation look like, as its server and its nodes know it from the plan.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::schema::{ParamEntry, ParamSchema};
use super::slice::{Slice, SliceName};
use crate::{SchemaError, SideName};

/// The schema of the model, of the parts of it that single clients hold, and of what the server sends beside it and is
/// another network's. Both ends of a network make it from the same plan, so that each knows the length of a vector before
/// the first byte of it comes.
#[derive(Clone, Debug)]
pub struct Schemas {
    model: Arc<ParamSchema>,
    slices: BTreeMap<SliceName, Arc<ParamSchema>>,
    side: BTreeMap<SideName, Arc<ParamSchema>>,
}

impl Schemas {
    /// Adds that the server's side vector `name` is of `schema`.
    #[must_use]
    pub fn with_side(mut self, name: impl Into<SideName>, schema: Arc<ParamSchema>) -> Self {
        self.side.insert(name.into(), schema);
        self
    }

    /// Adds that the part `name` of the model is of `schema`.
    ///
    /// # Errors
    /// [`SchemaError`] where that is no part of the model, as [`Slice::new`] says.
    pub fn with_slice(mut self, name: impl Into<SliceName>, schema: Arc<ParamSchema>) -> Result<Self, SchemaError> {
        Slice::new(self.model.clone(), schema.clone())?;
        self.slices.insert(name.into(), schema);
        Ok(self)
    }

    /// That of the model, and of all that clients send who hold all of it.
    pub fn model(&self) -> &Arc<ParamSchema> {
        &self.model
    }

    /// Whether some part of the model has a name.
    pub fn has_slices(&self) -> bool {
        !self.slices.is_empty()
    }

    /// The schema of the part of the model that is made of the parts `names`; the model's where no name is given.
    ///
    /// # Errors
    /// [`SchemaError::UnknownSlice`], [`SchemaError::Overlap`] where two of the parts share a tensor.
    pub fn part(&self, names: &[SliceName]) -> Result<Arc<ParamSchema>, SchemaError> {
        let known = |name: &SliceName| {
            self.slices.get(name).ok_or_else(|| SchemaError::UnknownSlice { name: name.to_string() })
        };
        let names = match names {
            [] => return Ok(self.model.clone()),
            [name] => return known(name).cloned(),
            names => names,
        };
        let mut held: BTreeMap<&str, &ParamEntry> = BTreeMap::new();
        for name in names {
            for entry in known(name)?.entries() {
                if held.insert(&entry.path, entry).is_some() {
                    let names = names.iter().map(ToString::to_string).collect();
                    return Err(SchemaError::Overlap { names, path: entry.path.clone() });
                }
            }
        }
        let entries = self.model.entries().iter().filter_map(|entry| held.get(&*entry.path).copied().cloned());
        Ok(Arc::new(ParamSchema::new(entries.collect())?))
    }

    /// Where [`Schemas::part`] of `names` lies in the model; `None` where no name is given: that is the whole.
    ///
    /// # Errors
    /// As [`Schemas::part`].
    pub fn slice(&self, names: &[SliceName]) -> Result<Option<Slice>, SchemaError> {
        match names {
            [] => Ok(None),
            names => Slice::new(self.model.clone(), self.part(names)?).map(Some),
        }
    }

    /// That of the server's side vector `name`: the model's unless another was added.
    pub fn side(&self, name: &str) -> &Arc<ParamSchema> {
        self.side.get(name).unwrap_or(&self.model)
    }
}

/// All vectors are of the model's schema.
impl From<Arc<ParamSchema>> for Schemas {
    fn from(model: Arc<ParamSchema>) -> Self {
        Self { model, slices: BTreeMap::new(), side: BTreeMap::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ParamKind;

    fn schema(paths: &[&str]) -> Arc<ParamSchema> {
        let entry = |path: &&str| ParamEntry::new(*path, vec![2], ParamKind::Weight);
        Arc::new(ParamSchema::new(paths.iter().map(entry).collect()).unwrap())
    }

    #[test]
    fn parts_are_found_by_name_and_joined_in_the_order_of_the_model() {
        let schemas = Schemas::from(schema(&["a", "b", "c", "d"]));
        let schemas = schemas.with_slice("late", schema(&["c", "d"])).unwrap();
        let schemas = schemas.with_slice("early", schema(&["a"])).unwrap();
        let schemas = schemas.with_slice("middle", schema(&["b", "c"])).unwrap();
        assert!(schemas.slice(&[]).unwrap().is_none());
        assert_eq!(schemas.slice(&["late".into()]).unwrap().unwrap().ranges(), std::slice::from_ref(&(4..8)));
        assert_eq!(schemas.slice(&["late".into(), "early".into()]).unwrap().unwrap().ranges(), [0..2, 4..8]);
        let error = |names: &[&'static str]| {
            let names: Vec<SliceName> = names.iter().map(|&name| name.into()).collect();
            schemas.slice(&names).unwrap_err().to_string()
        };
        assert!(error(&["lat"]).contains("no part `lat`"));
        assert!(error(&["early", "middle", "late"]).contains("share the tensor `c`"));
        assert!(schemas.clone().with_slice("x", schema(&["e"])).is_err());
    }
}
