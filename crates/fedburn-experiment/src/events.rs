//! What reports take from `events.jsonl`.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::Path;

use fedburn::core::{Event, MixingWeights, Pictures};

use crate::files::{noted, open};

/// What a run's events told.
#[derive(Clone, Debug, Default)]
pub(crate) struct Told {
    /// Why clients failed and rounds were abandoned, in words, and how often.
    pub(crate) incidents: BTreeMap<String, u64>,
    /// How much each client counted, where the strategy decided it.
    pub(crate) mixing: Option<Mixing>,
    /// What a generator made, by round.
    pub(crate) pictures: BTreeMap<u64, Pictures>,
}

/// How much each client counted over the rounds of a run, tensor by tensor.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Mixing {
    /// Paths of the model's tensors in schema order, or `*` alone.
    pub tensors: Vec<String>,
    /// By client: its mean weight in each tensor, over the rounds that it took part in.
    pub mean: BTreeMap<u64, Vec<f64>>,
    /// In order of rounds: the round, and for each tensor the client with the largest weight, the lowest number of equals.
    pub dominant: Vec<(u64, Vec<u64>)>,
}

impl Mixing {
    /// Condenses the weights of rounds; those whose tensors are not the first round's are left out. `None` without any.
    pub fn of_rounds(rounds: &BTreeMap<u64, MixingWeights>) -> Option<Self> {
        let tensors = rounds.values().next()?.tensors.clone();
        let fits = |weights: &MixingWeights| {
            weights.tensors == tensors
                && weights.weights.len() == tensors.len()
                && !weights.clients.is_empty()
                && weights.weights.iter().all(|row| row.len() == weights.clients.len())
        };
        let mut sums = BTreeMap::<u64, (f64, Vec<f64>)>::new();
        let mut dominant = Vec::new();
        for (round, weights) in rounds.iter().filter(|(_, weights)| fits(weights)) {
            for (place, client) in weights.clients.iter().enumerate() {
                let (count, sum) = sums.entry(client.0).or_insert_with(|| (0.0, vec![0.0; tensors.len()]));
                *count += 1.0;
                sum.iter_mut().zip(&weights.weights).for_each(|(sum, row)| *sum += row[place]);
            }
            let largest = |row: &Vec<f64>| {
                let best = row.iter().enumerate().reduce(|best, other| if other.1 > best.1 { other } else { best });
                best.map_or(0, |(place, _)| weights.clients[place].0)
            };
            dominant.push((*round, weights.weights.iter().map(largest).collect()));
        }
        let mean = sums.into_iter().map(|(client, (count, sum))| (client, sum.iter().map(|s| s / count).collect()));
        (!dominant.is_empty()).then(|| Self { tensors, mean: mean.collect(), dominant })
    }
}

/// Reads the events of the run in `dir`. Those of a round that was run twice, before and after a resumption, count once.
pub(crate) fn read(dir: &Path, problems: &mut Vec<String>) -> Told {
    let name = "events.jsonl";
    let Some(file) = noted(problems, open(dir, name)) else { return Told::default() };
    let (mut told, mut mixed, mut pictures) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
    let (mut reader, mut line, mut number) = (BufReader::new(file), Vec::new(), 0);
    // A line without its end is one that a killed run did not finish.
    while matches!(reader.read_until(b'\n', &mut line), Ok(length) if length > 0) && line.ends_with(b"\n") {
        number += 1;
        // Most lines are of no interest, and a search costs less than decoding.
        let of_interest = [&b"client_failed"[..], b"round_abandoned", b"\"mixed\"", b"\"generated\""];
        if of_interest.iter().any(|words| line.windows(words.len()).any(|window| window == *words)) {
            match serde_json::from_slice(&line) {
                Ok(Event::ClientFailed { round, client, failure }) => {
                    told.insert((round, Some(client)), format!("client {failure}"));
                }
                Ok(Event::RoundAbandoned { round, reason, .. }) => {
                    told.insert((round, None), format!("round abandoned: {reason}"));
                }
                Ok(Event::Mixed { round, weights }) => {
                    mixed.insert(round.0, weights);
                }
                Ok(Event::Generated { round, pictures: made }) => {
                    pictures.insert(round.0, made);
                }
                Ok(_) => {}
                Err(error) => {
                    problems.push(format!("{name}: line {number}: {error}"));
                    break;
                }
            }
        }
        line.clear();
    }
    let mut incidents = BTreeMap::new();
    told.into_values().for_each(|what| *incidents.entry(what).or_default() += 1);
    Told { incidents, mixing: Mixing::of_rounds(&mixed), pictures }
}

#[cfg(test)]
mod tests {
    use fedburn::core::ClientId;

    use super::*;

    fn weights(clients: &[u64], rows: &[&[f64]]) -> MixingWeights {
        MixingWeights {
            clients: clients.iter().copied().map(ClientId).collect(),
            tensors: (0..rows.len()).map(|i| format!("t{i}")).collect(),
            weights: rows.iter().map(|row| row.to_vec()).collect(),
        }
    }

    #[test]
    fn means_are_over_the_rounds_of_a_client_and_the_largest_dominates() {
        let rounds = BTreeMap::from([
            (1, weights(&[0, 1], &[&[0.25, 0.75], &[0.5, 0.5]])),
            (2, weights(&[1, 4], &[&[0.5, 0.5], &[0.0, 1.0]])),
            (3, weights(&[0], &[&[1.0]])),
        ]);
        let mixing = Mixing::of_rounds(&rounds).unwrap();
        let expected = [(0, vec![0.25, 0.5]), (1, vec![0.625, 0.25]), (4, vec![0.5, 1.0])];
        assert_eq!(mixing.mean, BTreeMap::from(expected));
        assert_eq!(mixing.dominant, [(1, vec![1, 0]), (2, vec![1, 4])], "round 3 is of another model");
        assert_eq!(Mixing::of_rounds(&BTreeMap::new()), None);
        assert_eq!(Mixing::of_rounds(&BTreeMap::from([(1, weights(&[], &[&[]]))])), None);
    }

    #[test]
    fn events_of_a_round_run_twice_count_once() {
        let dir = tempfile::tempdir().unwrap();
        let round = fedburn::core::RoundIndex(1);
        let mixed = |w: f64| Event::Mixed { round, weights: weights(&[0, 1], &[&[w, 1.0 - w]]) };
        let lines: String =
            [mixed(0.9), mixed(0.2)].iter().map(|event| serde_json::to_string(event).unwrap() + "\n").collect();
        std::fs::write(dir.path().join("events.jsonl"), lines + "{\"event\":\"mixed\"").unwrap();
        let mut problems = Vec::new();
        let told = read(dir.path(), &mut problems);
        assert_eq!(told.mixing.unwrap().mean[&0], [0.2]);
        assert!(problems.is_empty(), "{problems:?}");
    }
}
