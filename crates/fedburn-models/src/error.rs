//! What makes a model impossible, and the checks every architecture shares.

use thiserror::Error;

/// A model that cannot be built as asked.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ModelError {
    /// A field has a value the architecture cannot work with.
    #[error("model `{model}`: {field} is {found}, expected {expected}")]
    Field {
        /// The architecture's name in a configuration.
        model: &'static str,
        /// The field, or the property of the data.
        field: &'static str,
        /// Its value.
        found: String,
        /// What the architecture needs.
        expected: String,
    },
}

/// Refuses a field of `model`.
pub(crate) fn refuse<T>(
    model: &'static str,
    field: &'static str,
    found: impl ToString,
    expected: impl ToString,
) -> Result<T, ModelError> {
    Err(ModelError::Field { model, field, found: found.to_string(), expected: expected.to_string() })
}

/// Checks that there is something to see and something to tell apart, each side of the image being at least `side`.
pub(crate) fn check_shape(
    model: &'static str,
    [channels, height, width]: [usize; 3],
    side: usize,
    classes: usize,
) -> Result<(), ModelError> {
    for (field, found, least) in [
        ("input channels", channels, 1),
        ("input height", height, side),
        ("input width", width, side),
        ("classes", classes, 1),
    ] {
        at_least(model, field, found, least)?;
    }
    Ok(())
}

/// Checks that a number is not too small, nor so large that sizes computed from it could overflow.
pub(crate) fn at_least(model: &'static str, field: &'static str, found: usize, least: usize) -> Result<(), ModelError> {
    match found {
        _ if found < least => refuse(model, field, found, format!("at least {least}")),
        _ if found > LARGEST => refuse(model, field, found, format!("at most {LARGEST}")),
        _ => Ok(()),
    }
}

/// No image side, channel count or layer width of any use comes near it, and its cube still fits 64 bits.
const LARGEST: usize = 1 << 20;
