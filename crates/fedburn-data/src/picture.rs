//! Pictures of a partition as SVG: class counts of every client as stacked bars or as a heat map.
//!
//! Up to ten classes have the "muted" colours of Paul Tol ("Colour Schemes", technical note SRON/EPS/TN/09-002, 2021),
//! more classes the "viridis" scale (van der Walt and Smith, 2015), the heat map the "Blues" of ColorBrewer (Harrower and
//! Brewer, 2003); all can be told apart with any colour vision. Clients are in order of their number; where there are more than 1,000, a column is the mean of
//! several neighbours, and the axis says so.

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::PartitionStatistics;

/// Most columns of a picture.
const MAX_COLUMNS: usize = 1000;
/// Pixels of the plot, about: columns are a whole number of pixels wide.
const WIDTH: usize = 800;
const HEIGHT: i32 = 340;
/// Room around the plot.
const LEFT: i32 = 76;
const TOP: i32 = 44;
const BOTTOM: i32 = 56;
const TEXT: RGBColor = RGBColor(40, 40, 40);
const LINE: RGBColor = RGBColor(215, 215, 215);
const MUTED: [RGBColor; 10] = [
    RGBColor(0x33, 0x22, 0x88),
    RGBColor(0x88, 0xcc, 0xee),
    RGBColor(0x44, 0xaa, 0x99),
    RGBColor(0x11, 0x77, 0x33),
    RGBColor(0x99, 0x99, 0x33),
    RGBColor(0xdd, 0xcc, 0x77),
    RGBColor(0xcc, 0x66, 0x77),
    RGBColor(0x88, 0x22, 0x55),
    RGBColor(0xaa, 0x44, 0x99),
    RGBColor(0xbb, 0xbb, 0xbb),
];
const VIRIDIS: &[(u8, u8, u8)] = &[
    (253, 231, 37),
    (173, 220, 48),
    (94, 201, 98),
    (40, 174, 128),
    (33, 145, 140),
    (44, 114, 142),
    (59, 82, 139),
    (71, 45, 123),
    (68, 1, 84),
];
const BLUES: &[(u8, u8, u8)] = &[
    (222, 235, 247),
    (198, 219, 239),
    (158, 202, 225),
    (107, 174, 214),
    (66, 146, 198),
    (33, 113, 181),
    (8, 81, 156),
    (8, 48, 107),
];

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Drawn = Result<(), Box<dyn std::error::Error>>;

/// One bar for each client, its examples stacked by class. `class_names` go into the legend; classes without a name get
/// their number.
pub fn stacked_bars(statistics: &PartitionStatistics, title: &str, class_names: &[String]) -> String {
    let plot = Plot::new(statistics, title, class_names);
    let legend = if plot.classes() <= MUTED.len() { plot.name_width() + 36 } else { 96 };
    plot.draw(HEIGHT, legend, |area| {
        let totals = plot.columns.iter().map(|column| column.iter().sum::<f64>());
        let top = totals.fold(0.0, f64::max).max(1.0);
        let y = |value: f64| TOP + HEIGHT - (value / top * f64::from(HEIGHT)).round() as i32;
        for tick in ticks(top) {
            area.draw(&PathElement::new(vec![(LEFT, y(tick as f64)), (LEFT + plot.width(), y(tick as f64))], LINE))?;
            label(area, &tick.to_string(), (LEFT - 6, y(tick as f64)), HPos::Right, VPos::Center)?;
        }
        let per = if plot.group > 1 { "mean examples of a client" } else { "examples" };
        upright_label(area, per, TOP + HEIGHT / 2)?;
        let mut below = vec![0.0; plot.columns.len()];
        for class in 0..plot.classes() {
            let above: Vec<f64> = below.iter().zip(&plot.columns).map(|(b, column)| b + column[class]).collect();
            let edges: Vec<(i32, i32)> = below.iter().zip(&above).map(|(&b, &a)| (y(b), y(a))).collect();
            plot.bars(area, &edges, plot.colour(class))?;
            below = above;
        }
        plot.class_legend(area)
    })
}

