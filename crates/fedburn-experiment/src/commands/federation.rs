//! `fedburn serve`, `join`, `nodes` and `ca`.

use std::path::Path;
use std::process::ExitCode;

use fedburn::core::ClientId;
use fedburn::transport::quic::{JoinString, NodeId, NodeRecord, NodeRegistry, ServerRecord};
use fedburn_experiment::assemble::Experiment;
use fedburn_experiment::cli::{CaCommand, JoinArgs, NodesCommand, Places, ServeArgs, ServerState, parse_numbers};
use fedburn_experiment::config::ExperimentConfig;
use fedburn_experiment::federation::{JoinOptions, Policy, Serving, join as be_clients};
use fedburn_experiment::operation::{JobState, Monitor, RunFacts};
use fedburn_experiment::progress::Progress;
use fedburn_experiment::run::{RunOptions, check_start};
use fedburn_experiment::trace::Tracer;
use serde_json::json;

use super::run::{find_one, interrupted, on_interrupt, run_all, show};
use super::{Outcome, operation};

pub fn serve(args: ServeArgs) -> Outcome {
    let places = Places { configs: args.configs.clone(), out: args.out.clone() };
    let target = find_one(&places, &args.target)?;
    let config = ExperimentConfig::load(&target.path, &args.overrides)?;
    let seed = match (args.seed, config.seeds.as_slice()) {
        (Some(seed), _) => seed,
        (None, [seed]) => *seed,
        (None, seeds) => {
            let seeds: Vec<_> = seeds.iter().map(u64::to_string).collect();
            let reason = "expected one, since clients join one run; choose it with --seed";
            return Err(format!("{} has the seeds {}; {reason}", target.path.display(), seeds.join(", ")).into());
        }
    };
    let run = Experiment::new(&target.path, config, &super::data_root(args.data.as_ref()))?.run(seed)?;
    let dir = args.out.join(&target.suite).join(&target.name);
    let name = format!("{}/{}", target.suite, target.name);
    let command = serve_command(&args, &target.path, seed);
    let facts = RunFacts {
        name: name.clone(),
        title: run.experiment().config().title.clone(),
        seed,
        hash: run.experiment().config().run_hash(args.backend.as_str(), seed),
        backend: args.backend.to_string(),
        results: std::path::absolute(dir.join(format!("seed-{seed}")))?,
    };
    let progress = progress(args.json, args.quiet);
    let monitor = Monitor::new(facts);
    let ending = monitor.clone();
    let options = RunOptions {
        dir: dir.clone(),
        backend: args.backend,
        fresh: args.fresh,
        progress,
        interrupt: on_interrupt(move || ending.draining())?,
        command,
        serving: Some(Serving {
            state: args.state.clone(),
            name,
            listen: args.listen,
            public_host: args.public_host.clone(),
            wait_for: args.wait_for,
            durability: args.durability,
            join_file: args.join_file.clone(),
            monitor: monitor.clone(),
            tracer: Tracer::from_environment("fedburn-server")?,
        }),
    };
    check_start(&run, &options)?;
    let shown = operation::show(&args, &monitor, progress)?;
    let runs = [run];
    let ended = run_all(&runs, &options);
    let state = match &ended {
        Ok(true) => return Ok(interrupted()),
        Ok(false) => {
            show(&dir, &runs, args.json)?;
            JobState::Finished
        }
        Err(error) => JobState::failed(error),
    };
    shown.ended(state, &options.interrupt, progress);
    Ok(ended.map(|_| ExitCode::SUCCESS)?)
}

