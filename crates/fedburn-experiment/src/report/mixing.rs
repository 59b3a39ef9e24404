//! How much each client counted: mean weights tensor by tensor, and who dominated when.

use std::collections::BTreeMap;
use std::fmt::Write;

use maud::{Escaper, Markup, PreEscaped, html as markup};

use crate::events::Mixing;
use crate::results::ExperimentResults;

/// Clients that have a column and a colour of their own; of more, those that counted most, and the others together.
const MOST_CLIENTS: usize = 10;
/// Columns of rounds in the second picture; of more rounds, neighbours share one.
const MOST_COLUMNS: usize = 280;
/// Pixels of a letter, of a heat map's cell, of a row of rounds, of the rounds' whole width.
const LETTER: usize = 7;
const CELL: (usize, usize) = (58, 24);
const ROW: usize = 18;
const WIDTH: usize = 560;

/// Ten colours that can be told apart with any colour vision: Paul Tol, "Colour Schemes", technical note SRON/EPS/TN/09-002,
/// 2021, "muted". The last, a grey, is for the others.
const COLOURS: [&str; MOST_CLIENTS + 1] = [
    "#332288", "#88CCEE", "#44AA99", "#117733", "#999933", "#DDCC77", "#CC6677", "#882255", "#AA4499", "#D0743C",
    "#BBBBBB",
];

/// The section, drawn for the first seed that has weights; nothing where the strategy does not decide them.
pub(super) fn section(results: &ExperimentResults) -> Markup {
    let drawn = results.counted().into_iter().find_map(|run| Some((run.seed, run.mixing.as_ref()?)));
    markup! {
        @if let Some((seed, mixing)) = drawn {
            section id="mixing" {
                h2 { "How much each client counted" }
                figure {
                    (PreEscaped(heat_map(mixing)))
                    figcaption {
                        "Seed " (seed) ": mean weight of each client in each tensor over the rounds that it took part in"
                        @if mixing.mean.len() > MOST_CLIENTS {
                            "; the " (MOST_CLIENTS - 1) " clients that counted most, and the mean of the others"
                        }
                        "."
                    }
                }
                figure {
                    (PreEscaped(dominance(mixing)))
                    figcaption {
                        "Seed " (seed) ": the client with the largest weight in each tensor, by round. "
                        "The legend tells in how many of all tensors and rounds that was each client."
                    }
                }
            }
        }
    }
}

/// Columns of clients, rows of tensors; the darker, the more a client counted.
fn heat_map(mixing: &Mixing) -> String {
    let columns = columns(mixing);
    let left = left(mixing);
    let (top, bottom) = (26, 26 + CELL.1 * mixing.tensors.len());
    let right = left + CELL.0 * columns.len();
    let all = || columns.iter().flat_map(|(_, weights)| weights).copied();
    let (least, most) = (all().fold(f64::INFINITY, f64::min), all().fold(f64::NEG_INFINITY, f64::max));
    let mut svg = Drawing::new(right + 90, bottom + 8, "Mean weight of each client in each tensor");
    for (row, tensor) in mixing.tensors.iter().enumerate() {
        svg.text(left - 8, top + CELL.1 * row + 16, "end", INK, tensor);
    }
    for (column, (name, weights)) in columns.iter().enumerate() {
        let x = left + CELL.0 * column;
        svg.text(x + CELL.0 / 2, top - 8, "middle", INK, name);
        for (row, weight) in weights.iter().enumerate() {
            let (y, share) = (top + CELL.1 * row, (weight - least) / (most - least).max(f64::MIN_POSITIVE));
            svg.rect((x, y), (CELL.0, CELL.1), &blue(share));
            // Not the page's ink, which turns light on a dark page while the cell stays as it is.
            let ink = if share > 0.55 { "#FEFEFE" } else { "#101418" };
            svg.text(x + CELL.0 / 2, y + 16, "middle", ink, &format!("{weight:.3}"));
        }
    }
    let steps = 24.min(bottom - top).max(1);
    for step in 0..steps {
        let y = |step: usize| top + (bottom - top) * step / steps;
        let share = 1.0 - (step as f64 + 0.5) / steps as f64;
        svg.rect((right + 16, y(step)), (14, y(step + 1) - y(step)), &blue(share));
    }
    svg.text(right + 36, top + 10, "start", MUTED, &format!("{most:.3}"));
    svg.text(right + 36, bottom, "start", MUTED, &format!("{least:.3}"));
    svg.finish()
}

