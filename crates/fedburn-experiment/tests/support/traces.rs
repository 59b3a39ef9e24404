//! What a run leaves that must not depend on how it went.

use std::fs;
use std::path::Path;

use fedburn::core::Seed;
use serde_json::Value;

use super::json;

/// Everything in a seed's folder that must not depend on how the run went.
#[derive(Debug, PartialEq)]
pub struct Traces {
    model: Vec<u8>,
    pub model_hash: Value,
    pub rounds: Vec<String>,
    pub clients: String,
    pub baselines: Value,
    pub events: Vec<Value>,
}

impl Traces {
    pub fn of(dir: &Path) -> Self {
        let text = |name: &str| fs::read_to_string(dir.join(name)).unwrap();
        let summary = json(&dir.join("summary.json"));
        assert!(summary["model_hash"].as_str().is_some_and(|hash| hash.len() == 64), "{summary}");
        Self {
            model: fs::read(dir.join("model.safetensors")).unwrap(),
            model_hash: summary["model_hash"].clone(),
            // Seconds are the last column.
            rounds: text("rounds.csv").lines().map(|row| row.rsplit_once(',').unwrap().0.to_owned()).collect(),
            clients: text("clients.csv"),
            baselines: json(&dir.join("baselines.json")),
            events: events(&text("events.jsonl")),
        }
    }

    pub fn assert_same(&self, other: &Self, what: &str) {
        assert_eq!(self.model_hash, other.model_hash, "{what}");
        assert!(self.model == other.model, "{what}: the models' bytes differ");
        assert_eq!(self.rounds, other.rounds, "{what}");
        assert_eq!(self.clients, other.clients, "{what}");
        assert_eq!(self.baselines, other.baselines, "{what}");
        for (a, b) in self.events.iter().zip(&other.events) {
            assert_eq!(a, b, "{what}");
        }
        assert_eq!(self.events.len(), other.events.len(), "{what}");
    }
}

/// Events without wall-clock seconds. Clients answer in any order, so those of a round are sorted. Left out is what
/// tells of the process and not of the training: where it began again, and checkpoints, which a kill right after
/// writing one leaves untold.
pub fn events(text: &str) -> Vec<Value> {
    let mut events: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let name = |event: &Value| event["event"].as_str().unwrap().to_owned();
    events.retain(|event| match name(event).as_str() {
        "checkpointed" => false,
        "run_started" => event["round"] == 0,
        _ => true,
    });
    events.iter_mut().for_each(|event| drop(event.as_object_mut().unwrap().remove("seconds")));
    let of_client = |event: &Value| name(event).starts_with("client_");
    let mut groups: Vec<Vec<Value>> = Vec::new();
    for event in events {
        match groups.last_mut() {
            Some(group) if of_client(&event) && of_client(&group[0]) => group.push(event),
            _ => groups.push(vec![event]),
        }
    }
    groups.iter_mut().for_each(|group| group.sort_by_key(Value::to_string));
    groups.into_iter().flatten().collect()
}

/// The last round in `rounds.csv`, 0 where there is none yet.
pub fn last_round(dir: &Path) -> u64 {
    let text = fs::read_to_string(dir.join("rounds.csv")).unwrap_or_default();
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    whole.lines().last().and_then(|row| row.split(',').next()?.parse().ok()).unwrap_or(0)
}

/// A number from 0 up to `end`, excluded, fixed by the test and not by the clock.
pub fn draw(seed: Seed, index: u64, end: u64) -> u64 {
    use rand::Rng;
    seed.index(index).rng().next_u64() % end
}