/// One column for each client and one row for each class; the darker, the more examples, white for none. Darkness goes
/// with the square root of the number, so that one large client does not make all others pale. `class_names` label the rows; classes without a name get their number.
pub fn heat_map(statistics: &PartitionStatistics, title: &str, class_names: &[String]) -> String {
    let plot = Plot::new(statistics, title, class_names);
    let row = (HEIGHT / plot.classes().max(1) as i32).clamp(5, 34);
    let height = row * plot.classes() as i32;
    plot.draw(height, 96, |area| {
        let top = plot.columns.iter().flatten().copied().fold(0.0, f64::max).max(1.0);
        // Names need 14 pixels of height.
        let step = (14 + row - 1) / row;
        for class in 0..plot.classes() {
            let y = TOP + class as i32 * row;
            if class % step as usize == 0 {
                label(area, &plot.name(class), (LEFT - 6, y + row / 2), HPos::Right, VPos::Center)?;
            }
            // Neighbours of equal count are one rectangle: pictures of many clients stay small.
            let mut start = 0;
            while start < plot.columns.len() {
                let count = plot.columns[start][class];
                let same = plot.columns[start..].iter().take_while(|column| column[class] == count).count();
                if count > 0.0 {
                    let cell = [(plot.x(start), y), (plot.x(start + same), y + row)];
                    area.draw(&Rectangle::new(cell, scale(BLUES, (count / top).sqrt()).filled()))?;
                }
                start += same;
            }
        }
        let per = if plot.group > 1 { "mean examples" } else { "examples" };
        let right = LEFT + plot.width() + 24;
        colour_bar(area, right, height, BLUES, [&format!("{top:.0}"), &format!("{:.0}", top / 4.0), "0"])?;
        label(area, per, (right, TOP - 8), HPos::Left, VPos::Bottom)?;
        upright_label(area, "class", TOP + height / 2)
    })
}

/// What both pictures share: columns, axes, title.
struct Plot<'a> {
    title: &'a str,
    class_names: &'a [String],
    /// Counts by class of each column.
    columns: Vec<Vec<f64>>,
    num_clients: usize,
    /// Clients in a column.
    group: usize,
    /// Pixels of a column.
    pixels: i32,
}

impl<'a> Plot<'a> {
    fn new(statistics: &PartitionStatistics, title: &'a str, class_names: &'a [String]) -> Self {
        let num_clients = statistics.clients.len();
        let group = num_clients.div_ceil(MAX_COLUMNS).max(1);
        let num_classes = statistics.class_counts.len();
        let mean = |clients: &[crate::ClientStatistics]| {
            let of_class = |class| clients.iter().map(|c: &crate::ClientStatistics| c.class_counts[class]).sum::<u64>();
            (0..num_classes).map(|class| of_class(class) as f64 / clients.len() as f64).collect()
        };
        let columns: Vec<Vec<f64>> = statistics.clients.chunks(group).map(mean).collect();
        let pixels = (WIDTH / columns.len().max(1)).max(1) as i32;
        Self { title, class_names, columns, num_clients, group, pixels }
    }

