//! A snapshot for Prometheus, in its text format (version 0.0.4).

use std::fmt::{Display, Write};

use super::{Histogram, Phase, Snapshot};

/// The figures of a snapshot in Prometheus' text format. Names and labels are fixed and told in `docs/federation.md`.
pub fn prometheus(snapshot: &Snapshot) -> String {
    let Snapshot { run, cohort, totals, network, .. } = snapshot;
    let mut page = Page(String::new());
    let labels =
        [("name", &*run.name), ("hash", &*run.hash), ("backend", &*run.backend), ("seed", &*run.seed.to_string())];
    page.family("fedburn_run_info", "gauge", "Which run it is; always 1.").sample(&labels, 1);
    page.family("fedburn_start_time_seconds", "gauge", "Start of the server's process, seconds since 1970.")
        .sample(&[], snapshot.started);
    let mut phases = page.family("fedburn_phase", "gauge", "1 for what the server is doing, 0 for all else.");
    for phase in Phase::ALL {
        phases.sample(&[("phase", phase.name())], u8::from(phase == snapshot.phase));
    }

    page.family("fedburn_round", "gauge", "The round that is under way, or the last one.").sample(&[], snapshot.round);
    page.family("fedburn_rounds_planned", "gauge", "The round that ends the run.").sample(&[], snapshot.rounds);
    page.family("fedburn_checkpoint_round", "gauge", "The round after which a killed server goes on.")
        .sample(&[], snapshot.checkpoint.unwrap_or(0));
    page.family("fedburn_rounds_total", "counter", "Rounds that ended, by how.")
        .sample(&[("result", "committed")], totals.rounds_committed)
        .sample(&[("result", "abandoned")], totals.rounds_abandoned);
    page.histogram("fedburn_round_seconds", "Seconds of committed rounds.", &snapshot.round_seconds);
    page.family("fedburn_cohort_clients", "gauge", "Clients of the round, by how they stand.")
        .sample(&[("state", "asked")], cohort.asked)
        .sample(&[("state", "answered")], cohort.answered)
        .sample(&[("state", "failed")], cohort.failed);
    page.family("fedburn_updates_accepted_total", "counter", "Updates that were accepted.").sample(&[], totals.updates);
    let mut failures = page.family(
        "fedburn_client_failures_total",
        "counter",
        "Requests to train that gave no update, by reason; `malformed` and `refused` came from a node.",
    );
    for reason in FAILURES {
        failures.sample(&[("reason", reason)], totals.failures.get(*reason).copied().unwrap_or(0));
    }
    if let Some(last) = &snapshot.last {
        let measured = [
            ("fedburn_accuracy", "Accuracy on the server's held-out data after the last round, 0 to 1.", last.accuracy),
            ("fedburn_loss", "Loss on the server's held-out data after the last round.", last.loss),
            ("fedburn_train_loss", "Mean loss of the last round's local training.", last.train_loss),
        ];
        for (name, help, value) in measured {
            if let Some(value) = value {
                page.family(name, "gauge", help).sample(&[], value);
            }
        }
    }

    page.family("fedburn_clients", "gauge", "Clients that may be asked.").sample(&[], network.clients);
    page.family("fedburn_nodes", "gauge", "Nodes that said which clients they are, by whether they are here.")
        .sample(&[("state", "connected")], network.connected)
        .sample(&[("state", "away")], network.away);
    page.family("fedburn_connections", "gauge", "Open connections.").sample(&[], network.connections);
    page.family("fedburn_handshakes_total", "counter", "Handshakes, by how they ended.")
        .sample(&[("result", "ok")], network.handshakes)
        .sample(&[("result", "failed")], network.handshakes_failed);
    let mut closed =
        page.family("fedburn_connections_closed_total", "counter", "Connections that the server closed, by code.");
    network.closed.iter().for_each(|(code, count)| {
        closed.sample(&[("code", code)], count);
    });
    page.family("fedburn_payload_bytes_total", "counter", "Bytes of models and updates.")
        .sample(&[("direction", "up")], network.payload.up)
        .sample(&[("direction", "down")], network.payload.down);
    page.family("fedburn_wire_bytes_total", "counter", "Bytes of UDP packets, everything included.")
        .sample(&[("direction", "up")], network.wire.up)
        .sample(&[("direction", "down")], network.wire.down);
    let mut overhead = page.family("fedburn_wire_over_payload", "gauge", "Bytes on the wire for each byte of payload.");
    for (direction, wire, payload) in
        [("up", network.wire.up, network.payload.up), ("down", network.wire.down, network.payload.down)]
    {
        if payload > 0 {
            overhead.sample(&[("direction", direction)], wire as f64 / payload as f64);
        }
    }
    page.family("fedburn_transfer_slots_used", "gauge", "Transfers under way.")
        .sample(&[("direction", "up")], network.uploads.used)
        .sample(&[("direction", "down")], network.downloads.used);
    page.family("fedburn_transfer_slots", "gauge", "Transfers that there may be at once.")
        .sample(&[("direction", "up")], network.uploads.all)
        .sample(&[("direction", "down")], network.downloads.all);
    page.family("fedburn_upload_memory_used_bytes", "gauge", "Memory set aside for updates that came or are coming.")
        .sample(&[], network.upload_memory.used);
    page.family("fedburn_upload_memory_bytes", "gauge", "Memory that there is for them.")
        .sample(&[], network.upload_memory.all);
    page.summary(
        "fedburn_record_seconds",
        "Seconds to write down who took part, the disk's confirmation included.",
        network.records,
        network.record_seconds,
    );
    page.0
}

