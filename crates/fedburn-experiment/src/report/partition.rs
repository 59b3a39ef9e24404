//! How the examples lie among the clients.

use fedburn::data::{Heterogeneity, PartitionStatistics, heat_map, stacked_bars};
use maud::{Markup, PreEscaped, html as markup};

use crate::results::ExperimentResults;

/// Pictures of the first partition and the figures of all; seeds that share a split share a row.
pub(super) fn section(results: &ExperimentResults) -> Markup {
    let mut splits: Vec<(&PartitionStatistics, Vec<String>)> = Vec::new();
    for run in &results.seeds {
        let Some(split) = &run.partition else { continue };
        match splits.iter_mut().find(|(known, _)| known.fingerprint == split.fingerprint) {
            Some((_, seeds)) => seeds.push(run.seed.to_string()),
            None => splits.push((split, vec![run.seed.to_string()])),
        }
    }
    markup! {
        section id="partition" {
            h2 { "Partition" }
            @match splits.first() {
                Some((split, seeds)) => {
                    (pictures(split, seeds))
                    (figures(&splits))
                }
                None => p class="note" { "The partition's figures were not written." }
            }
        }
    }
}

fn pictures(split: &PartitionStatistics, seeds: &[String]) -> Markup {
    let of = format!("the split of seed {}", seeds.join(", "));
    markup! {
        figure role="img" aria-label={ "Examples of each class per client, stacked bars, " (of) } {
            (PreEscaped(stacked_bars(split, "", &[])))
            figcaption { "Examples of each client by class, " (of) "." }
        }
        figure role="img" aria-label={ "Examples of each class per client, heat map, " (of) } {
            (PreEscaped(heat_map(split, "", &[])))
            figcaption { "The same as a heat map: the darker, the more examples." }
        }
    }
}

fn figures(splits: &[(&PartitionStatistics, Vec<String>)]) -> Markup {
    let show = |mean: Option<Heterogeneity>, figure: fn(Heterogeneity) -> f64| {
        mean.map_or_else(|| "–".into(), |mean| format!("{:.3}", figure(mean)))
    };
    markup! {
        div class="wide" { table {
            thead { tr {
                th { "seeds" } th { "clients" } th { "examples" } th { "per client: least, median, most" }
                th { "variation of size" } th { "label entropy, nats" } th { "EMD" } th { "Jensen–Shannon, nats" }
                th { "fingerprint" }
            } }
            tbody { @for (split, seeds) in splits { tr {
                td { (seeds.join(", ")) }
                td { (split.clients.len()) }
                td { (split.num_assigned) }
                td { (split.sizes.min) ", " (split.sizes.median) ", " (split.sizes.max) }
                td { (format!("{:.3}", split.sizes.coefficient_of_variation)) }
                td { (show(split.mean, |mean| mean.label_entropy)) }
                td { (show(split.mean, |mean| mean.emd)) }
                td { (show(split.mean, |mean| mean.jensen_shannon)) }
                td { code { (split.fingerprint) } }
            } } }
        } }
        p class="note" {
            "Entropy, EMD (sum of absolute differences, 0 to 2) and Jensen–Shannon divergence compare a client's class "
            "shares with those of the whole data set; means over clients, each counting the same."
        }
    }
}