    /// Draws title, client axis and `content` into a picture with a plot of this height and `right` pixels beside it.
    fn draw(&self, height: i32, right: i32, content: impl FnOnce(&Area<'_>) -> Drawn) -> String {
        let mut svg = String::new();
        let size = ((LEFT + self.width() + right).max(320) as u32, (TOP + height + BOTTOM) as u32);
        let area = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        let drawn = area.fill(&WHITE).map_err(Into::into).and_then(|()| content(&area));
        let drawn = drawn.and_then(|()| self.client_axis(&area, TOP + height)).and_then(|()| Ok(area.present()?));
        drawn.expect("an SVG in a string has no file and no font that could be missing");
        drop(area);
        svg
    }

    fn client_axis(&self, area: &Area<'_>, bottom: i32) -> Drawn {
        area.draw(&PathElement::new(vec![(LEFT, bottom), (LEFT + self.width(), bottom)], TEXT))?;
        area.draw(&Text::new(self.title.to_owned(), (LEFT, 12), ("sans-serif", 17).into_font().color(&TEXT)))?;
        let step = if self.num_clients <= 20 { 1 } else { nice(self.num_clients as f64 / 10.0) as usize };
        for client in (0..self.num_clients).step_by(step.max(1)) {
            let x = self.x(client / self.group) + self.pixels / 2;
            area.draw(&PathElement::new(vec![(x, bottom), (x, bottom + 4)], TEXT))?;
            label(area, &client.to_string(), (x, bottom + 8), HPos::Center, VPos::Top)?;
        }
        let axis = match self.group {
            1 => "client".to_owned(),
            group => format!("client (a column is the mean of {group})"),
        };
        label(area, &axis, (LEFT + self.width() / 2, bottom + 32), HPos::Center, VPos::Top)
    }

    /// The bars of one class, given their lower and upper edges; wide bars are apart, narrow ones are one outline.
    fn bars(&self, area: &Area<'_>, edges: &[(i32, i32)], colour: RGBColor) -> Drawn {
        if self.pixels >= 4 {
            for (column, &(lower, upper)) in edges.iter().enumerate().filter(|(_, (lower, upper))| lower > upper) {
                let bar = [(self.x(column), upper), (self.x(column + 1) - 1, lower)];
                area.draw(&Rectangle::new(bar, colour.filled()))?;
            }
            return Ok(());
        }
        let side = |column: usize, y: i32| [(self.x(column), y), (self.x(column + 1), y)];
        let upper = edges.iter().enumerate().flat_map(|(column, &(_, upper))| side(column, upper));
        let lower = edges.iter().enumerate().rev().flat_map(|(column, &(lower, _))| {
            let [left, right] = side(column, lower);
            [right, left]
        });
        area.draw(&Polygon::new(upper.chain(lower).collect::<Vec<_>>(), colour.filled()))?;
        Ok(())
    }

    fn class_legend(&self, area: &Area<'_>) -> Drawn {
        let left = LEFT + self.width() + 16;
        if self.classes() > MUTED.len() {
            label(area, "class", (left + 8, TOP - 8), HPos::Left, VPos::Bottom)?;
            return colour_bar(
                area,
                left + 8,
                HEIGHT,
                VIRIDIS,
                [&self.name(self.classes() - 1), &self.name(self.classes() / 2), &self.name(0)],
            );
        }
        // The first class is at the bottom, as in the bars.
        for class in 0..self.classes() {
            let y = TOP + (self.classes() - 1 - class) as i32 * 22;
            area.draw(&Rectangle::new([(left, y), (left + 13, y + 13)], self.colour(class).filled()))?;
            label(area, &self.name(class), (left + 20, y + 7), HPos::Left, VPos::Center)?;
        }
        Ok(())
    }

    fn x(&self, column: usize) -> i32 {
        LEFT + column as i32 * self.pixels
    }

    fn width(&self) -> i32 {
        self.columns.len().max(1) as i32 * self.pixels
    }

    fn classes(&self) -> usize {
        self.columns.first().map_or(0, Vec::len)
    }

    fn colour(&self, class: usize) -> RGBColor {
        match self.classes() {
            few if few <= MUTED.len() => MUTED[class],
            many => scale(VIRIDIS, class as f64 / (many - 1) as f64),
        }
    }

    /// At most 16 characters.
    fn name(&self, class: usize) -> String {
        self.class_names.get(class).map_or_else(|| class.to_string(), |name| name.chars().take(16).collect())
    }

    fn name_width(&self) -> i32 {
        (0..self.classes()).map(|class| self.name(class).chars().count()).max().unwrap_or(0) as i32 * 8 + 16
    }
}

/// A colour between `stops` for `0.0..=1.0`, light to dark.
fn scale(stops: &[(u8, u8, u8)], value: f64) -> RGBColor {
    let place = value.clamp(0.0, 1.0) * (stops.len() - 1) as f64;
    let below = (place as usize).min(stops.len() - 2);
    let part = place - below as f64;
    let mix = |a: u8, b: u8| (f64::from(a) * (1.0 - part) + f64::from(b) * part).round() as u8;
    let (a, b) = (stops[below], stops[below + 1]);
    RGBColor(mix(a.0, b.0), mix(a.1, b.1), mix(a.2, b.2))
}

/// The scale from dark above to light below, with the names of both ends and the middle.
fn colour_bar(area: &Area<'_>, left: i32, height: i32, stops: &[(u8, u8, u8)], names: [&str; 3]) -> Drawn {
    let steps = 64.min(height);
    for step in 0..steps {
        let edge = |step: i32| TOP + height * step / steps;
        let colour = scale(stops, 1.0 - f64::from(step) / f64::from((steps - 1).max(1)));
        area.draw(&Rectangle::new([(left, edge(step)), (left + 14, edge(step + 1))], colour.filled()))?;
    }
    label(area, names[0], (left + 20, TOP), HPos::Left, VPos::Top)?;
    label(area, names[1], (left + 20, TOP + height / 2), HPos::Left, VPos::Center)?;
    label(area, names[2], (left + 20, TOP + height), HPos::Left, VPos::Bottom)
}

fn label(area: &Area<'_>, text: &str, at: (i32, i32), horizontal: HPos, vertical: VPos) -> Drawn {
    let style = ("sans-serif", 13).into_font().color(&TEXT).pos(Pos::new(horizontal, vertical));
    Ok(area.draw(&Text::new(text.to_owned(), at, style))?)
}

/// The name of the vertical axis, reading upwards.
fn upright_label(area: &Area<'_>, text: &str, centre: i32) -> Drawn {
    let font = ("sans-serif", 13).into_font().transform(FontTransform::Rotate270);
    let style = font.color(&TEXT).pos(Pos::new(HPos::Center, VPos::Center));
    Ok(area.draw(&Text::new(text.to_owned(), (14, centre), style))?)
}

/// About five round numbers from 0 to `top`.
fn ticks(top: f64) -> Vec<u64> {
    let step = nice(top / 5.0) as u64;
    (0..).map(|n| n * step).take_while(|&tick| tick as f64 <= top).collect()
}

/// The smallest of 1, 2, 5, 10, 20, 50 ... that is at least `value`.
fn nice(value: f64) -> f64 {
    let mut power = 1.0;
    loop {
        for digit in [1.0, 2.0, 5.0] {
            if digit * power >= value || power > 1e15 {
                return digit * power;
            }
        }
        power *= 10.0;
    }
}

#[cfg(test)]
mod tests {
    use fedburn_core::{ClassId, Seed};

