//! One kind of picture: curves, bands and dots over two axes, as SVG that looks the same on paper and on screen.

use maud::Escaper;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use std::fmt::Write;

/// A picture. The colours are names: the page's style sheet maps each to a lighter one on a dark background.
pub(super) struct Chart<'a> {
    /// What the picture shows, in words, for those who do not see it.
    pub(super) alt: String,
    pub(super) x: Axis<'a>,
    pub(super) y: Axis<'a>,
    pub(super) series: Vec<Series>,
}

/// An axis: what it shows in which unit.
pub(super) struct Axis<'a> {
    pub(super) label: &'a str,
    pub(super) scale: Scale,
}

/// How numbers on an axis are shown and where it may begin and end.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Scale {
    /// Whole numbers.
    Count,
    /// Shares in `[0, 1]`, shown in percent.
    Share,
    /// Positive amounts; the axis begins at 0.
    Amount,
    /// Any numbers.
    Number,
    /// Positive amounts by their logarithm to the base 10, shown as themselves.
    Decades,
}

/// Points of one kind.
pub(super) struct Series {
    /// Its entry in the legend; none for a companion of another series.
    pub(super) label: Option<String>,
    pub(super) colour: RGBColor,
    pub(super) mark: Mark,
}

/// How a series is drawn. Points that are not finite are left out.
pub(super) enum Mark {
    Line(Vec<(f64, f64)>),
    /// A thin pale line behind the others.
    Faint(Vec<(f64, f64)>),
    /// A dashed line.
    Dashes(Vec<(f64, f64)>),
    /// `(x, low, high)`.
    Band(Vec<(f64, f64, f64)>),
    /// A dashed horizontal.
    Level(f64),
    /// A large dot with a whisker: `(x, low, middle, high)`.
    Dot(f64, f64, f64, f64),
    /// Small dots.
    Points(Vec<(f64, f64)>),
    /// A large dot with its name beside it, clear of other dots and names where there is room: `(x, y)` and the name.
    Named((f64, f64), String),
}

/// Seven colours that stay apart for all common kinds of colour vision: Okabe and Ito, "Color universal design", 2008.
pub(super) const PALETTE: [RGBColor; 7] = [
    RGBColor(0x00, 0x72, 0xB2),
    RGBColor(0xD5, 0x5E, 0x00),
    RGBColor(0x00, 0x9E, 0x73),
    RGBColor(0xCC, 0x79, 0xA7),
    RGBColor(0xE6, 0x9F, 0x00),
    RGBColor(0x56, 0xB4, 0xE9),
    RGBColor(0x57, 0x60, 0x6A),
];