/// Rounds to the right, rows of tensors; the colour is the dominant client's.
fn dominance(mixing: &Mixing) -> String {
    let ranked = ranked(mixing);
    let alone = if ranked.len() > MOST_CLIENTS { MOST_CLIENTS - 1 } else { ranked.len() };
    // Colours go by client number, so that they do not change with the weights.
    let mut own = ranked[..alone].to_vec();
    own.sort_unstable();
    let colour = |client: u64| own.binary_search(&client).map_or(COLOURS[MOST_CLIENTS], |place| COLOURS[place]);
    let left = left(mixing);
    let group = mixing.dominant.len().div_ceil(MOST_COLUMNS).max(1);
    let rounds: Vec<_> = mixing.dominant.chunks(group).collect();
    let x = |column: usize| left + WIDTH * column / rounds.len().max(1);
    let bottom = 8 + ROW * mixing.tensors.len();
    let entries = legend(mixing, &own);
    let per_row = ((left + WIDTH) / 150).max(1);
    let height = bottom + 40 + 20 * entries.len().div_ceil(per_row);
    let mut svg =
        Drawing::new(left + WIDTH + 20, height, "The client with the largest weight in each tensor, by round");
    for (row, tensor) in mixing.tensors.iter().enumerate() {
        let y = 8 + ROW * row;
        svg.text(left - 8, y + 13, "end", INK, tensor);
        let column = |part: &&[(u64, Vec<u64>)]| colour(most_frequent(part.iter().map(|(_, clients)| clients[row])));
        let colours: Vec<_> = rounds.iter().map(column).collect();
        let mut start = 0;
        while start < colours.len() {
            // Neighbours of one colour are one rectangle: pictures of many rounds stay small.
            let same = colours[start..].iter().take_while(|other| **other == colours[start]).count();
            svg.rect((x(start), y), (x(start + same) - x(start), ROW - 2), colours[start]);
            start += same;
        }
    }
    for tick in 0..=4 {
        let column = (rounds.len() - 1) * tick / 4;
        if tick == 0 || column > (rounds.len() - 1) * (tick - 1) / 4 {
            let middle = (x(column) + x(column + 1)) / 2;
            svg.text(middle, bottom + 14, "middle", MUTED, &rounds[column][0].0.to_string());
        }
    }
    svg.text(left + WIDTH / 2, bottom + 30, "middle", INK, "round");
    for (index, (name, client)) in entries.iter().enumerate() {
        let (x, y) = (8 + 150 * (index % per_row), bottom + 38 + 20 * (index / per_row));
        svg.rect((x, y), (14, 14), client.map_or(COLOURS[MOST_CLIENTS], &colour));
        svg.text(x + 20, y + 12, "start", INK, name);
    }
    svg.finish()
}

/// The clients with a colour of their own, then all others: what the legend says of each.
fn legend(mixing: &Mixing, own: &[u64]) -> Vec<(String, Option<u64>)> {
    let mut counts = BTreeMap::<Option<u64>, usize>::new();
    let known = |client: &u64| Some(*client).filter(|client| own.binary_search(client).is_ok());
    let all = mixing.dominant.iter().flat_map(|(_, clients)| clients);
    all.for_each(|client| *counts.entry(known(client)).or_default() += 1);
    let total = counts.values().sum::<usize>().max(1) as f64;
    let share = |client| format!("{:.0} %", 100.0 * counts.get(&client).copied().unwrap_or(0) as f64 / total);
    let mut entries: Vec<_> =
        own.iter().map(|&client| (format!("client {client}: {}", share(Some(client))), Some(client))).collect();
    let others = mixing.mean.len() - own.len();
    if others > 0 {
        entries.push((format!("{others} others: {}", share(None)), None));
    }
    entries
}

/// The name and weights of each column.
fn columns(mixing: &Mixing) -> Vec<(String, Vec<f64>)> {
    let column = |client: &u64| (format!("client {client}"), mixing.mean[client].clone());
    let mut ranked = ranked(mixing);
    if ranked.len() <= MOST_CLIENTS {
        ranked.sort_unstable();
        return ranked.iter().map(column).collect();
    }
    let (most, others) = ranked.split_at(MOST_CLIENTS - 1);
    let mean =
        |tensor: usize| others.iter().map(|client| mixing.mean[client][tensor]).sum::<f64>() / others.len() as f64;
    let rest = (format!("{} others", others.len()), (0..mixing.tensors.len()).map(mean).collect());
    most.iter().map(column).chain([rest]).collect()
}

/// The clients, those with the largest mean weight first.
fn ranked(mixing: &Mixing) -> Vec<u64> {
    let total = |client: &u64| mixing.mean[client].iter().sum::<f64>();
    let mut clients: Vec<u64> = mixing.mean.keys().copied().collect();
    clients.sort_by(|a, b| total(b).total_cmp(&total(a)).then(a.cmp(b)));
    clients
}

