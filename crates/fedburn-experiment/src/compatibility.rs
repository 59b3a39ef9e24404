//! Which choices of a config go together: refused at load, with the reason, where a run would be meaningless.
//!
//! Each table is checked by its own crate; here is what needs several of them.

use fedburn::runtime::SamplerConfig;
use fedburn::strategies::{IfTooFew, StrategyConfig};
use fedburn::train::{PersonalConfig, RuleConfig};
use thiserror::Error;

use crate::config::ExperimentConfig;

/// Choices that do not go together.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{reason}")]
pub struct Incompatible {
    /// The table of the file to look at first.
    pub table: &'static str,
    /// What does not go together, why, and what would.
    pub reason: String,
}

/// Checks the choices of `config` against each other; `clients` is the number of clients with data.
///
/// # Errors
/// [`Incompatible`] with the first pair that makes no sense.
pub fn check(config: &ExperimentConfig, clients: usize) -> Result<(), Incompatible> {
    halves(config)?;
    wrappers(&config.strategy)?;
    steps(config)?;
    corrections(config)?;
    cohort(config, clients)?;
    target(&config.strategy, clients)
}

/// SCAFFOLD, FedDyn, FedGen and InclusiveFL have a client half and a server half: one without the other is no algorithm.
fn halves(config: &ExperimentConfig) -> Result<(), Incompatible> {
    let (rule, strategy) = (&config.client.rule, &config.strategy);
    let server = |is: fn(&StrategyConfig) -> bool| strategy.layers().any(is);
    let halves = [
        (
            "scaffold",
            matches!(rule, RuleConfig::Scaffold(_)),
            server(|layer| matches!(layer, StrategyConfig::Scaffold(_))),
            "the control variates are kept by both",
        ),
        (
            "feddyn",
            rule.feddyn().is_some(),
            server(|layer| matches!(layer, StrategyConfig::FedDyn(_))),
            "each corrects what the other adds",
        ),
        (
            "fedgen",
            matches!(rule, RuleConfig::FedGen(_)),
            server(|layer| matches!(layer, StrategyConfig::FedGen(_))),
            "clients learn from the generator that the server trains",
        ),
        (
            "inclusive_fl",
            matches!(rule, RuleConfig::InclusiveFl(_)),
            server(|layer| matches!(layer, StrategyConfig::InclusiveFl(_))),
            "clients train models of the sizes that the server keeps",
        ),
    ];
    for (kind, client, server, why) in halves {
        if client && !server {
            let reason =
                format!("the rule `{kind}` needs [strategy] kind = \"{kind}\", by itself or in a wrapper: {why}");
            return refuse("client", reason);
        }
        if server && !client {
            let within = if kind == "feddyn" { ", or `feddyn = {}` in that of `depth_fl`" } else { "" };
            return refuse("strategy", format!("`{kind}` needs [client] rule = {{ {kind} = {{}} }}{within}: {why}"));
        }
    }
    let server = strategy.layers().find_map(|layer| match layer {
        StrategyConfig::FedDyn(config) => Some(config.alpha),
        _ => None,
    });
    match (rule.feddyn(), server) {
        (Some(client), Some(server)) if client.alpha != server => refuse(
            "strategy",
            format!(
                "`alpha` is {server} and that of `feddyn` in [client] rule is {}, expected the same: both halves correct \
                 one objective",
                client.alpha
            ),
        ),
        _ => Ok(()),
    }
}

/// A wrapper within itself does its work twice.
fn wrappers(strategy: &StrategyConfig) -> Result<(), Incompatible> {
    let count = |is: fn(&StrategyConfig) -> bool| strategy.layers().filter(|layer| is(layer)).count();
    let wrappers = [
        ("swa", count(|layer| matches!(layer, StrategyConfig::Swa(_)))),
        ("fedftg", count(|layer| matches!(layer, StrategyConfig::FedFtg(_)))),
        ("fedgen", count(|layer| matches!(layer, StrategyConfig::FedGen(_)))),
        ("feddf", count(|layer| matches!(layer, StrategyConfig::FedDf(_)))),
        ("norm_clipping", count(|layer| matches!(layer, StrategyConfig::NormClipping(_)))),
    ];
    match wrappers.into_iter().find(|(_, count)| *count > 1) {
        Some((kind, _)) => refuse("strategy", format!("`{kind}` wraps another `{kind}`, expected one at most")),
        None => match tunes_before_averaging(strategy) {
            Some(kind) => refuse(
                "strategy",
                format!(
                    "`{kind}` around `swa` would fine-tune a model that is not the one that is evaluated; expected \
                     `swa` around `{kind}`"
                ),
            ),
            None => Ok(()),
        },
    }
}

