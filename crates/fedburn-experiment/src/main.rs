//! The `fedburn` program.

mod commands;

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::Parser;
use fedburn::meter::Counting;
use fedburn_experiment::cli::{Cli, LogFormat};
use tracing_subscriber::EnvFilter;

/// Counts what clients' training takes, thread by thread.
#[global_allocator]
static COUNTING: Counting = Counting;

fn main() -> ExitCode {
    let filter = EnvFilter::try_from_env("FEDBURN_LOG").unwrap_or_else(|_| EnvFilter::new("warn"));
    let cli = Cli::parse();
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match cli.log_format {
        LogFormat::Text => log.with_ansi(std::io::stderr().is_terminal()).init(),
        LogFormat::Json => log.json().init(),
    }
    match commands::run(cli.command) {
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
