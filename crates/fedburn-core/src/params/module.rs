//! Between burn modules and flat vectors: the only file of the crate that walks modules.

use std::iter::Peekable;
use std::ops::Range;
use std::slice::Iter;
use std::sync::Arc;

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::{Bool, Int, Shape, Tensor, backend::Backend};

use super::schema::{ParamEntry, ParamKind, ParamSchema};
use super::slice::Slice;
use super::vector::ParamVector;
use crate::SchemaError;

/// The schema of a module's float parameters and running statistics, in traversal order.
///
/// Does not initialise lazy parameters. An entry whose path ends in `running_mean` or `running_var` is a buffer.
///
/// # Errors
/// [`SchemaError::UnsupportedKind`] where the module has an integer or boolean parameter.
pub fn schema_of<B: Backend, M: Module<B>>(module: &M) -> Result<ParamSchema, SchemaError> {
    let mut reader = Reader::<B> { path: Vec::new(), entries: Vec::new(), unsupported: None, values: None };
    module.visit(&mut reader);
    reader.finish_schema()
}

/// Copies a module's float parameters and running statistics into one vector.
///
/// Call it with a module of the inner backend: `flatten(&model.valid())` synchronises batch normalisation's running
/// statistics, which a visit of the training module would miss.
///
/// # Errors
/// [`SchemaError::UnsupportedKind`], [`SchemaError::Empty`] where the module has no parameter.
pub fn flatten<B: Backend, M: Module<B>>(module: &M) -> Result<ParamVector<B>, SchemaError> {
    let mut reader = Reader::<B> { path: Vec::new(), entries: Vec::new(), unsupported: None, values: Some(Vec::new()) };
    module.visit(&mut reader);
    let values = reader.values.take().unwrap_or_default();
    let schema = reader.finish_schema()?;
    if values.is_empty() {
        return Err(SchemaError::Empty);
    }
    ParamVector::new(Tensor::cat(values, 0), Arc::new(schema))
}

/// Puts a flat vector into a module without running its initialisers; parameter ids and gradient flags are kept.
///
/// Batch normalisation shares its running statistics between clones of a module: load into a module that was built,
/// not cloned.
///
/// # Errors
/// [`SchemaError::Mismatch`] where the vector is not of this module's schema; the module is then dropped.
pub fn load<B: Backend, M: Module<B>>(module: M, params: &ParamVector<B>) -> Result<M, SchemaError> {
    schema_of::<B, M>(&module)?.ensure_same(params.schema())?;
    Ok(write(module, params.schema(), params))
}

/// As [`flatten`] for what a part of the model holds.
///
/// # Errors
/// [`SchemaError`] where `part` is no part of this module, as [`Slice::new`] says.
pub fn flatten_part<B: Backend, M: Module<B>>(
    module: &M,
    part: &Arc<ParamSchema>,
) -> Result<ParamVector<B>, SchemaError> {
    let slice = Slice::new(Arc::new(schema_of(module)?), part.clone())?;
    let (entries, held) = (slice.whole().entries().iter(), part.entries().iter().peekable());
    let mut reader = PartReader::<B> { entries, held, values: Vec::new() };
    module.visit(&mut reader);
    ParamVector::new(Tensor::cat(reader.values, 0), part.clone())
}

/// As [`load`] for a part of the model; what it does not hold is zero.
///
/// # Errors
/// [`SchemaError`] where the vector is of no part of this module, as [`Slice::new`] says; the module is then dropped.
pub fn load_part<B: Backend, M: Module<B>>(module: M, part: &ParamVector<B>) -> Result<M, SchemaError> {
    let slice = Slice::new(Arc::new(schema_of::<B, M>(&module)?), part.schema().clone())?;
    Ok(write(module, slice.whole(), part))
}

/// Fills a module of the schema `whole` with a part of it, which was checked to be one.
fn write<B: Backend, M: Module<B>>(module: M, whole: &ParamSchema, part: &ParamVector<B>) -> M {
    let (entries, held) = (whole.entries().iter(), part.schema().entries().iter().peekable());
    module.map(&mut Writer { entries, held, values: part.values().clone() })
}

