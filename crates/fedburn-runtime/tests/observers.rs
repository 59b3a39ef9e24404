//! Records that a crash cannot spoil, and the rule that ends a run early.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::sync::{Arc, Mutex};

use fedburn_core::{ClientFailure, ClientId, Event, Mean, Metrics, Observer, RoundIndex, StopReason};
use fedburn_runtime::{Console, EarlyStopConfig, EventLog, JsonLines, ObserverError, RoundRow, RoundsCsv, StopMetric};
use proptest::prelude::*;

fn started(round: u64, rounds: u64) -> Event {
    Event::RunStarted { round: RoundIndex(round), rounds, clients: 20, parameters: 7 }
}

fn evaluated(round: u64, accuracy: f64, loss: f64) -> Event {
    let metrics =
        Metrics::new().with(Metrics::ACCURACY, Mean::new(accuracy, 3.0)).with(Metrics::LOSS, Mean::new(loss, 3.0));
    Event::Evaluated { round: RoundIndex(round), metrics }
}

fn committed(round: u64) -> Event {
    Event::RoundCommitted {
        round: RoundIndex(round),
        updates: 2,
        failures: 1,
        metrics: Metrics::new().with(Metrics::TRAIN_LOSS, Mean::new(0.1, 7.0)),
        bytes_down: 84,
        bytes_up: 56,
        seconds: 0.25,
    }
}

/// What a run tells in one round; every third is evaluated and checkpointed, every fifth abandoned.
fn round(round: u64) -> Vec<Event> {
    let index = RoundIndex(round);
    let mut events = vec![
        Event::RoundStarted { round: index, cohort: vec![ClientId(1), ClientId(2), ClientId(5)], available: 19 },
        Event::ClientTrained {
            round: index,
            client: ClientId(2),
            num_examples: 60,
            metrics: Metrics::new().with(Metrics::TRAIN_LOSS, Mean::new(1.0 / round as f64, 60.0)),
        },
        Event::ClientFailed {
            round: index,
            client: ClientId(5),
            failure: ClientFailure::Failed { reason: "line one\nline \"two\"".to_owned() },
        },
    ];
    events.push(if round.is_multiple_of(5) {
        Event::RoundAbandoned {
            round: index,
            reason: "below the quorum".to_owned(),
            updates: 1,
            failures: 2,
            bytes_down: 84,
            bytes_up: 28,
            seconds: 1.5,
        }
    } else {
        committed(round)
    });
    if round.is_multiple_of(3) {
        events.push(evaluated(round, 0.5 + round as f64 / 100.0, 1.0 / 3.0));
        events.push(Event::Checkpointed { round: index });
    }
    events
}

fn rounds(range: std::ops::RangeInclusive<u64>) -> Vec<Event> {
    range.flat_map(round).collect()
}

fn tell(observer: &mut impl Observer, events: &[Event]) {
    events.iter().for_each(|event| assert!(observer.on_event(event).is_continue()));
}

fn events_of(path: &Path) -> Vec<Event> {
    EventLog::open(path).unwrap().collect::<Result<_, _>>().unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// A run killed anywhere, its records cut at any byte, then resumed from its last checkpoint: nothing that came
    /// before the checkpoint is missing, and the records end as those of an uninterrupted run.
    #[test]
    fn resumed_records_equal_uninterrupted_ones(last in 3u64..12, kill in 0.0f64..1.0, tear in 0usize..40) {
        let directory = tempfile::tempdir().unwrap();
        let (events, table) = (directory.path().join("events.jsonl"), directory.path().join("rounds.csv"));
        let mut all = vec![started(0, 12), evaluated(0, 0.1, 2.3)];
        all.extend(rounds(1..=last));
        let kill = (kill * all.len() as f64) as usize;

        let (mut log, mut csv) = (JsonLines::create(&events).unwrap(), RoundsCsv::create(&table).unwrap());
        tell(&mut log, &all[..kill]);
        tell(&mut csv, &all[..kill]);
        drop((log, csv));
        // The checkpoint is saved before it is told: the event itself may be missing.
        let saved = |events: &[Event]| events.iter().filter_map(|event| match event {
            Event::Checkpointed { round } => Some(*round),
            _ => None,
        }).next_back().unwrap_or_default();
        let after = saved(&all[..(kill + 1).min(all.len())]);
        // Bytes of a later line that reached the disk only in part.
        for path in [&events, &table] {
            let mut file = fs::OpenOptions::new().append(true).open(path).unwrap();
            file.write_all(&b"{\"event\":\"round_started\",\"round\":99,\"cohort\":[1,2]"[..tear]).unwrap();
        }

        let mut log = JsonLines::resume(&events, after).unwrap();
        let mut csv = RoundsCsv::resume(&table, after).unwrap();
        let mut again = vec![started(after.0, 12)];
        if after.0 == 0 {
            again.push(evaluated(0, 0.1, 2.3));
        }
        again.extend(rounds(after.0 + 1..=last));
        again.push(Event::RunEnded { round: RoundIndex(last), stopped: None });
        tell(&mut log, &again);
        tell(&mut csv, &again);
        log.finish().unwrap();
        csv.finish().unwrap();

        let of_rounds = |events: &[Event]| -> Vec<Event> {
            let told = |event: &&Event| !matches!(event, Event::RunStarted { .. } | Event::RunEnded { .. } | Event::Checkpointed { .. });
            events.iter().filter(told).filter(|event| event.round().0 > 0).cloned().collect()
        };
        prop_assert_eq!(of_rounds(&events_of(&events)), of_rounds(&all));
        let uninterrupted = directory.path().join("uninterrupted.csv");
        tell(&mut RoundsCsv::create(&uninterrupted).unwrap(), &all);
        prop_assert_eq!(fs::read_to_string(&table).unwrap(), fs::read_to_string(&uninterrupted).unwrap());
    }
}

