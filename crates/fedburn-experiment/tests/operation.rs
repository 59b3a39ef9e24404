//! A served federation as its operator sees it: status, jobs, the page in a browser, figures.
#![cfg(unix)]
#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::io::ErrorKind;
use std::net::UdpSocket;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::Command;

use serde_json::Value;
use support::federation::{Federation, Running};
use support::traces::{Traces, last_round};
use support::{Finished, Workplace, json};

const SMALL: &str = r#"
title = "Six clients & one page"
seeds = [3]
data = { kind = "digits" }
partition = { kind = "dirichlet", clients = 6, alpha = 0.3, min_examples = 10 }
model = { kind = "softmax" }
client = { rule = "sgd", epochs = 1, batch_size = 32, lr = 0.1 }
strategy = { kind = "fedavg" }
sampler = { kind = "uniform", per_round = 4 }
server = { rounds = 8, checkpoint_every = 3 }
"#;

const HELD: &str = "--page 127.0.0.1:0 --hold";

impl Federation<'_> {
    fn state(&self) -> String {
        self.path("server").display().to_string()
    }

    /// What `fedburn status --json` prints, and its exit code.
    fn status(&self) -> (Value, Option<i32>) {
        let finished = self.place.call(&format!("status --json --state {}", self.state()));
        (
            serde_json::from_str(&finished.stdout).unwrap_or_else(|e| panic!("{e}: {}", finished.stderr)),
            finished.status.code(),
        )
    }

    fn jobs(&self) -> Value {
        let finished = self.place.succeed(&format!("jobs --json --state {}", self.state()));
        serde_json::from_str(&finished.stdout).unwrap()
    }

    /// The page's address with the token, as the server printed it.
    fn page(&self) -> String {
        let log = self.log("server");
        log.lines().rev().find_map(|line| line.strip_prefix("page: ")).unwrap_or_else(|| panic!("{log}")).to_owned()
    }

    fn interrupt(&self, server: &Running) {
        signal(server, "INT");
    }

    /// Runs to the end; the server stays and shows its page.
    fn run_and_hold(&mut self) -> Running {
        let mut server = self.serve();
        let nodes = self.join_all();
        let done = || self.status().0["state"]["kind"] == "finished";
        assert!(server.until(done), "{}", self.log("server"));
        nodes.into_iter().for_each(|mut node| node.succeeds());
        server
    }
}

#[test]
fn status_and_jobs_follow_a_run_from_waiting_to_its_end() {
    let place = Workplace::new(SMALL);
    place.call("status").assert_refused(&["no server's folder", "--state"]);
    let mut federation = Federation::new(&place, "served", HELD);
    let mut server = federation.serve();
    let (status, code) = federation.status();
    assert_eq!(code, Some(0));
    assert_eq!(
        (&status["state"]["kind"], &status["phase"], &status["wanted"]),
        (&"running".into(), &"waiting".into(), &6.into())
    );
    assert_eq!((&status["round"], &status["network"]["clients"]), (&0.into(), &0.into()));
    assert_eq!(federation.jobs()[0]["state"]["kind"], "running");

    let nodes = federation.join_all();
    let done = || federation.status().0["state"]["kind"] == "finished";
    assert!(server.until(done), "{}", federation.log("server"));
    nodes.into_iter().for_each(|mut node| node.succeeds());
    let (live, code) = federation.status();
    let summary = json(&federation.dir().join("summary.json"));
    assert_eq!(code, Some(3), "the run is over");
    assert_eq!((&live["round"], &live["rounds"], &live["phase"]), (&8.into(), &8.into(), &"ended".into()));
    assert_eq!(live["last"]["accuracy"], summary["final_accuracy"]["value"]);
    assert_eq!((&live["totals"]["updates"], &live["totals"]["rounds_committed"]), (&32.into(), &8.into()));
    assert!(live["network"]["payload"]["up"].as_u64() >= summary["bytes_up"].as_u64(), "{live}");
    assert_eq!(live["round_seconds"]["count"], 8);
    assert_eq!(live["run"]["hash"], json(&federation.dir().join("run.json"))["config_hash"]);

    federation.interrupt(&server);
    assert_eq!(server.0.wait().unwrap().code(), Some(0), "the run was finished");
    // The folder tells the end before there is a server again, whose page has another port.
    let page = |federation: &Federation<'_>| federation.jobs()[0]["job"]["page"].clone();
    let before = page(&federation);
    let mut again = federation.serve();
    let there = || page(&federation) != before && federation.status().0["phase"] == "ended";
    assert!(again.until(there), "{}", federation.log("server"));
    let (held, _) = federation.status();
    assert_eq!((&held["round"], &held["rounds"], &held["last"]), (&8.into(), &8.into(), &live["last"]));
    federation.interrupt(&again);
    assert_eq!(again.0.wait().unwrap().code(), Some(0));
    let (told, code) = federation.status();
    assert_eq!((code, &told["state"]["kind"]), (Some(3), &"finished".into()));
    assert_eq!(told["last"], live["last"], "the folder tells the same");
    let jobs = federation.jobs();
    assert_eq!((jobs.as_array().unwrap().len(), &jobs[0]["state"]["kind"]), (1, &"finished".into()));
    let results = Path::new(jobs[0]["job"]["run"]["results"].as_str().unwrap());
    assert_eq!(fs::canonicalize(results).unwrap(), fs::canonicalize(federation.dir()).unwrap());
    let text = place.call(&format!("status --state {}", federation.state())).stdout;
    assert!(text.contains("8 of 8") && text.contains("finished"), "{text}");
}