impl Chart<'_> {
    /// The SVG element, `width x height` pixels; `None` where no point is finite.
    pub(super) fn svg(&self, width: u32, height: u32) -> Option<String> {
        let x_range = self.x.scale.range(self.series.iter().flat_map(|series| series.mark.xs()))?;
        let y_range = self.y.scale.range(self.series.iter().flat_map(|series| series.mark.ys()))?;
        let mut drawn = String::new();
        self.draw(&mut drawn, (FINE * width, FINE * height), x_range, y_range).ok()?;
        let (_, body) = drawn.split_once('>')?;
        let mut svg =
            format!(r#"<svg xmlns="http://www.w3.org/2000/svg" class="chart" width="{width}" height="{height}" "#);
        write!(svg, r#"viewBox="0 0 {} {}" role="img" aria-label=""#, FINE * width, FINE * height).ok()?;
        write!(Escaper::new(&mut svg), "{}", self.alt).ok()?;
        Some(svg + "\">" + body)
    }

    fn draw<'a>(&self, svg: &'a mut String, size: (u32, u32), x: (f64, f64), y: (f64, f64)) -> DrawResult<'a> {
        let root = SVGBackend::with_string(svg, size).into_drawing_area();
        root.fill(&WHITE)?;
        let entries = self.legend(size.0 as i32);
        let rows = entries.last().map_or(0, |(_, _, (_, y))| y / px(20) + 1);
        let (legend, plot) = root.split_vertically(px(20) * rows + px(4));
        draw_legend(&legend, &entries)?;
        let mut chart = ChartBuilder::on(&plot)
            .margin_top(px(8))
            .margin_right(px(18))
            .margin_bottom(px(4))
            .x_label_area_size(px(42))
            .y_label_area_size(px(LEFT))
            .build_cartesian_2d(x.0..x.1, y.0..y.1)?;
        let text = |size: i32, colour: &RGBColor| ("sans-serif", px(size)).into_font().color(colour);
        chart
            .configure_mesh()
            .disable_x_mesh()
            .bold_line_style(GRID.stroke_width(FINE))
            .light_line_style(TRANSPARENT)
            .axis_style(MUTED.stroke_width(FINE))
            .set_all_tick_mark_size(px(4))
            .label_style(text(14, &MUTED))
            .axis_desc_style(text(15, &INK))
            .x_desc(self.x.label)
            .y_desc(self.y.label)
            .x_labels(8)
            .y_labels(6)
            .x_label_formatter(&|value| self.x.scale.tick(*value, x))
            .y_label_formatter(&|value| self.y.scale.tick(*value, y))
            .draw()?;
        // What lies behind is drawn first.
        let mut series: Vec<_> = self.series.iter().collect();
        series.sort_by_key(|series| series.mark.depth());
        for Series { colour, mark, .. } in series {
            let stroke = colour.stroke_width(FINE * 2);
            match mark {
                Mark::Line(points) => {
                    chart.draw_series(LineSeries::new(finite(points), stroke))?;
                    if points.len() <= 30 {
                        let dots = finite(points).map(|at| Circle::new(at, px(5) / 2, colour.filled()));
                        chart.draw_series(dots)?;
                    }
                }
                Mark::Faint(points) => {
                    chart.draw_series(LineSeries::new(finite(points), colour.mix(0.55).stroke_width(FINE)))?;
                }
                Mark::Dashes(points) => {
                    let points: Vec<_> = finite(points).collect();
                    chart.draw_series(DashedLineSeries::new(points, px(6), px(4), stroke))?;
                }
                Mark::Band(points) => {
                    let points = points.iter().filter(|(x, low, high)| (x + low + high).is_finite());
                    let upper = points.clone().map(|&(x, _, high)| (x, high));
                    let outline: Vec<_> = upper.chain(points.rev().map(|&(x, low, _)| (x, low))).collect();
                    chart.draw_series([Polygon::new(outline, colour.mix(0.18).filled())])?;
                }
                Mark::Level(level) => {
                    let ends = [(x.0, *level), (x.1, *level)];
                    chart.draw_series(DashedLineSeries::new(ends, px(6), px(4), stroke))?;
                }
                Mark::Dot(x, low, middle, high) => {
                    let whisker = finite(&[(*x, *low), (*x, *high)]).collect::<Vec<_>>();
                    chart.draw_series(LineSeries::new(whisker, stroke))?;
                    let dot =
                        finite(&[(*x, *middle)]).map(|at| Circle::new(at, px(5), colour.filled())).collect::<Vec<_>>();
                    chart.draw_series(dot)?;
                }
                Mark::Points(points) => {
                    chart.draw_series(finite(points).map(|at| Circle::new(at, px(3), colour.filled())))?;
                }
                Mark::Named(at, _) => {
                    chart.draw_series(finite(&[*at]).map(|at| Circle::new(at, px(4), colour.filled())))?;
                }
            }
        }
        let named = self.series.iter().filter_map(|series| match &series.mark {
            Mark::Named((x, y), name) if (x + y).is_finite() => Some(((*x, *y), name.as_str())),
            _ => None,
        });
        let dots: Vec<_> = named.map(|(at, name)| (at, chart.backend_coord(&at), name)).collect();
        let beside = beside(&dots.iter().map(|(_, at, name)| (*at, *name)).collect::<Vec<_>>(), size.0 as i32);
        for ((at, _, name), (side, down)) in dots.into_iter().zip(beside) {
            let anchor = if side < 0 { HPos::Right } else { HPos::Left };
            let font = text(13, &INK).pos(Pos::new(anchor, VPos::Center));
            chart.draw_series([EmptyElement::at(at) + Text::new(name.to_owned(), (side, down), font)])?;
        }
        root.present()
    }

    /// The labelled series, their labels and where each entry begins, broken into rows that fit `width`.
    fn legend(&self, width: i32) -> Vec<(&Series, &str, (i32, i32))> {
        let (mut x, mut y) = (px(LEFT), px(12));
        let mut entries = Vec::new();
        for (series, label) in self.series.iter().filter_map(|series| Some((series, series.label.as_deref()?))) {
            // Sans-serif letters of this size are a little over six pixels wide.
            let length = px(24) + px(19) / 3 * label.chars().count() as i32;
            if x + length > width && x > px(LEFT) {
                (x, y) = (px(LEFT), y + px(20));
            }
            entries.push((series, label, (x, y)));
            x += length + px(18);
        }
        entries
    }
}