#[test]
fn resuming_removes_the_end_of_the_run_before() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("events.jsonl");
    let mut log = JsonLines::create(&path).unwrap();
    tell(&mut log, &rounds(1..=3));
    tell(&mut log, &[Event::RunEnded { round: RoundIndex(3), stopped: Some(StopReason("asked".to_owned())) }]);
    log.finish().unwrap();
    JsonLines::resume(&path, RoundIndex(3)).unwrap().finish().unwrap();
    assert_eq!(events_of(&path), rounds(1..=3));
}

#[test]
fn a_missing_record_is_begun() {
    let directory = tempfile::tempdir().unwrap();
    JsonLines::resume(directory.path().join("e"), RoundIndex(3)).unwrap().finish().unwrap();
    RoundsCsv::resume(directory.path().join("r"), RoundIndex(3)).unwrap().finish().unwrap();
    assert_eq!(RoundsCsv::read(directory.path().join("r")).unwrap(), []);
}

#[test]
fn damage_inside_a_record_is_an_error_with_its_line() {
    let directory = tempfile::tempdir().unwrap();
    let (events, table) = (directory.path().join("events.jsonl"), directory.path().join("rounds.csv"));
    tell(&mut JsonLines::create(&events).unwrap(), &rounds(1..=1));
    tell(&mut RoundsCsv::create(&table).unwrap(), &rounds(1..=2));
    let spoil = |path: &Path| fs::write(path, fs::read_to_string(path).unwrap().replacen("\n1", "\nx", 1)).unwrap();
    spoil(&table);
    fs::write(&events, fs::read_to_string(&events).unwrap().replacen("client_trained", "client_lost", 1)).unwrap();
    let line_of = |result: Result<(), ObserverError>| match result {
        Err(ObserverError::Damaged { line, .. }) => line,
        other => panic!("{other:?}"),
    };
    assert_eq!(line_of(JsonLines::resume(&events, RoundIndex(1)).map(drop)), 2);
    assert_eq!(line_of(RoundsCsv::resume(&table, RoundIndex(1)).map(drop)), 2);
}

#[test]
fn metrics_that_are_not_finite_read_back() {
    let directory = tempfile::tempdir().unwrap();
    let (events, table) = (directory.path().join("events.jsonl"), directory.path().join("rounds.csv"));
    let told = [committed(1), evaluated(1, f64::NAN, f64::INFINITY), evaluated(1, f64::NEG_INFINITY, f64::NAN)];
    let mut log = JsonLines::create(&events).unwrap();
    tell(&mut log, &told);
    log.finish().unwrap();
    let value = |event: &Event, name| match event {
        Event::Evaluated { metrics, .. } => metrics.get(name).unwrap(),
        other => panic!("{other:?}"),
    };
    let read = events_of(&events);
    assert!(value(&read[1], Metrics::ACCURACY).is_nan() && value(&read[2], Metrics::LOSS).is_nan());
    assert_eq!(value(&read[1], Metrics::LOSS), f64::INFINITY);
    assert_eq!(value(&read[2], Metrics::ACCURACY), f64::NEG_INFINITY);

    let mut csv = RoundsCsv::create(&table).unwrap();
    tell(&mut csv, &told[..2]);
    let row = RoundsCsv::read(&table).unwrap().pop().unwrap();
    assert!(row.accuracy.unwrap().is_nan());
    assert_eq!(row.loss, Some(f64::INFINITY));
    tell(&mut csv, &told[2..]);
    assert_eq!(
        RoundsCsv::read(&table).unwrap()[0].accuracy,
        Some(f64::NEG_INFINITY),
        "a later measurement replaces it"
    );
}