/// The kind of a strategy around `swa` that teaches the model on the server.
fn tunes_before_averaging(strategy: &StrategyConfig) -> Option<&'static str> {
    let outside = strategy.layers().take_while(|layer| !matches!(layer, StrategyConfig::Swa(_)));
    let kinds = outside.filter_map(|layer| match layer {
        StrategyConfig::FedFtg(_) => Some("fedftg"),
        StrategyConfig::FedDf(_) => Some("feddf"),
        _ => None,
    });
    let averages = strategy.layers().any(|layer| matches!(layer, StrategyConfig::Swa(_)));
    kinds.last().filter(|_| averages)
}

/// FedNova divides by what steps of SGD add up to.
fn steps(config: &ExperimentConfig) -> Result<(), Incompatible> {
    if !config.strategy.layers().any(|layer| matches!(layer, StrategyConfig::FedNova(_))) {
        return Ok(());
    }
    let (what, why) = match (&config.client.personal, &config.client.rule) {
        (Some(PersonalConfig::PFedMe(_)), _) => ("personal `pfedme`", "are not made of such steps"),
        (_, RuleConfig::Depthwise(_)) => ("rule `depthwise`", "differ from part to part of the model"),
        _ => return Ok(()),
    };
    let reason = format!(
        "`fednova` divides updates by what their steps of SGD add up to, and those of [client] {what} {why}; expected \
         another strategy, for example fedavg"
    );
    refuse("strategy", reason)
}

/// Server and clients of FedDyn add up the same moves, which they do only where nothing of a move is lost for good.
fn corrections(config: &ExperimentConfig) -> Result<(), Incompatible> {
    let feddyn = config.strategy.layers().any(|layer| matches!(layer, StrategyConfig::FedDyn(_)));
    let compression = &config.compression;
    if feddyn && !compression.up.is_lossless() && !compression.error_feedback {
        let reason = format!(
            "`up` is {} without error feedback, and both halves of [strategy] `feddyn` add up what clients change; \
             expected `error_feedback = true`",
            compression.up.name()
        );
        return refuse("compression", reason);
    }
    Ok(())
}

/// Krum and its kin promise nothing, and refuse, below a number of updates.
fn cohort(config: &ExperimentConfig, clients: usize) -> Result<(), Incompatible> {
    let cohort = match &config.sampler {
        SamplerConfig::Uniform { per_round } | SamplerConfig::Weighted { per_round } => *per_round,
        SamplerConfig::Fixed { clients } => clients.len(),
        _ => clients,
    };
    let cohort = cohort.min(clients);
    let (availability, quorum) = (config.availability, config.server.min_updates);
    for layer in config.strategy.layers() {
        let (kind, attackers, factor, if_too_few) = match layer {
            StrategyConfig::Krum(krum) => ("krum", krum.attackers, 2, krum.if_too_few),
            StrategyConfig::MultiKrum(krum) => ("multi_krum", krum.attackers, 2, krum.if_too_few),
            StrategyConfig::Bulyan(bulyan) => ("bulyan", bulyan.attackers, 4, bulyan.if_too_few),
            _ => continue,
        };
        if if_too_few != IfTooFew::Refuse {
            continue;
        }
        let needed = attackers.saturating_mul(factor).saturating_add(3);
        let words = format!("{needed} updates ({factor} attackers + 3)");
        if cohort < needed {
            let reason = format!(
                "strategy `{kind}` against {attackers} attackers needs {words} a round, and {cohort} clients take part; \
                 expected more clients a round or fewer attackers"
            );
            return refuse("sampler", reason);
        }
        if (availability.dropout > 0.0 || availability.probability < 1.0) && quorum < needed {
            let reason = format!(
                "`min_updates` is {quorum}, expected at least {words}: clients may fail, and strategy `{kind}` ends the \
                 run on fewer"
            );
            return refuse("server", reason);
        }
    }
    Ok(())
}

/// Weight erosion makes the model of one client, which must exist.
fn target(strategy: &StrategyConfig, clients: usize) -> Result<(), Incompatible> {
    for layer in strategy.layers() {
        match layer {
            StrategyConfig::WeightErosion(config) if config.target.0 >= clients as u64 => {
                let target = config.target;
                let reason = format!("`target` is {target}, expected one of the {clients} clients, numbered from 0");
                return refuse("strategy", reason);
            }
            _ => {}
        }
    }
    Ok(())
}

