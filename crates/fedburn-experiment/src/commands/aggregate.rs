//! `fedburn aggregate`.

use std::process::ExitCode;

use fedburn_experiment::aggregate::AggregateFiles;
use fedburn_experiment::cli::AggregateArgs;

use super::Outcome;

pub fn run(args: AggregateArgs) -> Outcome {
    let clients = args.updates.len();
    let out = args.out.clone();
    let files = AggregateFiles {
        strategy: args.strategy,
        global: args.global,
        updates: args.updates,
        population: args.population,
        state: args.state,
        out: args.out,
        deployed: args.deployed,
        side: args.side,
        seed: args.seed,
    };
    let report = args.backend.run(files)??;
    if args.json {
        let value = serde_json::json!({
            "round": report.round, "strategy": report.strategy, "clients": clients,
            "parameters": report.parameters, "metrics": report.metrics, "out": out,
            "side_scalars": report.side_scalars, "side_vectors": report.side_vectors,
        });
        println!("{value}");
    } else {
        let (round, strategy, parameters) = (report.round, report.strategy, report.parameters);
        println!(
            "round {round}: {strategy} over {clients} clients, {parameters} parameters, written to {}",
            out.display()
        );
        report.side_scalars.iter().for_each(|(name, value)| println!("  clients get {name} = {value}"));
        report.side_vectors.iter().for_each(|(name, file)| println!("  clients get {name}: {}", file.display()));
        report.metrics.iter().for_each(|(name, mean)| println!("  {name} = {}", mean.value().unwrap_or(f64::NAN)));
    }
    if !report.narrowed.is_empty() {
        eprintln!("note: combined in 32-bit floats although stored as F64: {}", report.narrowed.join(", "));
    }
    Ok(ExitCode::SUCCESS)
}