struct Reader<B: Backend> {
    path: Vec<String>,
    entries: Vec<ParamEntry>,
    unsupported: Option<String>,
    /// `Some` collects the values too.
    values: Option<Vec<Tensor<B, 1>>>,
}

impl<B: Backend> Reader<B> {
    fn finish_schema(self) -> Result<ParamSchema, SchemaError> {
        match self.unsupported {
            Some(path) => Err(SchemaError::UnsupportedKind { path }),
            None => ParamSchema::new(self.entries),
        }
    }
}

impl<B: Backend> ModuleVisitor<B> for Reader<B> {
    fn enter_module(&mut self, name: &str, container: &str) {
        if is_part_of_path(container) {
            self.path.push(name.to_owned());
        }
    }

    fn exit_module(&mut self, _name: &str, container: &str) {
        if is_part_of_path(container) {
            self.path.pop();
        }
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        let path = self.path.join(".");
        let kind = match self.path.last().map(String::as_str) {
            Some("running_mean" | "running_var") => ParamKind::Buffer,
            _ => ParamKind::Weight,
        };
        let shape = param.lazy_shape();
        let len = shape.num_elements();
        if let Some(values) = &mut self.values {
            values.push(param.val().reshape([len]));
        }
        self.entries.push(ParamEntry::new(path, shape.to_vec(), kind));
    }

    fn visit_int<const D: usize>(&mut self, _param: &Param<Tensor<B, D, Int>>) {
        self.unsupported.get_or_insert_with(|| self.path.join("."));
    }

    fn visit_bool<const D: usize>(&mut self, _param: &Param<Tensor<B, D, Bool>>) {
        self.unsupported.get_or_insert_with(|| self.path.join("."));
    }
}

/// The variant of an enum says nothing that the model does not know already, and only one can be there.
fn is_part_of_path(container: &str) -> bool {
    !container.starts_with("Enum:")
}

/// Of a tensor whose leading corner has this shape.
fn corner<const D: usize>(shape: &[usize]) -> [Range<usize>; D] {
    std::array::from_fn(|dim| 0..shape[dim])
}

struct PartReader<'a, B: Backend> {
    /// Of the module.
    entries: Iter<'a, ParamEntry>,
    /// Of those the ones to read, all of a tensor or its corner.
    held: Peekable<Iter<'a, ParamEntry>>,
    values: Vec<Tensor<B, 1>>,
}

impl<B: Backend> ModuleVisitor<B> for PartReader<'_, B> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        // Schemas were compared, so the entries and the visited parameters go together.
        let Some(entry) = self.entries.next() else { return };
        let Some(held) = self.held.next_if(|held| held.path == entry.path) else { return };
        let all = held.shape == entry.shape;
        let values = if all { param.val() } else { param.val().slice(corner::<D>(&held.shape)) };
        self.values.push(values.reshape([held.len()]));
    }
}

struct Writer<'a, B: Backend> {
    /// Of the module.
    entries: Iter<'a, ParamEntry>,
    /// Of those the ones that there are values of, all of a tensor or its corner.
    held: Peekable<Iter<'a, ParamEntry>>,
    values: Tensor<B, 1>,
}

impl<B: Backend> ModuleMapper<B> for Writer<'_, B> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        // As in `PartReader`.
        let Some(entry) = self.entries.next() else { return param };
        let values = |held: &ParamEntry| self.values.clone().slice([held.range()]);
        let zeros = || Tensor::zeros(param.lazy_shape(), &self.values.device());
        let values = match self.held.next_if(|held| held.path == entry.path) {
            Some(held) if held.shape == entry.shape => values(held).reshape(param.lazy_shape()),
            Some(held) => {
                let there = values(held).reshape(Shape::from(held.shape.clone()));
                zeros().slice_assign(corner::<D>(&held.shape), there)
            }
            None => zeros(),
        };
        let id = param.id;
        param.transform_for_load(values, id)
    }
}