impl Scale {
    /// Where the axis begins and ends: the finite values with some air, never of no length.
    fn range(self, values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
        let (low, high) = values
            .filter(|value| value.is_finite())
            .map(|value| (value, value))
            .reduce(|(low, high), (value, _)| (low.min(value), high.max(value)))?;
        let air = match high - low {
            none if none <= 1e-9 * high.abs().max(1e-9) => (0.05 * high.abs()).max(1e-3),
            length => 0.05 * length,
        };
        Some(match self {
            Self::Count if high > low => (low, high),
            Self::Count => (low - 1.0, high + 1.0),
            Self::Share => ((low - air).clamp(0.0, 0.99), (high + air).clamp(0.01, 1.0)),
            Self::Amount => (0.0, if high > 0.0 { 1.08 * high } else { 1.0 }),
            Self::Number | Self::Decades => (low - air, high + air),
        })
    }

    /// A number beside a tick, with as many digits as ticks of this range need; nothing between whole numbers.
    fn tick(self, value: f64, (low, high): (f64, f64)) -> String {
        let value = if value.abs() < 1e-9 * (high - low) { 0.0 } else { value };
        // About five ticks, each a whole multiple of a power of ten.
        let digits = |length: f64| (length / 5.0).log10().floor().min(0.0).abs().min(6.0) as usize;
        match self {
            Self::Count if value.fract().abs() > 1e-9 => String::new(),
            Self::Count => format!("{value:.0}"),
            Self::Share => format!("{:.*} %", digits(100.0 * (high - low)), 100.0 * value),
            Self::Amount | Self::Number => format!("{value:.*}", digits(high - low)),
            Self::Decades => {
                // Two digits tell the ticks between powers of ten apart.
                let value = value.clamp(-300.0, 300.0);
                let unit = 10f64.powf(value.floor() - 1.0);
                format!("{:.*}", (1.0 - value.floor()).max(0.0) as usize, unit * (10f64.powf(value) / unit).round())
            }
        }
    }
}

impl Mark {
    fn xs(&self) -> Vec<f64> {
        match self {
            Self::Line(points) | Self::Faint(points) | Self::Dashes(points) | Self::Points(points) => {
                points.iter().map(|point| point.0).collect()
            }
            Self::Named((x, _), _) => vec![*x],
            Self::Band(points) => points.iter().map(|point| point.0).collect(),
            Self::Level(_) => Vec::new(),
            Self::Dot(x, ..) => vec![*x],
        }
    }

