//! Line plots as SVG, readable on a light and on a dark page.

use std::fmt::Write;

use super::statistics::digits;

/// A plot of lines over two axes.
pub struct Plot {
    pub title: String,
    pub x: Axis,
    pub y: Axis,
    pub lines: Vec<Line>,
}

/// An axis: what it shows, and how its numbers are spread.
pub struct Axis {
    pub label: String,
    pub scale: Scale,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// From zero, in equal steps.
    Linear,
    /// Whole numbers from zero.
    Count,
    /// In equal factors.
    Logarithmic,
}

/// Points of one kind.
pub struct Line {
    pub label: String,
    pub points: Vec<(f64, f64)>,
    pub style: Style,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    Solid,
    /// For what is no measurement.
    Dashed,
}

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 400.0;
/// Margins of the area that holds the points.
const LEFT: f64 = 72.0;
const RIGHT: f64 = 24.0;
const BOTTOM: f64 = 56.0;
const LEGEND_ROW: f64 = 20.0;

/// Colours that stay apart for all common kinds of colour vision: Okabe and Ito, "Color universal design", 2008.
const COLOURS: [&str; 6] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"];

impl Plot {
    /// The picture; `None` where there is nothing to show.
    pub fn svg(&self) -> Option<String> {
        let top = 44.0 + LEGEND_ROW * self.lines.len().div_ceil(2) as f64;
        let all = || self.lines.iter().flat_map(|line| &line.points);
        let x = Range::of(self.x.scale, all().map(|point| point.0))?;
        let y = Range::of(self.y.scale, all().map(|point| point.1))?;
        let at_x = |value| LEFT + x.place(value) * (WIDTH - LEFT - RIGHT);
        let at_y = |value| HEIGHT - BOTTOM - y.place(value) * (HEIGHT - BOTTOM - top);
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" width=\"{WIDTH}\" \
             height=\"{HEIGHT}\" role=\"img\" font-family=\"sans-serif\" font-size=\"13\" fill=\"#24292f\">\n\
             <title>{title}</title>\n<rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"#ffffff\"/>\n\
             <text x=\"{LEFT}\" y=\"24\" font-size=\"15\" font-weight=\"bold\">{title}</text>\n",
            title = escaped(&self.title)
        );
        for value in y.ticks() {
            let y = at_y(value);
            line(&mut svg, (LEFT, y), (WIDTH - RIGHT, y), "stroke=\"#d8dee4\"");
            text(&mut svg, (LEFT - 8.0, y + 4.5), "text-anchor=\"end\"", &number(value));
        }
        let floor = HEIGHT - BOTTOM;
        line(&mut svg, (LEFT, floor), (WIDTH - RIGHT, floor), "stroke=\"#57606a\"");
        for value in x.ticks() {
            line(&mut svg, (at_x(value), floor), (at_x(value), floor + 5.0), "stroke=\"#57606a\"");
            text(&mut svg, (at_x(value), floor + 20.0), "text-anchor=\"middle\"", &number(value));
        }
        text(&mut svg, ((LEFT + WIDTH - RIGHT) / 2.0, HEIGHT - 14.0), "text-anchor=\"middle\"", &self.x.label);
        let middle = (top + floor) / 2.0;
        let turned = format!("text-anchor=\"middle\" transform=\"rotate(-90 18 {middle})\"");
        text(&mut svg, (18.0, middle), &turned, &self.y.label);
        for (k, Line { label, points, style }) in self.lines.iter().enumerate() {
            let colour = if *style == Style::Dashed { "#57606a" } else { COLOURS[k % COLOURS.len()] };
            let dashes = if *style == Style::Dashed { " stroke-dasharray=\"6 4\"" } else { "" };
            let stroke = format!("stroke=\"{colour}\" stroke-width=\"2\"{dashes}");
            let placed: Vec<_> = points.iter().map(|&(x, y)| (at_x(x), at_y(y))).collect();
            placed.windows(2).for_each(|ends| line(&mut svg, ends[0], ends[1], &stroke));
            if *style == Style::Solid {
                placed.iter().for_each(|&at| dot(&mut svg, at, colour));
            }
            let (left, row) =
                (LEFT + (WIDTH - LEFT - RIGHT) / 2.0 * (k % 2) as f64, 44.0 + LEGEND_ROW * (k / 2) as f64);
            match (style, points.len()) {
                (Style::Solid, 1) => {}
                _ => line(&mut svg, (left, row), (left + 24.0, row), &stroke),
            }
            if *style == Style::Solid {
                dot(&mut svg, (left + 12.0, row), colour);
            }
            text(&mut svg, (left + 32.0, row + 4.5), "", label);
        }
        Some(svg + "</svg>\n")
    }
}

/// Where an axis begins and ends.
struct Range {
    scale: Scale,
    low: f64,
    high: f64,
}