struct Page(String);

/// The samples of one name.
struct Family<'a> {
    text: &'a mut String,
    name: &'static str,
}

impl Page {
    fn family(&mut self, name: &'static str, kind: &str, help: &str) -> Family<'_> {
        // Writing to a text cannot fail.
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
        Family { text: &mut self.0, name }
    }

    fn histogram(&mut self, name: &'static str, help: &str, histogram: &Histogram) {
        let mut family = self.family(name, "histogram", help);
        let mut below = 0;
        for (bound, count) in Histogram::BOUNDS.iter().zip(histogram.counts) {
            below += count;
            family.line("_bucket", &[("le", &bound.to_string())], below);
        }
        family.line("_bucket", &[("le", "+Inf")], histogram.count);
        family.line("_sum", &[], histogram.sum);
        family.line("_count", &[], histogram.count);
    }

    fn summary(&mut self, name: &'static str, help: &str, count: u64, sum: f64) {
        let mut family = self.family(name, "summary", help);
        family.line("_sum", &[], sum);
        family.line("_count", &[], count);
    }
}

impl Family<'_> {
    fn sample(&mut self, labels: &[(&str, &str)], value: impl Display) -> &mut Self {
        self.line("", labels, value);
        self
    }

    fn line(&mut self, suffix: &str, labels: &[(&str, &str)], value: impl Display) {
        let escaped = |text: &str| text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        let labels: Vec<_> = labels.iter().map(|(name, value)| format!("{name}=\"{}\"", escaped(value))).collect();
        let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
        let value = match &*value.to_string() {
            "inf" => "+Inf".to_owned(),
            "-inf" => "-Inf".to_owned(),
            value => value.to_owned(),
        };
        // As above.
        let _ = writeln!(self.text, "{}{suffix}{labels} {value}", self.name);
    }
}