pub fn join(args: JoinArgs) -> Outcome {
    let text = match args.join.strip_prefix('@') {
        Some(path) => std::fs::read_to_string(path).map_err(|e| format!("cannot read {path}: {e}"))?,
        None => args.join,
    };
    let clients = args.clients.as_deref().map(|text| parse_numbers("--clients", text)).transpose()?;
    let options = JoinOptions {
        join: text.trim().parse::<JoinString>()?,
        clients: clients.map(|clients| clients.into_iter().map(ClientId).collect()),
        workers: args.workers,
        backend: args.backend,
        state: args.state,
        data: super::data_root(args.data.as_ref()),
        policy: args.policy.as_deref().map(Policy::load).transpose()?.unwrap_or_default(),
        patience: args.patience,
        longest_wait: args.longest_wait,
        progress: progress(args.json, args.quiet),
        tracer: Tracer::from_environment("fedburn-client")?,
    };
    be_clients(&options)?;
    Ok(ExitCode::SUCCESS)
}

pub fn nodes(command: &NodesCommand) -> Outcome {
    let server = match command {
        NodesCommand::List { server } | NodesCommand::Allow { server, .. } | NodesCommand::Revoke { server, .. } => {
            server
        }
    };
    let registry = NodeRegistry::open(existing(server)?)?;
    match command {
        NodesCommand::List { .. } => {}
        NodesCommand::Allow { node, .. } => registry.allow(node.parse::<NodeId>()?)?,
        NodesCommand::Revoke { node, .. } => registry.revoke(node.parse::<NodeId>()?)?,
    }
    let nodes = registry.list();
    if server.json {
        let entry = |record: &NodeRecord| {
            let (node, standing) = (record.node.to_string(), record.standing.to_string());
            json!({ "node": node, "standing": standing, "since": record.since, "declined": record.declined })
        };
        println!("{}", serde_json::to_string_pretty(&nodes.iter().map(entry).collect::<Vec<_>>())?);
    } else if nodes.is_empty() {
        println!("no node has enrolled");
    } else {
        for record in nodes {
            let declined = record.declined.map(|reason| format!("  declined: {reason}")).unwrap_or_default();
            println!("{}  {}{declined}", record.node, record.standing);
        }
    }
    Ok(ExitCode::SUCCESS)
}

pub fn ca(command: &CaCommand) -> Outcome {
    let (CaCommand::Show { server } | CaCommand::Renew { server }) = command;
    let dir = existing(server)?;
    let record = match command {
        CaCommand::Show { .. } => ServerRecord::of(dir)?,
        CaCommand::Renew { .. } => ServerRecord::renew(dir)?,
    };
    if server.json {
        let (authority, node) = (&record.authority, record.server.to_string());
        println!("{}", json!({ "authority": authority, "server": node, "valid_until": record.valid_until }));
    } else {
        println!("authority    {}", record.authority);
        println!("server       {}", record.server);
        println!("certificate  good for {} days", record.seconds_left() / 86_400);
    }
    if matches!(command, CaCommand::Renew { .. }) && !server.json {
        match operation::reached(&server.state)? {
            Some((host, port)) => println!(
                "the running server has it within a second; new nodes join with\n\n    fedburn join {}\n",
                ServerRecord::join_string(dir, &host, port)?
            ),
            None => println!("no server runs; it prints the new join string when it starts"),
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The folder of a server that was started once: asking must not make one.
pub fn existing(server: &ServerState) -> Result<&Path, String> {
    match server.state.is_dir() {
        true => Ok(&server.state),
        false => Err(format!(
            "{} is no server's folder; name it with --state, or start the server once (`fedburn serve`)",
            server.state.display()
        )),
    }
}

fn progress(json: bool, quiet: bool) -> Progress {
    match (json, quiet) {
        (true, _) => Progress::Json,
        (_, true) => Progress::Quiet,
        _ => Progress::Auto,
    }
}

/// The command that repeats a run, without what does not change its results.
fn serve_command(args: &ServeArgs, path: &Path, seed: u64) -> String {
    let mut words = vec!["fedburn serve".to_owned(), path.display().to_string(), format!("--seed {seed}")];
    if args.backend != Default::default() {
        words.push(format!("--backend {}", args.backend));
    }
    words.extend(args.overrides.iter().map(|text| format!("--set '{text}'")));
    words.join(" ")
}