impl Range {
    fn of(scale: Scale, values: impl Iterator<Item = f64>) -> Option<Self> {
        let usable = values.filter(|v| v.is_finite() && (scale != Scale::Logarithmic || *v > 0.0));
        let (low, high) = usable.map(|v| (v, v)).reduce(|(low, high), (v, _)| (low.min(v), high.max(v)))?;
        Some(match scale {
            Scale::Linear | Scale::Count => Self { scale, low: 0.0, high: if high > 0.0 { 1.05 * high } else { 1.0 } },
            Scale::Logarithmic => Self { scale, low: low / 1.25, high: high * 1.25 },
        })
    }

    /// Where a value lies, from 0 to 1.
    fn place(&self, value: f64) -> f64 {
        match self.scale {
            Scale::Linear | Scale::Count => (value - self.low) / (self.high - self.low),
            Scale::Logarithmic => (value / self.low).ln() / (self.high / self.low).ln(),
        }
    }

    /// Round numbers within.
    fn ticks(&self) -> Vec<f64> {
        let within = |value: &f64| (self.low..=self.high).contains(value);
        match self.scale {
            Scale::Linear | Scale::Count => {
                let power = 10f64.powf((self.high / 5.0).log10().floor());
                let step = [1.0, 2.0, 5.0, 10.0].map(|m| m * power).into_iter().find(|step| self.high / step <= 6.0);
                let step = step.unwrap_or(self.high).max(if self.scale == Scale::Count { 1.0 } else { 0.0 });
                (0..=6).map(|k| f64::from(k) * step).filter(within).collect()
            }
            Scale::Logarithmic => {
                let powers = (self.low.log10().floor() as i32)..=(self.high.log10().ceil() as i32);
                // Three numbers a decade where there are few decades.
                let marks: &[f64] = if powers.clone().count() <= 5 { &[1.0, 2.0, 5.0] } else { &[1.0] };
                let all = powers.flat_map(|power| marks.iter().map(move |mark| mark * 10f64.powi(power)));
                all.filter(within).collect()
            }
        }
    }
}

fn line(svg: &mut String, from: (f64, f64), to: (f64, f64), stroke: &str) {
    let ((x1, y1), (x2, y2)) = (from, to);
    // Writing to a string cannot fail.
    let _ = writeln!(svg, "<line x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" {stroke}/>");
}

fn dot(svg: &mut String, (x, y): (f64, f64), colour: &str) {
    let _ = writeln!(svg, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3.5\" fill=\"{colour}\"/>");
}

fn text(svg: &mut String, (x, y): (f64, f64), attributes: &str, words: &str) {
    let _ = writeln!(svg, "<text x=\"{x:.1}\" y=\"{y:.1}\" {attributes}>{}</text>", escaped(words));
}

fn escaped(words: &str) -> String {
    words.replace('&', "&amp;").replace('<', "&lt;")
}

/// A tick's number: thousands and millions by letter, no needless zeros.
fn number(value: f64) -> String {
    let (value, letter) = match value {
        v if v >= 1e6 => (v / 1e6, "M"),
        v if v >= 1e4 => (v / 1e3, "k"),
        v => (v, ""),
    };
    let text = digits(value);
    let plain = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    format!("{plain}{letter}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plot(scale: Scale, points: &[(f64, f64)]) -> Plot {
        let axis = |label: &str| Axis { label: label.to_owned(), scale };
        let line = Line { label: "a < b".to_owned(), points: points.to_vec(), style: Style::Solid };
        Plot { title: "T & U".to_owned(), x: axis("x"), y: axis("y"), lines: vec![line] }
    }

    #[test]
    fn words_are_escaped_and_points_drawn() {
        let svg = plot(Scale::Linear, &[(1.0, 2.0), (2.0, 3.0)]).svg().unwrap();
        assert!(svg.contains("<title>T &amp; U</title>") && svg.contains("a &lt; b"), "{svg}");
        // Two points and the legend's.
        assert_eq!(svg.matches("<circle").count(), 3);
    }

    #[test]
    fn nothing_gives_no_picture() {
        assert!(plot(Scale::Linear, &[]).svg().is_none());
        assert!(plot(Scale::Logarithmic, &[(0.0, 1.0)]).svg().is_none());
    }

    #[test]
    fn ticks_are_round_numbers_within_the_axis() {
        let ticks = |scale, values: &[f64]| {
            let range = Range::of(scale, values.iter().copied()).unwrap();
            range.ticks().into_iter().map(number).collect::<Vec<_>>()
        };
        assert_eq!(ticks(Scale::Linear, &[1.0, 2.0]), ["0", "0.5", "1", "1.5", "2"]);
        assert_eq!(ticks(Scale::Count, &[1.0, 2.0]), ["0", "1", "2"]);
        assert_eq!(ticks(Scale::Logarithmic, &[5.0, 100.0]), ["5", "10", "20", "50", "100"]);
        assert_eq!(ticks(Scale::Logarithmic, &[0.01, 3e6]).len(), 9);
        assert_eq!([0.05, 200.0, 20_000.0, 2e6].map(number), ["0.05", "200", "20k", "2M"]);
    }
}
