//! Sums as bytes, to be gone on with by another process.

use std::io::{self, Read, Write};

use super::wide::{LIMBS, Wide};
use super::{BLOCK, ExactSum};

impl ExactSum {
    /// Writes the sums: all `high`, all `low`, the number of wide blocks, and each with its place; little-endian. Length
    /// and weight are for the caller to keep.
    pub(crate) fn write(&self, out: &mut impl Write) -> io::Result<()> {
        for value in self.high.iter().chain(&self.low) {
            out.write_all(&value.to_le_bytes())?;
        }
        let wide = || self.wide.iter().enumerate().filter_map(|(place, block)| Some((place, block.as_deref()?)));
        out.write_all(&(wide().count() as u64).to_le_bytes())?;
        for (place, block) in wide() {
            out.write_all(&(place as u64).to_le_bytes())?;
            for limb in block.iter().flat_map(Wide::limbs) {
                out.write_all(&limb.to_le_bytes())?;
            }
        }
        Ok(())
    }

    /// Reads sums of vectors of `len` values with this weight.
    pub(crate) fn read(len: usize, weight: u64, from: &mut impl Read) -> io::Result<Self> {
        let mut sum = Self { weight, ..Self::new(len) };
        for value in sum.high.iter_mut().chain(&mut sum.low) {
            *value = f64::from_bits(number(from)?);
        }
        for _ in 0..number(from)? {
            let place = usize::try_from(number(from)?).unwrap_or(usize::MAX);
            let block = sum.wide.get_mut(place).ok_or_else(|| io::Error::other("a block beyond the sums"))?;
            *block = Some(read_block(from)?);
        }
        Ok(sum)
    }
}

fn read_block(from: &mut impl Read) -> io::Result<Box<[Wide]>> {
    let mut block = vec![Wide::default(); BLOCK];
    for wide in &mut block {
        let mut limbs = [0; LIMBS];
        for limb in &mut limbs {
            *limb = number(from)?;
        }
        *wide = Wide::of_limbs(limbs);
    }
    Ok(block.into())
}

fn number(from: &mut impl Read) -> io::Result<u64> {
    let mut bytes = [0; 8];
    from.read_exact(&mut bytes)?;
    Ok(u64::from_le_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_come_back_and_go_on() {
        let len = BLOCK + 3;
        let vector = |k: usize| -> Vec<f32> {
            let far_apart = [3e38, 1.0, 1e-45, -3e38, 1e-38][k % 5];
            let near = |i: usize| ((i * 37 + k * 101) % 1009) as f32 * 1e-3 - 0.5;
            (0..len).map(|i| if i == len - 1 { far_apart } else { near(i) }).collect()
        };
        let (mut whole, mut begun) = (ExactSum::new(len), ExactSum::new(len));
        for k in 0..8 {
            whole.add(&vector(k), 3 + k as u64).unwrap();
            if k == 4 {
                let (mut bytes, weight) = (Vec::new(), begun.weight());
                begun.write(&mut bytes).unwrap();
                assert!(begun.wide.iter().any(Option::is_some), "some value needs a wide sum");
                begun = ExactSum::read(len, weight, &mut &bytes[..]).unwrap();
                assert!(ExactSum::read(len, weight, &mut &bytes[..bytes.len() - 1]).is_err());
            }
            begun.add(&vector(k), 3 + k as u64).unwrap();
        }
        assert_eq!(begun.weight(), whole.weight());
        assert_eq!(begun.mean().unwrap(), whole.mean().unwrap());
    }
}