#[test]
fn a_killed_server_is_an_interrupted_job() {
    let place = Workplace::new(&SMALL.replace("rounds = 8", "rounds = 10000"));
    let mut federation = Federation::new(&place, "served", "--page 127.0.0.1:0");
    let mut server = federation.serve();
    let _nodes = federation.join_all();
    let dir = federation.dir();
    assert!(server.until(|| last_round(&dir) >= 4), "{}", federation.log("server"));
    let (status, code) = federation.status();
    assert_eq!((code, &status["rounds"]), (Some(0), &10_000.into()));
    assert_eq!((&status["network"]["connected"], &status["network"]["clients"]), (&3.into(), &6.into()));
    assert_eq!(status["network"]["nodes"].as_array().unwrap().len(), 3);
    server.kill();
    assert_eq!(federation.jobs()[0]["state"]["kind"], "interrupted");
    let (status, code) = federation.status();
    assert!(code == Some(3) && status["round"].as_u64() >= Some(4), "{status}");
}

fn signal(process: &Running, name: &str) {
    let sent = Command::new("sh").arg("-c").arg(format!("kill -{name} {}", process.0.id())).status().unwrap();
    assert!(sent.success());
}

/// A network that ends a connection after so many seconds of silence only, and drains for so long.
fn patient(drain_secs: u64) -> String {
    let network = format!("network = {{ idle_timeout_secs = 3600, drain_secs = {drain_secs} }}");
    format!("{SMALL}transport = {{ kind = \"quic\", {network} }}\n").replace("rounds = 8", "rounds = 10000")
}

#[test]
fn the_second_signal_ends_a_server_at_once() {
    let place = Workplace::new(&patient(86_400));
    let mut federation = Federation::new(&place, "served", "--page 127.0.0.1:0");
    let mut server = federation.serve();
    let mut nodes = federation.join_all();
    let dir = federation.dir();
    assert!(server.until(|| last_round(&dir) >= 2), "{}", federation.log("server"));
    nodes.iter_mut().for_each(Running::kill);
    // A round that is open waits for its clients, who never come; a day is more than this test has.
    signal(&server, "TERM");
    assert!(server.until(|| federation.log("server").contains("ending after this round")));
    signal(&server, "TERM");
    assert_eq!(server.0.wait().unwrap().code(), Some(130), "the second one ends it at once");
    assert_eq!(federation.jobs()[0]["state"]["kind"], "interrupted");
}

#[test]
fn a_round_that_does_not_end_in_time_is_given_up_and_done_again() {
    let place = Workplace::new(&patient(1));
    let simulated = Workplace::new(&patient(1).replace("rounds = 10000", "rounds = 200"));
    let mut federation = Federation::new(&place, "served", "--page 127.0.0.1:0 --set server.rounds=200");
    let mut server = federation.serve();
    let mut nodes = federation.join_all();
    let dir = federation.dir();
    assert!(server.until(|| last_round(&dir) >= 2), "{}", federation.log("server"));
    // Stopped, not killed: it neither answers nor leaves.
    signal(&nodes[0], "STOP");
    signal(&server, "TERM");
    let code = server.0.wait().unwrap().code();
    signal(&nodes[0], "KILL");
    assert_eq!(code, Some(130), "{}", federation.log("server"));
    let server = federation.serve();
    // The others have waited.
    nodes[0] = federation.join_again(0);
    let served = federation.finish(server, nodes);
    simulated.succeed("experiment run suite --quiet --out simulated --workers 2");
    served.assert_same(&Traces::of(&simulated.seed("simulated", 3)), "after a round that was given up");
}