/// Every reason, so that a figure is there before the first failure.
const FAILURES: &[&str] = &["timed_out", "disconnected", "no_data", "refused", "malformed", "failed", "other"];

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use fedburn::core::{Event, Observer, RoundIndex};
    use fedburn::transport::quic::Traffic;

    use super::super::{Monitor, RunFacts};
    use super::*;

    fn full() -> Snapshot {
        let run = RunFacts {
            name: "suite/\"odd\"\\\n".to_owned(),
            title: "a".to_owned(),
            seed: 3,
            hash: "ff".to_owned(),
            backend: "flex".to_owned(),
            results: "/nowhere".into(),
        };
        let mut monitor = Monitor::new(run);
        let _ = monitor.on_event(&Event::RunStarted { round: RoundIndex(0), rounds: 2, clients: 1, parameters: 1 });
        let mut snapshot = monitor.snapshot();
        for seconds in [0.005, 0.25, 2.0, 1e6] {
            snapshot.round_seconds.observe(seconds);
        }
        snapshot.totals.failures.insert("malformed".to_owned(), 4);
        snapshot.last = Some(fedburn::runtime::RoundRow {
            accuracy: Some(f64::NAN),
            loss: Some(f64::INFINITY),
            train_loss: Some(0.5),
            ..Default::default()
        });
        snapshot.network.closed.insert("slow".to_owned(), 2);
        (snapshot.network.payload, snapshot.network.wire) =
            (Traffic { up: 10, down: 10 }, Traffic { up: 15, down: 11 });
        snapshot
    }

    /// Reads the text format as its description says, and refuses what that does not have: names, the order of lines, one
    /// type a name, escapes, values.
    fn parse(text: &str) -> BTreeMap<String, f64> {
        let is_name = |name: &str| {
            !name.is_empty()
                && !name.starts_with(|c: char| c.is_ascii_digit())
                && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
        };
        let (mut samples, mut types) = (BTreeMap::new(), BTreeMap::new());
        let (mut helped, mut family) = (BTreeSet::new(), String::new());
        assert!(text.ends_with('\n'));
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# HELP ") {
                let (name, help) = rest.split_once(' ').unwrap();
                assert!(is_name(name) && !help.is_empty() && helped.insert(name.to_owned()), "{line}");
                continue;
            }
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').unwrap();
                assert!(["counter", "gauge", "histogram", "summary"].contains(&kind), "{line}");
                assert!(helped.contains(name) && types.insert(name.to_owned(), kind.to_owned()).is_none(), "{line}");
                assert_eq!(name.ends_with("_total"), kind == "counter", "{line}");
                family = name.to_owned();
                continue;
            }
            assert!(!line.starts_with('#') && !line.is_empty(), "{line}");
            let (series, value) = line.rsplit_once(' ').unwrap();
            let value: f64 = match value {
                "NaN" => f64::NAN,
                "+Inf" => f64::INFINITY,
                value if value.contains("nf") => panic!("{line}"),
                value => value.parse().unwrap_or_else(|_| panic!("{line}")),
            };
            let name = series.split('{').next().unwrap();
            let suffix = name.strip_prefix(&*family).unwrap_or_else(|| panic!("{line} is not under {family}"));
            let allowed: &[&str] = match &*types[&family] {
                "histogram" => &["_bucket", "_sum", "_count"],
                "summary" => &["_sum", "_count"],
                _ => &[""],
            };
            assert!(allowed.contains(&suffix) && is_name(name), "{line}");
            if let Some(labels) = series.strip_prefix(name).filter(|labels| !labels.is_empty()) {
                let mut rest = labels.strip_prefix('{').unwrap().strip_suffix('}').unwrap();
                while !rest.is_empty() {
                    let (label, after) = rest.split_once("=\"").unwrap();
                    assert!(is_name(label), "{line}");
                    let mut escaped = false;
                    let end = after.find(|c| {
                        let end = c == '"' && !escaped;
                        escaped = c == '\\' && !escaped;
                        end
                    });
                    rest = &after[end.unwrap() + 1..];
                    rest = rest.strip_prefix(',').unwrap_or(rest);
                }
            }
            assert!(samples.insert(series.to_owned(), value).is_none(), "{line} is told twice");
        }
        samples
    }

    #[test]
    fn the_figures_are_in_the_format_that_prometheus_reads() {
        let samples = parse(&prometheus(&full()));
        assert_eq!(samples["fedburn_wire_over_payload{direction=\"up\"}"], 1.5);
        assert_eq!(samples["fedburn_client_failures_total{reason=\"malformed\"}"], 4.0);
        assert_eq!(samples["fedburn_client_failures_total{reason=\"timed_out\"}"], 0.0, "there before the first one");
        assert_eq!(samples["fedburn_connections_closed_total{code=\"slow\"}"], 2.0);
        assert!(samples["fedburn_accuracy"].is_nan() && samples["fedburn_loss"].is_infinite());
        assert_eq!(samples.keys().filter(|series| series.starts_with("fedburn_phase{")).count(), Phase::ALL.len());
        assert_eq!(
            samples.iter().filter(|(series, value)| series.starts_with("fedburn_phase{") && **value == 1.0).count(),
            1
        );
    }

    #[test]
    fn buckets_rise_to_the_count() {
        let samples = parse(&prometheus(&full()));
        let bucket = |le: &str| samples[&format!("fedburn_round_seconds_bucket{{le=\"{le}\"}}")];
        assert_eq!([bucket("0.01"), bucket("0.1"), bucket("0.3"), bucket("3")], [1.0, 1.0, 2.0, 3.0]);
        assert_eq!([bucket("86400"), bucket("+Inf")], [3.0, 4.0]);
        assert_eq!(samples["fedburn_round_seconds_count"], 4.0);
    }

    #[test]
    fn every_name_is_told_in_the_documentation() {
        let page = include_str!("../../../../docs/federation.md");
        let text = prometheus(&full());
        for name in text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()) {
            let told = ["`", "{"].iter().any(|end| page.contains(&format!("`{name}{end}")));
            assert!(told, "docs/federation.md does not tell `{name}`");
        }
    }
}