/// The most frequent of some clients, the lowest number of equals.
fn most_frequent(clients: impl Iterator<Item = u64>) -> u64 {
    let mut counts = BTreeMap::<u64, usize>::new();
    clients.for_each(|client| *counts.entry(client).or_default() += 1);
    let best = counts.into_iter().reduce(|best, other| if other.1 > best.1 { other } else { best });
    best.map_or(0, |(client, _)| client)
}

/// Room for the names of tensors.
fn left(mixing: &Mixing) -> usize {
    LETTER * mixing.tensors.iter().map(|tensor| tensor.chars().count()).max().unwrap_or(0) + 16
}

/// White to dark blue, for a share in `[0, 1]`.
fn blue(share: f64) -> String {
    const STOPS: [[f64; 3]; 3] = [[247.0, 251.0, 255.0], [107.0, 174.0, 214.0], [8.0, 48.0, 107.0]];
    let at = 2.0 * share.clamp(0.0, 1.0);
    let (below, above) = if at < 1.0 { (STOPS[0], STOPS[1]) } else { (STOPS[1], STOPS[2]) };
    let mix =
        |channel: usize| (below[channel] + (above[channel] - below[channel]) * (at - at.floor().min(1.0))).round();
    format!("#{:02X}{:02X}{:02X}", mix(0) as u8, mix(1) as u8, mix(2) as u8)
}

/// The page's style sheet knows these colours.
const INK: &str = "#1B1F24";
const MUTED: &str = "#57606A";

/// An SVG element under way.
struct Drawing(String);

impl Drawing {
    fn new(width: usize, height: usize, alt: &str) -> Self {
        Self(format!(
            r#"<svg xmlns="http://www.w3.org/2000/svg" class="chart" width="{width}" height="{height}" viewBox="0 0 {width} {height}" role="img" aria-label="{alt}" font-family="sans-serif" font-size="12">"#
        ))
    }

    fn rect(&mut self, (x, y): (usize, usize), (width, height): (usize, usize), fill: &str) {
        // Writing to a string does not fail.
        let _ = write!(self.0, r#"<rect x="{x}" y="{y}" width="{width}" height="{height}" fill="{fill}"/>"#);
    }

    fn text(&mut self, x: usize, y: usize, anchor: &str, fill: &str, text: &str) {
        let _ = write!(self.0, r#"<text x="{x}" y="{y}" text-anchor="{anchor}" fill="{fill}">"#);
        let _ = write!(Escaper::new(&mut self.0), "{text}");
        self.0 += "</text>";
    }

    fn finish(self) -> String {
        self.0 + "</svg>"
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{experiment, finished};

    fn mixing(clients: u64, rounds: u64) -> Mixing {
        let tensors = vec!["conv1.weight".to_owned(), "a<b".to_owned()];
        let mean = (0..clients).map(|client| (client, vec![client as f64 / 100.0, 0.5])).collect();
        let dominant = (1..=rounds).map(|round| (round, vec![round % clients, clients - 1])).collect();
        Mixing { tensors, mean, dominant }
    }

    #[test]
    fn few_clients_have_a_column_and_a_colour_each() {
        let mixing = mixing(3, 40);
        let map = heat_map(&mixing);
        assert!(map.contains(">client 2<") && map.contains(">0.020<") && map.contains("a&lt;b"), "{map}");
        let rounds = dominance(&mixing);
        // Client 2 has all rounds of the second tensor and a third of the first's.
        assert!(
            rounds.contains(">client 2: 66 %<") && rounds.contains(">40<") && !rounds.contains("others"),
            "{rounds}"
        );
    }

    #[test]
    fn many_clients_and_rounds_are_put_together() {
        let mixing = mixing(50, 5000);
        let map = heat_map(&mixing);
        assert!(map.contains(">client 49<") && map.contains(">41 others<") && !map.contains(">client 3<"), "{map}");
        let rounds = dominance(&mixing);
        assert!(rounds.contains(">41 others: 41 %<") && rounds.len() < 60_000, "{}", rounds.len());
    }

    #[test]
    fn one_round_and_one_client_are_drawn() {
        let svg = dominance(&mixing(1, 1)) + &heat_map(&mixing(1, 1));
        assert!(svg.contains(">client 0: 100 %<") && !svg.contains("NaN"), "{svg}");
    }

    #[test]
    fn the_section_is_there_where_weights_are() {
        let mut runs = vec![finished(&[Some(0.5)]), finished(&[Some(0.5)])];
        assert_eq!(section(&experiment("s/n", runs.clone())).into_string(), "");
        runs[1].mixing = Some(mixing(3, 4));
        let section = section(&experiment("s/n", runs)).into_string();
        assert!(section.contains("Seed 1: mean weight") && section.matches("<svg").count() == 2, "{section}");
    }
}
