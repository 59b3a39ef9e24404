//! Medians and ranges.

/// A median between a smallest and a largest value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    pub low: f64,
    pub median: f64,
    pub high: f64,
}

impl Spread {
    /// The spread of the values; `None` where there are none.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let (low, high) = (*values.first()?, *values.last()?);
        let middle = values.len() / 2;
        let median = if values.len() % 2 == 1 { values[middle] } else { (values[middle - 1] + values[middle]) / 2.0 };
        Some(Self { low, median, high })
    }

    /// `median (low to high)` with three significant digits, or the median alone where all are the same.
    pub fn shown(&self) -> String {
        let [low, median, high] = [self.low, self.median, self.high].map(digits);
        if low == high { median } else { format!("{median} ({low} to {high})") }
    }
}

/// Three significant digits, and every digit before the point.
pub fn digits(value: f64) -> String {
    if value == 0.0 || !value.is_finite() {
        return format!("{value}");
    }
    let places = (2 - value.abs().log10().floor() as i32).clamp(0, 9) as usize;
    format!("{value:.places$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_number_lies_between() {
        assert_eq!(Spread::of([4.0, 1.0, 3.0, 2.0]), Some(Spread { low: 1.0, median: 2.5, high: 4.0 }));
        assert_eq!(Spread::of([2.0]).unwrap().median, 2.0);
        assert_eq!(Spread::of([]), None);
    }

    #[test]
    fn three_digits_are_shown() {
        assert_eq!([0.012345, 1.5, 33.333, 1234.5, 0.0].map(digits), ["0.0123", "1.50", "33.3", "1234", "0"]);
        assert_eq!(Spread::of([1.0, 2.0, 4.0]).unwrap().shown(), "2.00 (1.00 to 4.00)");
        assert_eq!(Spread::of([1.0]).unwrap().shown(), "1.00");
    }
}