    fn ys(&self) -> Vec<f64> {
        match self {
            Self::Line(points) | Self::Faint(points) | Self::Dashes(points) | Self::Points(points) => {
                points.iter().map(|point| point.1).collect()
            }
            Self::Named((_, y), _) => vec![*y],
            Self::Band(points) => points.iter().flat_map(|&(_, low, high)| [low, high]).collect(),
            Self::Level(level) => vec![*level],
            Self::Dot(_, low, middle, high) => vec![*low, *middle, *high],
        }
    }

    fn depth(&self) -> u8 {
        match self {
            Self::Band(_) => 0,
            Self::Faint(_) => 1,
            Self::Level(_) => 2,
            Self::Line(_) => 3,
            Self::Dashes(_) => 4,
            Self::Dot(..) | Self::Points(_) | Self::Named(..) => 5,
        }
    }
}

/// Where the name of each dot begins or, left of it, ends, from the dot: on the side and as near to its height as keeps it off
/// dots and the names before it.
fn beside(dots: &[((i32, i32), &str)], width: i32) -> Vec<(i32, i32)> {
    // Left, right, top and bottom.
    type Frame = (i32, i32, i32, i32);
    let apart = |a: &Frame, b: &Frame| a.1 <= b.0 || b.1 <= a.0 || a.3 <= b.2 || b.3 <= a.2;
    let dot = |&((x, y), _): &((i32, i32), &str)| (x - px(4), x + px(4), y - px(4), y + px(4));
    let mut taken: Vec<Frame> = dots.iter().map(dot).collect();
    let offsets =
        [0, 4, -4, 8, -8, 12, -12, 16, -16].into_iter().flat_map(|down| [(px(8), px(down)), (-px(8), px(down))]);
    let place = |&((x, y), name): &((i32, i32), &str)| {
        let frame = |(side, down): (i32, i32)| {
            // Sans-serif letters of this size are a little under six pixels wide.
            let ends = (x + side, x + side + side.signum() * px(6) * name.chars().count() as i32);
            (ends.0.min(ends.1), ends.0.max(ends.1), y + down - px(7), y + down + px(7))
        };
        let free = |offset: &(i32, i32)| {
            let name = frame(*offset);
            name.0 >= px(LEFT) && name.1 <= width && taken.iter().all(|other| apart(&name, other))
        };
        let offset = offsets.clone().find(free).unwrap_or((px(8), 0));
        taken.push(frame(offset));
        offset
    };
    dots.iter().map(place).collect()
}

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;
type DrawResult<'a> = Result<(), DrawingAreaErrorKind<<SVGBackend<'a> as DrawingBackend>::ErrorType>>;

/// The drawing library places everything on whole pixels; a drawing four times as large places it on quarters.
const FINE: u32 = 4;
/// Pixels left of the plot.
const LEFT: i32 = 58;
const INK: RGBColor = RGBColor(0x1B, 0x1F, 0x24);
const MUTED: RGBColor = RGBColor(0x57, 0x60, 0x6A);
const GRID: RGBColor = RGBColor(0xE3, 0xE6, 0xEA);

fn draw_legend<'a>(area: &Area<'a>, entries: &[(&Series, &str, (i32, i32))]) -> DrawResult<'a> {
    let font = ("sans-serif", px(15)).into_font().color(&INK).pos(Pos::new(HPos::Left, VPos::Center));
    for &(Series { colour, mark, .. }, label, (x, y)) in entries {
        let stroke = colour.stroke_width(FINE * 2);
        match mark {
            Mark::Line(_) => area.draw(&PathElement::new([(x, y), (x + px(18), y)], stroke))?,
            Mark::Faint(_) => {
                area.draw(&PathElement::new([(x, y), (x + px(18), y)], colour.mix(0.55).stroke_width(FINE)))?;
            }
            Mark::Dashes(_) | Mark::Level(_) => {
                area.draw(&PathElement::new([(x, y), (x + px(7), y)], stroke))?;
                area.draw(&PathElement::new([(x + px(11), y), (x + px(18), y)], stroke))?;
            }
            Mark::Dot(..) | Mark::Points(_) | Mark::Named(..) => {
                area.draw(&Circle::new((x + px(9), y), px(5), colour.filled()))?;
            }
            Mark::Band(_) => {
                let corners = [(x, y - px(5)), (x + px(18), y + px(5))];
                area.draw(&Rectangle::new(corners, colour.mix(0.25).filled()))?;
            }
        }
        area.draw_text(label, &font, (x + px(24), y))?;
    }
    Ok(())
}