fn refuse(table: &'static str, reason: String) -> Result<(), Incompatible> {
    Err(Incompatible { table, reason })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// A federation of 20 clients with these tables.
    fn checked(client: &str, strategy: &str, rest: &str) -> Result<(), Incompatible> {
        let sampler = if rest.contains("sampler") { "" } else { "sampler = { kind = 'uniform', per_round = 10 }" };
        let server = if rest.contains("server") { "" } else { "server = { rounds = 2 }" };
        let text = format!(
            "title = 't'\nseeds = [0]\ndata = {{ kind = 'digits' }}\npartition = {{ kind = 'iid', clients = 20 }}\n\
             model = {{ kind = 'softmax' }}\nclient = {{ epochs = 1, batch_size = 8, lr = 0.1 {client} }}\n\
             strategy = {{ {strategy} }}\n{sampler}\n{server}\n{rest}\n"
        );
        check(&ExperimentConfig::parse(Path::new("t.toml"), &text, &[]).unwrap(), 20)
    }

    fn assert_table(cases: &[(&str, &str, &str, &[&str])]) {
        for (client, strategy, rest, words) in cases {
            let case = format!("[client] {client} [strategy] {strategy} {rest}");
            match (checked(client, strategy, rest), words.split_first()) {
                (Ok(()), None) => {}
                (Err(error), Some((table, words))) => {
                    assert_eq!(error.table, *table, "{case}");
                    words.iter().for_each(|word| assert!(error.reason.contains(word), "{case}: {}", error.reason));
                }
                (found, _) => panic!("{case}: {found:?}"),
            }
        }
    }

    #[test]
    fn cohorts_are_large_enough_for_distances() {
        assert_table(&[
            ("", "kind = 'krum', attackers = 3", "", &[]),
            ("", "kind = 'krum', attackers = 4", "", &["sampler", "needs 11 updates", "10 clients"]),
            ("", "kind = 'multi_krum', attackers = 4", "", &["sampler", "`multi_krum`", "2 attackers + 3"]),
            ("", "kind = 'bulyan', attackers = 1", "", &[]),
            ("", "kind = 'bulyan', attackers = 2", "", &["sampler", "needs 11 updates", "4 attackers + 3"]),
            ("", "kind = 'bulyan', attackers = 2", "sampler = { kind = 'all' }", &[]),
            (
                "",
                "kind = 'bulyan', attackers = 5",
                "sampler = { kind = 'all' }",
                &["sampler", "needs 23", "20 clients"],
            ),
            (
                "",
                "kind = 'krum', attackers = 1",
                "sampler = { kind = 'fixed', clients = [1, 2] }",
                &["sampler", "2 clients"],
            ),
            ("", "kind = 'norm_clipping', base = { kind = 'krum', attackers = 4 }", "", &["sampler", "`krum`"]),
            (
                "",
                "kind = 'krum', attackers = 1",
                "availability = { dropout = 0.1 }",
                &["server", "`min_updates` is 1", "at least 5"],
            ),
            (
                "",
                "kind = 'krum', attackers = 1",
                "availability = { dropout = 0.1 }\nserver = { rounds = 2, min_updates = 5 }",
                &[],
            ),
            ("", "kind = 'median'", "sampler = { kind = 'uniform', per_round = 1 }", &[]),
        ]);
    }

    #[test]
    fn halves_belong_together() {
        assert_table(&[
            (", rule = { scaffold = {} }", "kind = 'fedavg'", "", &["client", "the rule `scaffold` needs"]),
            (", rule = { feddyn = {} }", "kind = 'median'", "", &["client", "the rule `feddyn` needs"]),
            ("", "kind = 'scaffold'", "", &["strategy", "`scaffold` needs [client] rule"]),
            ("", "kind = 'feddyn', alpha = 0.1", "", &["strategy", "`feddyn` needs [client] rule"]),
            (", rule = { scaffold = {} }", "kind = 'scaffold'", "", &[]),
            (", rule = { scaffold = {} }", "kind = 'swa', start = 2, base = { kind = 'scaffold' }", "", &[]),
            (", rule = { feddyn = { alpha = 0.1 } }", "kind = 'feddyn', alpha = 0.1", "", &[]),
            (
                ", rule = { feddyn = { alpha = 0.1 } }",
                "kind = 'feddyn', alpha = 0.2",
                "",
                &["strategy", "0.2", "0.1", "the same"],
            ),
            (", rule = { feddyn = { alpha = 0.1 } }", "kind = 'scaffold'", "", &["strategy", "`scaffold` needs"]),
            (
                ", rule = { depth_fl = { classifiers = [1] } }",
                "kind = 'feddyn'",
                "",
                &["strategy", "that of `depth_fl`"],
            ),
            (
                ", rule = { depth_fl = { classifiers = [1], feddyn = { alpha = 0.1 } } }",
                "kind = 'fedavg'",
                "",
                &["client", "`feddyn` needs"],
            ),
            (
                ", rule = { depth_fl = { classifiers = [1], feddyn = { alpha = 0.1 } } }",
                "kind = 'feddyn', alpha = 0.2",
                "",
                &["strategy", "0.2", "0.1", "the same"],
            ),
            (
                ", rule = { depth_fl = { classifiers = [1], feddyn = { alpha = 0.1 } } }",
                "kind = 'feddyn', alpha = 0.1",
                "",
                &[],
            ),
            (", rule = { fedgen = {} }", "kind = 'fedavg'", "", &["client", "the rule `fedgen` needs"]),
            ("", "kind = 'fedgen'", "", &["strategy", "`fedgen` needs [client] rule"]),
            (", rule = { inclusive_fl = { sizes = [1] } }", "kind = 'fedavg'", "", &["client", "`inclusive_fl` needs"]),
            ("", "kind = 'inclusive_fl'", "", &["strategy", "`inclusive_fl` needs [client] rule"]),
            (", rule = { inclusive_fl = { sizes = [1] } }", "kind = 'inclusive_fl'", "", &[]),
            (", rule = { fedgen = {} }", "kind = 'norm_clipping', base = { kind = 'fedgen' }", "", &[]),
            (", rule = { proximal = { mu = 0.1 } }", "kind = 'fedavg'", "", &[]),
            (", rule = { ntd = {} }, sharpness = { kind = 'sam', rho = 0.1 }", "kind = 'ewwa'", "", &[]),
        ]);
    }

    #[test]
    fn wrappers_do_not_wrap_themselves() {
        let twice = "kind = 'norm_clipping', base = { kind = 'norm_clipping', base = { kind = 'fedavg' } }";
        assert_table(&[
            ("", twice, "", &["strategy", "`norm_clipping` wraps another"]),
            ("", "kind = 'norm_clipping', base = { kind = 'median' }", "", &[]),
            (
                "",
                "kind = 'swa', start = 2, base = { kind = 'swa', start = 3 }",
                "",
                &["strategy", "`swa` wraps another"],
            ),
            ("", "kind = 'swa', start = 2, base = { kind = 'ewwa' }", "", &[]),
            ("", "kind = 'swa', start = 2, base = { kind = 'fedftg' }", "", &[]),
            ("", "kind = 'fedftg', base = { kind = 'swa', start = 2 }", "", &["strategy", "`swa` around `fedftg`"]),
            (
                "",
                "kind = 'fedftg', base = { kind = 'norm_clipping', base = { kind = 'fedftg' } }",
                "",
                &["strategy", "`fedftg` wraps another"],
            ),
            (
                ", rule = { fedgen = {} }",
                "kind = 'fedgen', base = { kind = 'fedgen' }",
                "",
                &["strategy", "`fedgen` wraps another"],
            ),
            ("", "kind = 'swa', start = 2, base = { kind = 'feddf' }", "", &[]),
            ("", "kind = 'feddf', base = { kind = 'swa', start = 2 }", "", &["strategy", "`swa` around `feddf`"]),
            (
                "",
                "kind = 'feddf', base = { kind = 'norm_clipping', base = { kind = 'feddf' } }",
                "",
                &["strategy", "`feddf` wraps another"],
            ),
        ]);
    }

    #[test]
    fn fednova_needs_steps_of_sgd() {
        let pfedme = ", personal = { kind = 'pfedme', lambda = 5.0, personal_lr = 0.05 }";
        assert_table(&[
            (pfedme, "kind = 'fednova'", "", &["strategy", "`fednova`", "`pfedme`"]),
            (pfedme, "kind = 'fedavg'", "", &[]),
            (
                ", rule = { depthwise = { memory = '1 MiB' } }",
                "kind = 'fednova'",
                "",
                &["strategy", "`fednova`", "rule `depthwise`"],
            ),
            (", personal = { kind = 'ditto' }", "kind = 'fednova'", "", &[]),
        ]);
    }

    #[test]
    fn feddyn_loses_nothing_for_good() {
        let (client, strategy) = (", rule = { feddyn = { alpha = 0.1 } }", "kind = 'feddyn', alpha = 0.1");
        let lossy = "compression = { up = { kind = 'int8' }, error_feedback = false }";
        assert_table(&[
            (client, strategy, "compression = { up = { kind = 'int8' } }", &[]),
            (client, strategy, lossy, &["compression", "int8", "`feddyn`", "error_feedback"]),
            ("", "kind = 'fedavg'", lossy, &[]),
        ]);
    }

    #[test]
    fn the_target_of_weight_erosion_exists() {
        assert_table(&[
            ("", "kind = 'weight_erosion', target = 19", "", &[]),
            ("", "kind = 'weight_erosion', target = 20", "", &["strategy", "`target` is 20", "20 clients"]),
        ]);
    }
}
