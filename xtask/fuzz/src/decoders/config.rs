//! What a user writes: experiments, changes of them, grids, and what files are combined.

use std::path::Path;

use fedburn_experiment::aggregate::{AggregateFiles, UpdateFile};
use fedburn_experiment::backend::BackendName;
use fedburn_experiment::config::ExperimentConfig;
use fedburn_experiment::layers::Change;
use fedburn_experiment::sweep::Axis;
use toml::Table;

use super::{Folder, of_toml, text};
use crate::Decoder;
use crate::decoder::Decoded;

pub(super) fn decoders() -> Vec<Decoder> {
    let folder = Folder::new();
    let strategy = folder.put("strategy.toml", b"kind = \"fedavg\"");
    vec![
        of_toml(Decoder::new(
            "experiment",
            8_192,
            |input| experiment(text(input)?),
            |_, config| {
                // A run is known by this text: it must say the same.
                let one = |config: &ExperimentConfig| config.run_hash("flex", 3);
                assert_eq!(one(&experiment(&config.resolved(3)).expect("a config that was read")), one(&config));
            },
        )),
        of_toml(Decoder::new("change", 1_024, change, |_, _| ())),
        of_toml(Decoder::new("axis", 1_024, |input| Ok(Axis::parse(text(input)?)?), |_, _| ())),
        of_toml(Decoder::new(
            "grid",
            2_048,
            |input| Ok(Axis::of_table(Path::new("e"), &toml::from_str(text(input)?)?)?),
            |_, _| (),
        )),
        Decoder::new("update-argument", 512, |input| Ok(text(input)?.parse::<UpdateFile>()?), |_, _| ())
            .holding(16 << 10),
        Decoder::new(
            "combined-file",
            2_048,
            move |input| {
                let global = folder.put("global", input);
                let files = AggregateFiles {
                    strategy: strategy.clone(),
                    updates: vec![UpdateFile::new(&global, 2)],
                    global,
                    population: None,
                    state: None,
                    out: folder.path().join("out"),
                    deployed: None,
                    side: None,
                    seed: 3,
                };
                Ok(BackendName::Flex.run(files)??)
            },
            |_, _| (),
        )
        .holding(64 << 10),
    ]
}

fn experiment(text: &str) -> Decoded<ExperimentConfig> {
    Ok(ExperimentConfig::of_table(Path::new("e"), toml::from_str(text)?, &[])?)
}

fn change(input: &[u8]) -> Decoded<Table> {
    let mut table = toml::from_str("title = 'a'\n[client]\nlr = 0.1")?;
    Change::parse(text(input)?)?.apply(&mut table)?;
    Ok(table)
}