fn px(pixels: i32) -> i32 {
    pixels * FINE as i32
}

fn finite(points: &[(f64, f64)]) -> impl Iterator<Item = (f64, f64)> + '_ {
    points.iter().copied().filter(|(x, y)| x.is_finite() && y.is_finite())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(mark: Mark, scale: Scale) -> Chart<'static> {
        Chart {
            alt: "a \"<test>\"".into(),
            x: Axis { label: "round", scale: Scale::Count },
            y: Axis { label: "value", scale },
            series: vec![Series { label: Some("a < b".into()), colour: PALETTE[0], mark }],
        }
    }

    #[test]
    fn nothing_finite_is_no_picture() {
        assert_eq!(chart(Mark::Line(Vec::new()), Scale::Number).svg(600, 300), None);
        assert_eq!(chart(Mark::Line(vec![(1.0, f64::NAN)]), Scale::Number).svg(600, 300), None);
    }

    #[test]
    fn extreme_points_are_drawn_without_nonsense() {
        for scale in [Scale::Count, Scale::Share, Scale::Amount, Scale::Number, Scale::Decades] {
            for points in [vec![(1.0, 0.0)], vec![(1.0, 1.0), (2.0, 1.0)], vec![(1.0, 1e300), (2.0, f64::INFINITY)]] {
                let svg = chart(Mark::Line(points), scale).svg(600, 300).unwrap();
                assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
                assert!(
                    svg.contains("a &lt; b") && svg.contains("a &quot;&lt;test&gt;&quot;") && svg.ends_with("</svg>\n")
                );
            }
        }
    }

    #[test]
    fn names_of_dots_keep_clear_of_each_other() {
        let at = |points: &[(i32, i32)]| beside(&points.iter().map(|&at| (at, "name")).collect::<Vec<_>>(), px(600));
        assert_eq!(at(&[(px(300), px(100))]), [(px(8), 0)]);
        assert_eq!(at(&[(px(590), px(100)), (px(60), px(100))]), [(-px(8), 0), (px(8), 0)], "no room, on one side");
        assert_eq!(at(&[(px(300), px(100)), (px(312), px(100))]), [(-px(8), 0), (px(8), 0)], "off the other's dot");
        let same = at(&[(px(300), px(100)); 4]);
        assert_eq!(same, [(px(8), 0), (-px(8), 0), (px(8), px(16)), (-px(8), px(16))], "off the other's name");
    }

    #[test]
    fn ticks_show_the_digits_that_tell_them_apart() {
        assert_eq!(Scale::Share.tick(0.85, (0.2, 0.95)), "85 %");
        assert_eq!(Scale::Share.tick(0.915, (0.91, 0.93)), "91.5 %");
        assert_eq!(Scale::Count.tick(2.5, (0.0, 5.0)), "");
        assert_eq!(Scale::Number.tick(0.25, (0.0, 1.0)), "0.2");
        assert_eq!(Scale::Number.tick(-1e-18, (-1.0, 1.0)), "0.0");
        let decades = [-0.5, 0.0, 0.5, 1.0, 1.5, 2.5].map(|tick| Scale::Decades.tick(tick, (-1.0, 3.0)));
        assert_eq!(decades, ["0.32", "1.0", "3.2", "10", "32", "320"]);
    }
}
