//! Snapshots and jobs as the terminal shows them.

use super::{Job, JobState, Phase, Snapshot};
use crate::format::{mebibytes, percent, seconds, utc};
use crate::table::Table;

/// What `fedburn status` prints.
pub fn status_text(snapshot: &Snapshot) -> String {
    let Snapshot { run, cohort, network, .. } = snapshot;
    let running = snapshot.state == JobState::Running && snapshot.phase != Phase::Unknown;
    let mut lines = vec![
        ("run", format!("{} seed {}, {} ({})", run.name, run.seed, snapshot.state, run.title)),
        ("round", format!("{} of {}", snapshot.round, snapshot.rounds)),
    ];
    if running {
        lines.push(("phase", format!("{}, up for {}", snapshot.phase.name(), seconds(snapshot.uptime_secs))));
        let Snapshot { wanted, totals, rate, .. } = snapshot;
        let wanted = format!("{} of {wanted} waited for", network.clients);
        lines.push(("clients", if snapshot.round == 0 { wanted } else { network.clients.to_string() }));
        let cohort = format!("{} asked, {} answered, {} failed", cohort.asked, cohort.answered, cohort.failed);
        lines.push(("cohort", cohort));
        let failures: u64 = totals.failures.values().sum();
        lines.push(("updates", format!("{} accepted, {failures} failures", totals.updates)));
        lines.push(("nodes", format!("{} connected, {} away", network.connected, network.away)));
        let (up, down) = (network.payload.up as f64, network.payload.down as f64);
        lines.push(("traffic", format!("{} up, {} down", mebibytes(up), mebibytes(down))));
        lines.push(("rate", format!("{}/s up, {}/s down", mebibytes(rate.up as f64), mebibytes(rate.down as f64))));
        let (uploads, downloads) = (network.uploads, network.downloads);
        let slots = format!("{} of {} up, {} of {} down", uploads.used, uploads.all, downloads.used, downloads.all);
        lines.push(("slots", slots));
    }
    if let Some(last) = &snapshot.last {
        let measured = [
            last.accuracy.map(|accuracy| format!("accuracy {}", percent(accuracy))),
            last.loss.map(|loss| format!("loss {loss:.4}")),
            last.train_loss.map(|loss| format!("training loss {loss:.4}")),
            Some(seconds(last.seconds)),
        ];
        let measured: Vec<_> = measured.into_iter().flatten().collect();
        lines.push(("last", format!("round {}: {}", last.round, measured.join(", "))));
    }
    if snapshot.phase == Phase::Unknown {
        lines.push(("phase", "unknown: the server has no page that could be asked".to_owned()));
    }
    if running {
        lines.push(("durability", snapshot.durability.clone()));
    }
    lines.push(("results", run.results.display().to_string()));
    let mut text: String = lines.iter().map(|(what, line)| format!("{what:<11} {line}\n")).collect();
    if !network.nodes.is_empty() {
        let mut table = Table::new(["node", "clients", "where", "up", "down"]);
        for node in &network.nodes {
            let place = node.address.map_or("away".to_owned(), |address| address.to_string());
            let bytes = [node.wire.up, node.wire.down].map(|bytes| mebibytes(bytes as f64));
            let clients = format!("{} ({})", node.num_clients, node.clients);
            let [up, down] = bytes;
            table.row([brief(&node.node.to_string()), clients, place, up, down]);
        }
        text.push_str(&format!("\n{table}"));
    }
    for declined in &network.declined {
        text.push_str(&format!("{}  declined: {}\n", brief(&declined.node.to_string()), declined.reason));
    }
    text
}

/// What `fedburn jobs` prints.
pub fn jobs_table(jobs: &[(Job, JobState)]) -> String {
    let mut table = Table::new(["run", "seed", "state", "started", "results"]);
    for (job, state) in jobs {
        let (run, started) = (&job.run, utc(job.started));
        table.row([
            run.name.clone(),
            run.seed.to_string(),
            state.to_string(),
            started,
            run.results.display().to_string(),
        ]);
    }
    table.to_string()
}

/// The beginning of a node's name, enough to tell it from others.
pub(super) fn brief(node: &str) -> String {
    node.chars().take(12).collect()
}
