//! `fedburn status` and `jobs`, and what `serve` shows meanwhile.

use std::net::SocketAddr;
use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use fedburn::transport::quic::page_token;
use fedburn_experiment::cli::{ServeArgs, ServerState, StatusArgs};
use fedburn_experiment::operation::{
    Job, JobError, JobState, Jobs, Monitor, PageServer, PageServerError, Served, Snapshot, jobs_table, status_text,
};
use fedburn_experiment::progress::Progress;
use serde_json::json;

use super::Outcome;
use super::federation::existing;

pub fn status(args: &StatusArgs) -> Outcome {
    let jobs = Jobs::of(existing(&args.server)?);
    let wanted = |job: &Job| args.name.as_ref().is_none_or(|name| job.run.name == *name);
    let Some(job) = jobs.list()?.into_iter().find(wanted) else {
        let what = args.name.as_ref().map_or("no run".to_owned(), |name| format!("no run `{name}`"));
        return Err(format!("{what} was served from {}; see `fedburn jobs`", args.server.state.display()).into());
    };
    let snapshot = jobs.snapshot(&job)?;
    match args.server.json {
        true => println!("{}", serde_json::to_string_pretty(&snapshot)?),
        false => print!("{}", status_text(&snapshot)),
    }
    Ok(if snapshot.state == JobState::Running { ExitCode::SUCCESS } else { ExitCode::from(NOT_RUNNING) })
}

pub fn jobs(server: &ServerState) -> Outcome {
    let jobs = Jobs::of(existing(server)?);
    let mut list = Vec::new();
    for job in jobs.list()? {
        let state = jobs.state(&job)?;
        list.push((job, state));
    }
    if server.json {
        let entry = |(job, state): &(Job, JobState)| json!({ "job": job, "state": state });
        println!("{}", serde_json::to_string_pretty(&list.iter().map(entry).collect::<Vec<_>>())?);
    } else if list.is_empty() {
        println!("nothing was served yet");
    } else {
        print!("{}", jobs_table(&list));
    }
    Ok(ExitCode::SUCCESS)
}

/// Host and port by which nodes reach the server that runs.
pub fn reached(state: &Path) -> Result<Option<(String, u16)>, JobError> {
    let jobs = Jobs::of(state);
    for job in jobs.list()? {
        let address = jobs.snapshot(&job)?.network.address;
        if let Some((host, port)) = address.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse().ok()?))) {
            return Ok(Some((host.to_owned(), port)));
        }
    }
    Ok(None)
}

/// What shows a run to the outside.
pub struct Shown {
    monitor: Monitor,
    page: Option<PageServer>,
    _served: Served,
    hold: bool,
}

/// Writes the run down among the jobs, and begins to show it.
pub fn show(args: &ServeArgs, monitor: &Monitor, progress: Progress) -> Result<Shown, Box<dyn std::error::Error>> {
    let token = page_token(&args.state)?;
    let page = match args.no_page {
        true => None,
        false => Some(listen(args.page, &token, monitor)?),
    };
    let Snapshot { run, started, .. } = monitor.snapshot();
    let address = page.as_ref().map(PageServer::address);
    let served = Jobs::of(&args.state).serve(&Job { run, started, page: address })?;
    if let Some(address) = address {
        let url = format!("http://{address}/#token={token}");
        progress.tell(&format!("page: {url}"), &json!({ "event": "page", "address": address, "url": url }));
        if !address.ip().is_loopback() {
            let advice = "whoever reads the network reads the page's token; a tunnel is better";
            tracing::warn!(%address, advice, "page.unencrypted");
        }
    }
    monitor.show_life()?;
    Ok(Shown { monitor: monitor.clone(), page, _served: served, hold: args.hold })
}

impl Shown {
    /// The run has ended; the page stays until the user's interrupt where that was asked for.
    pub fn ended(self, state: JobState, interrupt: &AtomicBool, progress: Progress) {
        if self.hold && self.page.is_some() {
            progress.note(&format!("the run has {state}; the page stays until you interrupt"));
        }
        self.monitor.ended(state);
        if self.hold && self.page.is_some() {
            while !interrupt.load(Ordering::Relaxed) {
                std::thread::sleep(LOOK);
            }
        }
    }
}

/// At the address that was asked for, else at the usual one, else at any port.
fn listen(asked: Option<SocketAddr>, token: &str, monitor: &Monitor) -> Result<PageServer, PageServerError> {
    let start = |address| PageServer::start(address, token.to_owned(), monitor.clone());
    match asked {
        Some(address) => start(address),
        None => start(USUAL).or_else(|_| start(SocketAddr::new(USUAL.ip(), 0))),
    }
}

const USUAL: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 4844);
/// What `status` exits with where no server runs.
const NOT_RUNNING: u8 = 3;
/// How long the user's interrupt may go unseen.
const LOOK: Duration = Duration::from_millis(100);