#[test]
fn the_table_is_as_documented() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("rounds.csv");
    let mut csv = RoundsCsv::create(&path).unwrap();
    tell(&mut csv, &[evaluated(0, 0.125, 2.5)]);
    tell(&mut csv, &rounds(3..=5));
    let expected = "round,updates,failures,train_loss,loss,accuracy,bytes_down,bytes_up,seconds\n\
                    0,0,0,,2.5,0.125,0,0,0.0\n\
                    3,2,1,0.1,0.3333333333333333,0.53,84,56,0.25\n\
                    4,2,1,0.1,,,84,56,0.25\n\
                    5,0,2,,,,84,28,1.5\n";
    assert_eq!(fs::read_to_string(&path).unwrap(), expected);
    let row = RoundRow {
        updates: 2,
        failures: 1,
        train_loss: Some(0.1),
        bytes_down: 84,
        bytes_up: 56,
        seconds: 0.25,
        round: RoundIndex(4),
        ..RoundRow::default()
    };
    assert_eq!(RoundsCsv::read(&path).unwrap()[2], row);
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_not_lost() {
    let mut log = JsonLines::create("/dev/full").unwrap();
    let stop = log.on_event(&committed(1)).break_value().unwrap();
    assert!(stop.0.contains("/dev/full"), "{stop:?}");
    assert!(log.on_event(&committed(2)).is_break(), "it keeps asking");
    assert!(matches!(log.finish(), Err(ObserverError::Io { .. })));
}

/// A writer whose text can be read afterwards.
#[derive(Clone, Default)]
struct Page(Arc<Mutex<Vec<u8>>>);

impl Page {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl Write for Page {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn plain_lines_are_few_and_say_how_it_goes() {
    let page = Page::default();
    let mut console = Console::plain(page.clone());
    tell(&mut console, &[started(100, 200)]);
    tell(&mut console, &rounds(101..=200));
    tell(&mut console, &[Event::RunEnded { round: RoundIndex(200), stopped: Some(StopReason("target".to_owned())) }]);
    console.finish().unwrap();
    let text = page.text();
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines[0], "200 rounds, 20 clients, 7 parameters, going on after round 100");
    assert!(text.contains("round 105 abandoned: below the quorum"));
    assert!(text.contains("round 190/200  accuracy 2.3900  loss 0.3333"), "{text}");
    let progress = lines.iter().filter(|line| line.contains("rounds/s") && line.contains("left")).count();
    assert_eq!(progress, 9, "{text}");
    let last = lines[lines.len() - 1];
    assert!(last.starts_with("ended after round 200 of 200  accuracy") && last.ends_with("stopped: target"), "{last}");
}

#[test]
fn json_on_the_console_is_the_record() {
    let page = Page::default();
    let mut console = Console::json(page.clone());
    tell(&mut console, &rounds(1..=6));
    console.finish().unwrap();
    let read: Vec<Event> = page.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(read, rounds(1..=6));
}

/// The round at which a run with these accuracies (or losses) ends.
fn stops_at(config: EarlyStopConfig, values: &[f64]) -> Option<usize> {
    let mut stop = config.build().unwrap();
    let told = values.iter().enumerate();
    told.map(|(round, value)| evaluated(round as u64, *value, *value)).position(|e| stop.on_event(&e).is_break())
}

#[test]
fn a_run_ends_at_its_target_or_when_it_gets_no_better() {
    let target = |target| EarlyStopConfig { target: Some(target), ..Default::default() };
    assert_eq!(stops_at(target(0.5), &[0.1, 0.4999, 0.5, 0.2]), Some(2));
    assert_eq!(stops_at(target(0.5), &[0.1, f64::NAN, 0.4]), None);
    let loss = |config: EarlyStopConfig| EarlyStopConfig { metric: StopMetric::Loss, ..config };
    assert_eq!(stops_at(loss(target(0.5)), &[f64::NAN, 0.6, 0.5]), Some(2));

    let patience = |patience| EarlyStopConfig { patience: Some(patience), ..Default::default() };
    assert_eq!(stops_at(patience(2), &[0.1, 0.2, 0.2, 0.3, 0.3, 0.1, 0.9]), Some(5));
    assert_eq!(stops_at(patience(2), &[0.1, 0.2, f64::NAN, f64::NAN]), Some(3));
    assert_eq!(stops_at(loss(patience(1)), &[0.9, 0.8, 0.7, 0.75]), Some(3));
    let coarse = EarlyStopConfig { min_delta: 0.1, ..patience(2) };
    assert_eq!(stops_at(coarse, &[0.1, 0.15, 0.25, 0.3, 0.34]), Some(4));
    assert_eq!(stops_at(EarlyStopConfig::default(), &[0.1; 50]), None);
}

#[test]
fn impossible_stops_are_refused() {
    for config in [
        EarlyStopConfig { target: Some(f64::NAN), ..Default::default() },
        EarlyStopConfig { patience: Some(0), ..Default::default() },
        EarlyStopConfig { min_delta: -0.1, ..Default::default() },
    ] {
        assert!(matches!(config.clone().build(), Err(ObserverError::Field { .. })), "{config:?}");
    }
    assert!(serde_json::from_str::<EarlyStopConfig>(r#"{"goal":1}"#).is_err());
}
