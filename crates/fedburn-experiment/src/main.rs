//! The `fedburn` program.

mod commands;

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::Parser;
use fedburn_experiment::cli::Cli;
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let filter = EnvFilter::try_from_env("FEDBURN_LOG").unwrap_or_else(|_| EnvFilter::new("warn"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .init();
    match commands::run(Cli::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error}");
            // Most errors tell their source's words already; the others are told here.
            let (mut told, mut source) = (error.to_string(), error.source());
            while let Some(cause) = source {
                let text = cause.to_string();
                if !told.contains(&text) {
                    eprintln!("  because: {text}");
                    told.push_str(&text);
                }
                source = cause.source();
            }
            ExitCode::FAILURE
        }
    }
}
