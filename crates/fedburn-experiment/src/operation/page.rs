//! The page: an empty frame for everybody, and what stands in it for who has the token.

use fedburn::runtime::RoundRow;
use fedburn::transport::quic::Usage;
use maud::{DOCTYPE, Markup, html as markup};

use super::show::brief;
use super::{JobState, Phase, Snapshot};
use crate::format::{mebibytes, percent, seconds, utc};
use crate::report::live_figures;

/// Asks for what is new each second and puts it in its place.
pub(super) const SCRIPT: &str = include_str!("live.js");

/// The report's style, and what the page has besides.
pub(super) fn style() -> String {
    [crate::report::STYLE, include_str!("live.css")].concat()
}

/// The frame. It tells nothing of the run.
pub(super) fn shell() -> String {
    let page = markup! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { "fedburn" }
                link rel="stylesheet" href="/style.css";
                script src="/page.js" defer {}
            }
            body {
                p id="notice" role="status" { "Asking the server …" }
                main id="live" {}
                noscript { p { "This page needs JavaScript; `fedburn status` tells the same." } }
            }
        }
    };
    page.into_string()
}

/// What stands in the frame.
pub(super) fn live(snapshot: &Snapshot, rounds: &[RoundRow]) -> String {
    let run = &snapshot.run;
    let page = markup! {
        header {
            h1 { (run.title) }
            p class="under" { (run.name) " · seed " (run.seed) " · " (run.backend) " · " code { (brief(&run.hash)) } }
        }
        (tiles(snapshot))
        section id="curves" {
            h2 { "Rounds" }
            div class="pair" { @for figure in live_figures(rounds) { (figure) } }
        }
        (nodes(snapshot))
        (network(snapshot))
        (failures(snapshot))
        p class="note" {
            "Since " (utc(snapshot.started)) ". " (snapshot.durability) ". Results are in " code { (run.results.display()) } "."
        }
    };
    page.into_string()
}

fn tiles(snapshot: &Snapshot) -> Markup {
    let Snapshot { cohort, network, last, .. } = snapshot;
    let standing = match &snapshot.state {
        JobState::Running => snapshot.phase.name().to_owned(),
        ended => ended.to_string(),
    };
    let accuracy = last.as_ref().and_then(|last| last.accuracy).map_or("–".to_owned(), percent);
    let loss = last.as_ref().and_then(|last| last.loss).map_or("–".to_owned(), |loss| format!("{loss:.4}"));
    let clients = match snapshot.phase {
        Phase::Starting | Phase::Waiting => format!("{} of {}", network.clients, snapshot.wanted),
        _ => network.clients.to_string(),
    };
    let tile = |id: &str, what: &str, figure: &str, under: String| {
        markup! { div class="tile" { span { (what) } strong id=(id) { (figure) } span { (under) } } }
    };
    markup! {
        div class="tiles" {
            (tile("phase", "state", &standing, format!("up for {}", seconds(snapshot.uptime_secs))))
            (tile("round", "round", &format!("{} of {}", snapshot.round, snapshot.rounds), snapshot.checkpoint.map_or(String::new(), |round| format!("goes on after {round} if killed"))))
            (tile("accuracy", "accuracy", &accuracy, format!("loss {loss}")))
            (tile("cohort", "cohort", &format!("{} of {}", cohort.answered, cohort.asked), format!("{} failed", cohort.failed)))
            (tile("clients", "clients", &clients, format!("{} nodes, {} away", network.connected, network.away)))
            (tile("traffic", "traffic per second", &mebibytes(snapshot.rate.up as f64), format!("up; {} down", mebibytes(snapshot.rate.down as f64))))
        }
        progress max=(snapshot.rounds) value=(last.as_ref().map_or(0, |last| last.round.0)) aria-label="rounds done" {}
    }
}

fn nodes(snapshot: &Snapshot) -> Markup {
    let network = &snapshot.network;
    let hidden = (network.connected + network.away).saturating_sub(network.nodes.len() as u64);
    markup! {
        @if !network.nodes.is_empty() || !network.declined.is_empty() { section id="nodes" {
            h2 { "Nodes" }
            div class="wide" { table {
                thead { tr { th { "node" } th class="text" { "clients" } th class="text" { "where" } th { "up" } th { "down" } th class="text" { "software" } } }
                tbody { @for node in &network.nodes { tr {
                    td { code title=(node.node) { (brief(&node.node.to_string())) } @for label in &node.labels { " " (label) } }
                    td class="text" { (node.num_clients) " (" (node.clients) ")" }
                    td class="text" { @match node.address { Some(address) => (address), None if snapshot.phase == Phase::Ended => "has left", None => span class="bad" { "away" } } }
                    td { (mebibytes(node.wire.up as f64)) }
                    td { (mebibytes(node.wire.down as f64)) }
                    td class="text" { (node.software) }
                } } }
            } }
            @if !network.declined.is_empty() {
                h2 { "Not permitted by the data's owner" }
                table class="words" {
                    tbody { @for declined in &network.declined { tr {
                        td { code title=(declined.node) { (brief(&declined.node.to_string())) } } td { (declined.reason) }
                    } } }
                }
            }
            @if hidden > 0 { p class="note" { "and " (hidden) " more" } }
        } }
    }
}

fn network(snapshot: &Snapshot) -> Markup {
    let network = &snapshot.network;
    let of = |usage: Usage| format!("{} of {}", usage.used, usage.all);
    let bytes = |bytes: u64| mebibytes(bytes as f64);
    let memory = format!("{} of {}", bytes(network.upload_memory.used), bytes(network.upload_memory.all));
    let closed: Vec<_> = network.closed.iter().map(|(code, count)| format!("{code} {count}")).collect();
    let rows = [
        ("models and updates", bytes(network.payload.up), bytes(network.payload.down)),
        ("with all that the network adds", bytes(network.wire.up), bytes(network.wire.down)),
        ("transfers under way", of(network.uploads), of(network.downloads)),
    ];
    markup! {
        section id="network" {
            h2 { "Network" }
            div class="wide" { table {
                thead { tr { th { "" } th { "up" } th { "down" } } }
                tbody { @for (what, up, down) in rows { tr { td { (what) } td { (up) } td { (down) } } } }
            } }
            p {
                "Memory for updates: " (memory) ". Connections: " (network.connections) " open, "
                (network.handshakes) " handshakes, " (network.handshakes_failed) " failed"
                @if !closed.is_empty() { "; closed by the server: " (closed.join(", ")) }
                "."
            }
        }
    }
}

fn failures(snapshot: &Snapshot) -> Markup {
    markup! {
        @if !snapshot.failures.is_empty() { section id="failures" {
            h2 { "Failures" }
            p {
                @for (index, (reason, count)) in snapshot.totals.failures.iter().enumerate() {
                    @if index > 0 { ", " } (reason) " " (count)
                }
            }
            table class="words" {
                thead { tr { th { "round" } th { "client" } th { "why" } } }
                tbody { @for failure in snapshot.failures.iter().rev() { tr {
                    td { (failure.round) } td { (failure.client) } td { (failure.reason) }
                } } }
            }
        } }
    }
}