/// A browser without a window; `None`, with a word, where this machine has none.
fn chromium(place: &Workplace) -> Option<Command> {
    let name = ["chromium", "chromium-browser", "google-chrome"]
        .into_iter()
        .find(|name| Command::new(name).arg("--version").output().is_ok_and(|output| output.status.success()));
    let Some(name) = name else {
        eprintln!("skipped: no Chromium on this machine");
        return None;
    };
    let mut browser = Command::new(name);
    browser
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"])
        .args(["--disable-dev-shm-usage", "--virtual-time-budget=5000"])
        .arg(format!("--user-data-dir={}", place.path("browser").display()));
    Some(browser)
}

/// What a browser makes of an address.
fn seen(mut browser: Command, address: &str) -> String {
    let output = browser.arg("--dump-dom").arg(address).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_browser_shows_the_rounds_to_who_has_the_token() {
    let place = Workplace::new(SMALL);
    let Some(browser) = chromium(&place) else { return };
    drop(browser);
    let mut federation = Federation::new(&place, "served", HELD);
    let server = federation.run_and_hold();
    let page = federation.page();
    let (address, token) = page.split_once("#token=").unwrap();
    let show = |address: &str| seen(chromium(&place).unwrap(), address);

    let dom = show(&page);
    let accuracy = json(&federation.dir().join("summary.json"))["final_accuracy"]["value"].as_f64().unwrap();
    assert!(dom.contains(&format!("<strong id=\"accuracy\">{:.2} %</strong>", 100.0 * accuracy)), "{dom}");
    assert!(
        dom.contains("<strong id=\"round\">8 of 8</strong>") && dom.contains("<strong id=\"phase\">finished</strong>"),
        "{dom}"
    );
    assert!(dom.contains("<title>8 of 8 · Six clients &amp; one page</title>"), "{dom}");
    assert_eq!(dom.matches("class=\"chart\"").count(), 4, "accuracy, loss, traffic, seconds");
    assert!(dom.contains("<p id=\"notice\" role=\"status\"></p>"), "{dom}");

    for wrong in [address.to_owned(), format!("{address}#token={}", token.chars().rev().collect::<String>())] {
        let dom = show(&wrong);
        assert!(dom.contains("needs the token") && !dom.contains("Six clients"), "{dom}");
    }
    federation.interrupt(&server);
}

#[test]
fn systemd_hears_of_no_server_that_could_not_start() {
    let place = Workplace::new(SMALL);
    let socket = UnixDatagram::bind(place.path("notify")).unwrap();
    socket.set_nonblocking(true).unwrap();
    let taken = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let mut command = place.command(&format!("serve suite --listen {address} --no-page --out out --quiet"));
    command.env("NOTIFY_SOCKET", place.path("notify")).env_remove("WATCHDOG_USEC");
    Finished::of(command).assert_refused(&[&address.to_string()]);
    assert_eq!(socket.recv(&mut [0; 64]).unwrap_err().kind(), ErrorKind::WouldBlock);
}

#[test]
fn the_log_is_one_json_object_a_line_and_systemd_hears_how_it_stands() {
    let place = Workplace::new(SMALL);
    let socket = UnixDatagram::bind(place.path("notify")).unwrap();
    socket.set_read_timeout(Some(std::time::Duration::from_secs(60))).unwrap();
    let heard = || {
        let mut state = [0; 64];
        let length = socket.recv(&mut state).unwrap();
        String::from_utf8(state[..length].to_vec()).unwrap()
    };
    let mut command =
        place.command("serve suite --listen 127.0.0.1:0 --page 127.0.0.1:0 --out out --json --log-format json");
    command.env("FEDBURN_LOG", "info").env("NOTIFY_SOCKET", place.path("notify")).env("WATCHDOG_USEC", "3600000000");
    let mut server = Running::start(command, place.path("log"));
    let mut first = [heard(), heard()];
    first.sort();
    assert_eq!(first, ["READY=1", "WATCHDOG=1"]);
    let log = || fs::read_to_string(place.path("log")).unwrap();
    assert!(server.until(|| log().contains("\"waiting\"")), "{}", log());
    signal(&server, "TERM");
    assert_eq!(heard(), "STOPPING=1");
    assert_eq!(server.0.wait().unwrap().code(), Some(130));
    let lines: Vec<Value> = log()
        .lines()
        .filter(|line| !line.starts_with("ending after"))
        .map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}")))
        .collect();
    let listening = lines.iter().find(|line| line["fields"]["message"] == "server.listening").unwrap();
    assert_eq!(
        (&listening["level"], &listening["target"]),
        (&"INFO".into(), &"fedburn_transport::quic::server".into())
    );
    assert!(listening["fields"]["address"].as_str().unwrap().starts_with("127.0.0.1:"), "{listening}");
}
