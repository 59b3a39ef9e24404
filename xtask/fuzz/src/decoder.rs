//! A decoder under test.

use std::error::Error;

use fedburn_meter::peak;

/// A decoder and what must hold for any input.
pub struct Decoder {
    /// Its name, that of its corpus too.
    pub name: String,
    /// Most bytes of an input.
    pub longest: usize,
    /// Most bytes that decoding may hold, whatever the input.
    pub bound: usize,
    read: Read,
}

type Read = Box<dyn Fn(&[u8]) -> Verdict>;

/// What became of an input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Whether it was read.
    pub accepted: bool,
    /// Bytes that decoding held at most.
    pub held: usize,
}

/// What came of decoding; errors are told in words too.
pub(crate) type Decoded<T> = Result<T, Box<dyn Error>>;

impl Decoder {
    /// A decoder of inputs of up to `longest` bytes, which may hold four times as many: what was decoded, a copy on the
    /// way, and a vector's capacity, which doubles. A length that is believed before its bytes came asks for thousands of
    /// times as many. `law` panics where what was decoded is not what it should be; what it holds itself does not count.
    pub(crate) fn new<T>(
        name: impl Into<String>,
        longest: usize,
        decode: impl Fn(&[u8]) -> Decoded<T> + 'static,
        law: impl Fn(&[u8], T) + 'static,
    ) -> Self {
        let read = move |input: &[u8]| {
            let (decoded, held) = peak(|| decode(input).map_err(|error| error.to_string()));
            let accepted = decoded.is_ok();
            decoded.into_iter().for_each(|decoded| law(input, decoded));
            Verdict { accepted, held }
        };
        Self { name: name.into(), longest, bound: 4 * longest, read: Box::new(read) }
    }

    /// The decoder with another bound.
    pub(crate) fn holding(self, bound: usize) -> Self {
        Self { bound, ..self }
    }

    /// Decodes an input.
    ///
    /// # Panics
    /// Where a law is broken, the bound included.
    pub fn read(&self, input: &[u8]) -> Verdict {
        let verdict = (self.read)(input);
        assert!(verdict.held <= self.bound, "{}: {} bytes held, at most {}", self.name, verdict.held, self.bound);
        verdict
    }
}
