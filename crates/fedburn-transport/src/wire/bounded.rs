//! Fields that are checked against their limits as they are written and read.
//!
//! Reading allocates for elements that have arrived, never for a length that the sender only claims.

use std::fmt;
use std::marker::PhantomData;

use bytes::Bytes;
use serde::de::{Deserialize, Deserializer, Error as _, SeqAccess, Visitor};
use serde::ser::{Error as _, Serialize, Serializer};

/// Text of at most `MAX` bytes of UTF-8.
pub(super) struct Text<const MAX: usize>;

impl<const MAX: usize> Text<MAX> {
    pub(super) fn serialize<S: Serializer>(text: &str, serializer: S) -> Result<S::Ok, S::Error> {
        match text.len() {
            len if len <= MAX => serializer.serialize_str(text),
            len => Err(S::Error::custom(format_args!("text of {len} bytes, at most {MAX}"))),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
        deserializer.deserialize_str(Self)
    }
}

impl<const MAX: usize> Visitor<'_> for Text<MAX> {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "text of at most {MAX} bytes")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<String, E> {
        if text.len() <= MAX { Ok(text.to_owned()) } else { Err(E::invalid_length(text.len(), &self)) }
    }
}

/// At most `MAX` bytes.
pub(super) struct Octets<const MAX: usize>;

impl<const MAX: usize> Octets<MAX> {
    pub(super) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        match bytes.len() {
            len if len <= MAX => serializer.serialize_bytes(bytes),
            len => Err(S::Error::custom(format_args!("{len} bytes, at most {MAX}"))),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Bytes, D::Error> {
        deserializer.deserialize_bytes(Self)
    }
}

impl<const MAX: usize> Visitor<'_> for Octets<MAX> {
    type Value = Bytes;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "at most {MAX} bytes")
    }

    fn visit_bytes<E: serde::de::Error>(self, bytes: &[u8]) -> Result<Bytes, E> {
        if bytes.len() <= MAX { Ok(Bytes::copy_from_slice(bytes)) } else { Err(E::invalid_length(bytes.len(), &self)) }
    }
}

/// At most `MAX` elements.
pub(super) struct List<T, const MAX: usize>(PhantomData<T>);

impl<T, const MAX: usize> List<T, MAX> {
    pub(super) fn serialize<S: Serializer>(items: &[T], serializer: S) -> Result<S::Ok, S::Error>
    where
        T: Serialize,
    {
        match items.len() {
            len if len <= MAX => serializer.collect_seq(items),
            len => Err(S::Error::custom(format_args!("{len} elements, at most {MAX}"))),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<T>, D::Error>
    where
        T: Deserialize<'de>,
    {
        deserializer.deserialize_seq(Self(PhantomData))
    }
}

impl<'de, T: Deserialize<'de>, const MAX: usize> Visitor<'de> for List<T, MAX> {
    type Value = Vec<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "at most {MAX} elements")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Vec<T>, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = elements.next_element()? {
            if items.len() == MAX {
                return Err(A::Error::invalid_length(MAX + 1, &self));
            }
            items.push(item);
        }
        Ok(items)
    }
}

/// What has one place in a list: names, ids, ranges.
pub(super) trait InOrder {
    /// Whether `next` may follow directly.
    fn precedes(&self, next: &Self) -> bool;
}

impl InOrder for String {
    fn precedes(&self, next: &Self) -> bool {
        self < next
    }
}

/// At most `MAX` elements in their order, none twice.
pub(super) struct Sorted<T, const MAX: usize>(PhantomData<T>);

impl<T: InOrder, const MAX: usize> Sorted<T, MAX> {
    pub(super) fn serialize<S: Serializer>(items: &[T], serializer: S) -> Result<S::Ok, S::Error>
    where
        T: Serialize,
    {
        if !in_order(items) {
            return Err(S::Error::custom("elements out of order"));
        }
        List::<T, MAX>::serialize(items, serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<T>, D::Error>
    where
        T: Deserialize<'de>,
    {
        let items = List::<T, MAX>::deserialize(deserializer)?;
        if in_order(&items) { Ok(items) } else { Err(D::Error::custom("elements out of order")) }
    }
}

fn in_order<T: InOrder>(items: &[T]) -> bool {
    items.windows(2).all(|pair| pair[0].precedes(&pair[1]))
}

/// At most `MAX` texts of at most `LEN` bytes, sorted, none twice.
pub(super) struct Names<const MAX: usize, const LEN: usize>;

impl<const MAX: usize, const LEN: usize> Names<MAX, LEN> {
    pub(super) fn serialize<S: Serializer>(names: &[String], serializer: S) -> Result<S::Ok, S::Error> {
        if names.iter().any(|name| name.len() > LEN) {
            return Err(S::Error::custom(format_args!("a name of more than {LEN} bytes")));
        }
        Sorted::<String, MAX>::serialize(names, serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
        let names = List::<Name<LEN>, MAX>::deserialize(deserializer)?;
        let names: Vec<String> = names.into_iter().map(|Name(name)| name).collect();
        if in_order(&names) { Ok(names) } else { Err(D::Error::custom("names out of order")) }
    }
}

#[derive(serde::Deserialize)]
struct Name<const LEN: usize>(#[serde(deserialize_with = "Text::<LEN>::deserialize")] String);
