//! Numbers as tables show them.

use crate::Spread;

/// A share in `[0, 1]` in percent: `91.25 %`.
pub(crate) fn percent(share: f64) -> String {
    format!("{:.2} %", 100.0 * share)
}

/// A difference of two shares in percentage points, signed: `+1.20 points`.
pub(crate) fn points(difference: f64) -> String {
    format!("{:+.2} points", 100.0 * difference)
}

/// Bytes in MiB: `12.34 MiB`; with more digits below a tenth, so that small is not shown as nothing.
pub(crate) fn mebibytes(bytes: f64) -> String {
    let mebibytes = bytes / f64::from(1 << 20);
    match mebibytes {
        m if m == 0.0 || m >= 0.1 => format!("{m:.2} MiB"),
        m => format!("{m:.4} MiB"),
    }
}

/// Seconds with sensible digits: `1.2 ms`, `340 ms`, `2.41 s`, `41.3 s`, `3 min 05 s`, `2 h 10 min`.
pub(crate) fn seconds(seconds: f64) -> String {
    match seconds {
        s if s < 0.01 => format!("{:.1} ms", 1e3 * s),
        s if s < 0.9995 => format!("{:.0} ms", 1e3 * s),
        s if s < 9.995 => format!("{s:.2} s"),
        s if s < 99.95 => format!("{s:.1} s"),
        s if s < 3599.5 => format!("{:.0} min {:02.0} s", (s.round() / 60.0).floor(), s.round() % 60.0),
        s => format!("{:.0} h {:02.0} min", ((s / 60.0).round() / 60.0).floor(), (s / 60.0).round() % 60.0),
    }
}

/// `mean ± sd`, the deviation where there is more than one value. `show` writes one value with its unit.
pub(crate) fn mean_sd(spread: &Spread, show: impl Fn(f64) -> String) -> String {
    let mean = show(spread.mean);
    let Some(sd) = spread.sd else { return mean };
    // The unit is written once, behind both numbers, where they share it; a deviation has no sign.
    match (mean.split_once(' '), show(sd).trim_start_matches('+').split_once(' ')) {
        (Some((number, unit)), Some((deviation, same))) if unit == same => format!("{number} ± {deviation} {unit}"),
        _ => format!("{mean} ± {}", show(sd).trim_start_matches('+')),
    }
}

/// A moment as `2026-03-01 12:30:05 UTC`, from seconds since 1970-01-01 UTC.
///
/// Days to a civil date: Howard Hinnant, "chrono-compatible low-level date algorithms", `civil_from_days`.
pub(crate) fn utc(seconds: u64) -> String {
    let (days, of_day) = (seconds / 86_400 + 719_468, seconds % 86_400);
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year_of_era + 400 * era + u64::from(month <= 2);
    let (hour, minute, second) = (of_day / 3_600, of_day / 60 % 60, of_day % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} UTC")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        assert_eq!(percent(0.91254), "91.25 %");
        assert_eq!(points(-0.012), "-1.20 points");
        assert_eq!(mebibytes(1_572_864.0), "1.50 MiB");
        assert_eq!(mebibytes(1_000.0), "0.0010 MiB");
        let shown = [0.0012, 0.34, 2.412, 41.27, 185.0, 3599.7, 7799.0].map(seconds);
        assert_eq!(shown, ["1.2 ms", "340 ms", "2.41 s", "41.3 s", "3 min 05 s", "1 h 00 min", "2 h 10 min"]);
    }

    #[test]
    fn the_unit_stands_once_and_one_value_has_no_deviation() {
        assert_eq!(mean_sd(&Spread::of([0.9, 0.92]).unwrap(), percent), "91.00 ± 1.41 %");
        assert_eq!(mean_sd(&Spread::of([0.9]).unwrap(), percent), "90.00 %");
        assert_eq!(mean_sd(&Spread::of([0.01, 0.03]).unwrap(), points), "+2.00 ± 1.41 points");
        assert_eq!(mean_sd(&Spread::of([1.0, 2.0]).unwrap(), |v| format!("{v:.1}")), "1.5 ± 0.7");
    }

    #[test]
    fn moments_agree_with_the_calendar() {
        assert_eq!(utc(0), "1970-01-01 00:00:00 UTC");
        assert_eq!(utc(951_782_399), "2000-02-28 23:59:59 UTC");
        assert_eq!(utc(951_868_799), "2000-02-29 23:59:59 UTC");
        assert_eq!(utc(1_772_368_205), "2026-03-01 12:30:05 UTC");
    }
}
