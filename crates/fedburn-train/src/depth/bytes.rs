//! Amounts of memory as people write them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// An amount of memory. As text a number and a unit: `64 MiB`, `1.5 GiB`, `4096 B`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Bytes(pub u64);

/// Text that is no amount of memory.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("`{text}` is no amount of memory, expected a number above 0 and B, KiB, MiB or GiB, such as \"64 MiB\"")]
pub struct BytesError {
    /// The text.
    pub text: String,
}

const UNITS: [(&str, u64); 4] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];

impl Bytes {
    /// Rounded to a hundredth of the largest unit that gives at least 1: for people, not to be read back.
    pub fn rounded(self) -> String {
        let (unit, size) = UNITS.into_iter().find(|(_, size)| self.0 >= *size).unwrap_or(("B", 1));
        match size {
            1 => format!("{} B", self.0),
            size => format!("{:.2} {unit}", self.0 as f64 / size as f64),
        }
    }
}

impl fmt::Display for Bytes {
    /// Exact: a whole number of the largest unit that has one.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (unit, size) = UNITS.into_iter().find(|(_, size)| self.0.is_multiple_of(*size)).unwrap_or(("B", 1));
        write!(f, "{} {unit}", self.0 / size)
    }
}

impl FromStr for Bytes {
    type Err = BytesError;

    fn from_str(text: &str) -> Result<Self, BytesError> {
        let refused = || BytesError { text: text.to_owned() };
        let trimmed = text.trim();
        let split = trimmed.find(|c: char| c.is_ascii_alphabetic()).ok_or_else(refused)?;
        let (number, unit) = trimmed.split_at(split);
        let (_, size) = UNITS.into_iter().find(|(name, _)| *name == unit).ok_or_else(refused)?;
        if let Ok(whole) = number.trim().parse::<u64>() {
            return whole.checked_mul(size).filter(|bytes| *bytes > 0).map(Self).ok_or_else(refused);
        }
        let bytes = number.trim().parse::<f64>().map_err(|_| refused())? * size as f64;
        // Far above any machine's memory, and exact in 64 bits.
        if (1.0..=2f64.powi(60)).contains(&bytes) { Ok(Self(bytes as u64)) } else { Err(refused()) }
    }
}

impl TryFrom<String> for Bytes {
    type Error = BytesError;

    fn try_from(text: String) -> Result<Self, BytesError> {
        text.parse()
    }
}

impl From<Bytes> for String {
    fn from(bytes: Bytes) -> Self {
        bytes.to_string()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn amounts_are_read() {
        for (text, bytes) in [
            ("64 MiB", 64 << 20),
            ("64MiB", 64 << 20),
            (" 1.5 KiB ", 1536),
            ("204627128 B", 204_627_128),
            ("2 GiB", 2 << 30),
        ] {
            assert_eq!(text.parse(), Ok(Bytes(bytes)), "{text}");
        }
        for wrong in ["", "64", "MiB", "0 B", "-1 KiB", "64 MB", "64 mib", "1e99 GiB", "NaN B", "99999999999999 GiB"] {
            assert!(wrong.parse::<Bytes>().unwrap_err().to_string().contains("64 MiB"), "{wrong}");
        }
        assert_eq!(Bytes(204_627_128).rounded(), "195.15 MiB");
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(bytes in 1u64..1 << 50) {
            prop_assert_eq!(Bytes(bytes).to_string().parse(), Ok(Bytes(bytes)));
        }
    }
}