    use super::*;
    use crate::partition::{Dirichlet, Iid, Partition, Partitioner};

    fn statistics(clients: usize, classes: u32) -> PartitionStatistics {
        let labels: Vec<ClassId> = (0..20 * clients as u32).map(|i| ClassId(i % classes)).collect();
        let partition = Dirichlet::new(0.3, 1).unwrap().partition(&labels, clients, Seed::new(3)).unwrap();
        PartitionStatistics::new(&partition, &labels, classes as usize).unwrap()
    }

    fn count(svg: &str, tag: &str) -> usize {
        svg.matches(tag).count()
    }

    #[test]
    fn every_size_is_drawn_and_small() {
        for (clients, classes) in [(1, 1), (10, 10), (100, 10), (1000, 10), (5000, 3), (30, 100)] {
            let statistics = statistics(clients, classes);
            for svg in [stacked_bars(&statistics, "split", &[]), heat_map(&statistics, "split", &[])] {
                assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
                assert!(!svg.contains("NaN") && !svg.contains("inf"), "{clients} clients, {classes} classes");
                assert!(svg.len() < 900_000, "{clients} clients, {classes} classes: {} bytes", svg.len());
                assert!(svg.contains(if clients == 5000 { "the mean of 5" } else { "client" }));
            }
        }
    }

    #[test]
    fn bars_add_up_to_sizes() {
        // Two clients of 30 and 60 examples of one class: the second bar is the full height, the first half of it.
        let labels = [ClassId(0); 90];
        let partition = Partition::new(vec![(0..30).collect(), (30..90).collect()], 90).unwrap();
        let svg = stacked_bars(&PartitionStatistics::new(&partition, &labels, 1).unwrap(), "", &["only".into()]);
        assert!(svg.contains(&format!("height=\"{HEIGHT}\"")) && svg.contains(&format!("height=\"{}\"", HEIGHT / 2)));
        assert!(svg.contains("only"));
    }

    #[test]
    fn heat_map_cells_are_the_classes_that_occur() {
        let labels: Vec<ClassId> = (0..4).map(ClassId).collect();
        let partition = Partition::new(vec![vec![0], vec![1], vec![2, 3]], 4).unwrap();
        let svg = heat_map(&PartitionStatistics::new(&partition, &labels, 4).unwrap(), "", &[]);
        // Background, colour bar of 64 steps, and one cell for each example.
        assert_eq!(count(&svg, "<rect"), 1 + 64 + 4);
    }

    #[test]
    fn no_example_at_all_is_drawn() {
        let partition = Iid.partition(&[], 3, Seed::new(0)).unwrap();
        let statistics = PartitionStatistics::new(&partition, &[], 0).unwrap();
        assert!(
            stacked_bars(&statistics, "", &[]).contains("</svg>") && heat_map(&statistics, "", &[]).contains("</svg>")
        );
    }

    #[test]
    fn names_are_escaped_and_cut() {
        let svg = stacked_bars(&statistics(2, 2), "<a & b>", &["<script>alert(1)</script>".into()]);
        assert!(!svg.contains("<script") && !svg.contains("<a &"));
    }
}
