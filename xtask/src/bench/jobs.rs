//! The jobs, and who plays them: fedburn with one thread and with all, and each peer in the same ways.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::ValueEnum;

use super::python::{Peer, Python};
use crate::workspace;

/// What `--jobs` names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum JobName {
    #[value(name = "2nn")]
    TwoNn,
    Cnn,
    Step,
    Mean,
    Flute,
}

impl JobName {
    pub const ALL: [Self; 5] = [Self::TwoNn, Self::Cnn, Self::Step, Self::Mean, Self::Flute];
}

/// Work that everybody does alike.
pub struct Job {
    pub name: &'static str,
    pub title: &'static str,
    /// What is timed: a `round`, a `step`, a `mean`.
    pub unit: &'static str,
    /// Examples that a unit goes through; times are brought to this number.
    pub examples: f64,
    /// Measurements in a run, the first of which is a warm-up.
    pub rounds: usize,
    /// The experiment that fedburn runs, from the workspace's top folder; its own program for jobs without one.
    experiment: Option<&'static str>,
    /// Fields of the experiment that are set.
    sets: &'static [&'static str],
}

const JOBS: [(JobName, Job); 7] = [
    (
        JobName::TwoNn,
        Job {
            name: "2nn",
            title: "FedAvg of the 2NN on Fashion-MNIST: 100 clients, Dirichlet 0.5, 10 a round, 1 epoch, batch 32",
            unit: "round",
            examples: 6000.0,
            rounds: 20,
            experiment: Some("benches/experiments/fashion/fedavg-2nn.toml"),
            sets: &["server.eval_every=0", "server.checkpoint_every=0"],
        },
    ),
    (
        JobName::Cnn,
        Job {
            name: "cnn",
            title: "FedAvg of the FedAvg paper's CNN on Fashion-MNIST: 100 clients, Dirichlet 0.5, 10 a round, 1 epoch, batch 32",
            unit: "round",
            examples: 6000.0,
            rounds: 4,
            experiment: Some("benches/experiments/fashion/fedavg-cnn.toml"),
            sets: &["server.eval_every=0", "server.checkpoint_every=0"],
        },
    ),
    (JobName::Step, step("step-2nn", "A step of SGD: 2NN, 784-200-200-10, batch 32, one thread", 40)),
    (JobName::Step, step("step-cnn", "A step of SGD: the FedAvg paper's CNN, 28 x 28, batch 32, one thread", 15)),
    (
        JobName::Step,
        step("step-resnet20", "A step of SGD: ResNet-20 with group norm, 32 x 32 x 3, batch 32, one thread", 15),
    ),
    (
        JobName::Mean,
        Job {
            name: "mean",
            title: "The weighted mean of 10 updates of 10,000,000 values in memory",
            unit: "mean",
            examples: 1.0,
            rounds: 30,
            experiment: None,
            sets: &[],
        },
    ),
    (
        JobName::Flute,
        Job {
            name: "flute",
            title: "FedAvg of softmax regression: 1,000 clients of 60 images, 10 a round, 1 epoch, batch 10, lr 0.03",
            unit: "round",
            examples: 600.0,
            rounds: 100,
            experiment: Some("benches/experiments/flute/softmax.toml"),
            sets: &[],
        },
    ),
];

const fn step(name: &'static str, title: &'static str, rounds: usize) -> Job {
    Job { name, title, unit: "step", examples: 32.0, rounds, experiment: None, sets: &[] }
}

/// Somebody who plays a job: what to call, and how to read what it says.
pub struct Participant {
    /// Who, without the number of threads.
    pub who: String,
    pub threads: usize,
    pub program: PathBuf,
    pub words: Vec<OsString>,
    pub says: Says,
    pub rounds: usize,
}

/// What a program prints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Says {
    /// One line with all measurements, at the end.
    Report,
    /// The events of an experiment while it goes on.
    Events,
}

/// The programs that play fedburn's side.
pub struct Ours {
    /// `fedburn`, which runs experiments.
    pub experiments: PathBuf,
    /// `fedburn-jobs`, which does the rest.
    pub jobs: PathBuf,
}

/// The jobs that the names stand for, in a fixed order.
pub fn jobs(names: &[JobName]) -> Vec<&'static Job> {
    JOBS.iter().filter(|(name, _)| names.contains(name)).map(|(_, job)| job).collect()
}

impl Participant {
    /// The name in tables.
    pub fn label(&self) -> String {
        format!("{}, {}", self.who, threads(self.threads))
    }

    fn new(who: &str, threads: usize, program: &Path, words: &[&str], says: Says, rounds: usize) -> Self {
        let words = words.iter().map(OsString::from).collect();
        Self { who: who.to_owned(), threads, program: program.to_owned(), words, says, rounds }
    }

    /// A script of `benches/peers`; it is told the number of threads and of rounds.
    pub fn script(who: &str, python: &Python, script: &str, words: &[&str], threads: usize, rounds: usize) -> Self {
        let path = workspace::root().join("benches/peers").join(script).into_os_string();
        let (t, r) = (threads.to_string(), rounds.to_string());
        let mut made = Self::new(who, threads, &python.program, words, Says::Report, rounds);
        made.words.insert(0, path);
        made.words.extend(["--threads", &t, "--rounds", &r].map(OsString::from));
        made
    }

    /// An experiment run by fedburn with fields of its file set.
    pub fn experiment(fedburn: &Path, file: &str, sets: &[&str], workers: usize, rounds: usize) -> Self {
        let out = super::target().join("bench/experiments");
        let (out, workers_word) = (out.to_string_lossy().into_owned(), workers.to_string());
        let words = ["experiment", "run", file, "--fresh", "--json", "--workers", &workers_word, "--out", &out];
        let mut made = Self::new("fedburn", workers, fedburn, &words, Says::Events, rounds);
        for set in [&*format!("server.rounds={rounds}")].iter().chain(sets) {
            made.words.extend(["--set", set].map(OsString::from));
        }
        made
    }
}

impl Job {
    /// Everybody who can play the job, fedburn first, with one thread and with `cores`. `rounds` replaces the job's own.
    pub fn participants(
        &self,
        ours: &Ours,
        python: Option<&Python>,
        cores: usize,
        rounds: Option<usize>,
    ) -> Vec<Participant> {
        let rounds = rounds.unwrap_or(self.rounds);
        let mut both = vec![1, cores];
        both.dedup();
        let mut all = self.ours(ours, &both, rounds);
        let Some(python) = python else { return all };
        let (job, has) = (["--job", self.name], |peer| python.peers.contains(&peer));
        let script = |who: &str, script: &str, words: &[&str], threads: usize, rounds: usize| {
            Participant::script(who, python, script, words, threads, rounds)
        };
        match self.unit {
            "step" if has(Peer::Torch) => all.push(script("PyTorch", "torch_step.py", &job, 1, rounds)),
            "mean" if has(Peer::Numpy) => {
                for (who, form) in
                    [("NumPy, plain sum", "plain"), ("NumPy, sum in place", "in-place"), ("NumPy, BLAS", "blas")]
                {
                    all.push(script(who, "numpy_mean.py", &["--form", form], 1, rounds));
                }
            }
            "round" => {
                for (peer, who, file) in
                    [(Peer::Torch, "PyTorch loop", "torch_loop.py"), (Peer::Pfl, "pfl-research", "pfl_sim.py")]
                {
                    all.extend(both.iter().filter(|_| has(peer)).map(|&t| script(who, file, &job, t, rounds)));
                }
                if has(Peer::Flower) {
                    // Its rounds are slow and alike.
                    all.push(script("Flower simulation", "flower_sim.py", &job, cores, rounds.min(5)));
                }
            }
            _ => {}
        }
        all
    }

    fn ours(&self, ours: &Ours, threads: &[usize], rounds: usize) -> Vec<Participant> {
        if let Some(file) = self.experiment {
            return threads
                .iter()
                .map(|&t| Participant::experiment(&ours.experiments, file, self.sets, t, rounds))
                .collect();
        }
        let own = |who: &str, more: &[&str], t: usize| {
            let (t_word, r) = (t.to_string(), rounds.to_string());
            let words = [&["--job", self.name, "--rounds", &r, "--threads", &t_word], more].concat();
            Participant::new(who, t, &ours.jobs, &words, Says::Report, rounds)
        };
        match self.unit {
            "step" => vec![own("fedburn", &[], 1), own("fedburn on ndarray", &["--backend", "ndarray"], 1)],
            _ => threads.iter().map(|&t| own("fedburn", &[], t)).collect(),
        }
    }

    /// Which of fedburn's ways everybody is held against: all threads for rounds, else one.
    pub fn reference(&self, participants: &[Participant]) -> usize {
        let ours = participants.iter().take_while(|p| p.who == "fedburn").count();
        if self.unit == "round" { ours.saturating_sub(1) } else { 0 }
    }
}

fn threads(number: usize) -> String {
    if number == 1 { "1 thread".to_owned() } else { format!("{number} threads") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn played(name: JobName, peers: &[Peer], cores: usize) -> Vec<Vec<String>> {
        let ours = Ours { experiments: "fedburn".into(), jobs: "fedburn-jobs".into() };
        let python = Python { program: "python3".into(), peers: peers.to_vec(), missing: vec![] };
        let labels = |job: &&Job| {
            job.participants(&ours, Some(&python), cores, Some(3)).iter().map(Participant::label).collect()
        };
        jobs(&[name]).iter().map(labels).collect()
    }

    #[test]
    fn everybody_plays_with_one_thread_and_with_all() {
        let expected = [
            "fedburn, 1 thread",
            "fedburn, 2 threads",
            "PyTorch loop, 1 thread",
            "PyTorch loop, 2 threads",
            "pfl-research, 1 thread",
            "pfl-research, 2 threads",
            "Flower simulation, 2 threads",
        ];
        assert_eq!(played(JobName::Cnn, &Peer::ALL, 2), [expected]);
        let one = ["fedburn, 1 thread", "PyTorch loop, 1 thread"];
        assert_eq!(played(JobName::TwoNn, &[Peer::Torch], 1), [one]);
    }

    #[test]
    fn steps_are_three_jobs_of_one_thread() {
        let expected = ["fedburn, 1 thread", "fedburn on ndarray, 1 thread", "PyTorch, 1 thread"];
        assert_eq!(played(JobName::Step, &Peer::ALL, 2), [expected; 3]);
        assert_eq!(played(JobName::Mean, &[], 2), [["fedburn, 1 thread", "fedburn, 2 threads"]]);
    }

    #[test]
    fn every_experiment_and_script_is_there() {
        let root = workspace::root();
        for (_, job) in &JOBS {
            assert!(job.experiment.is_none_or(|file| root.join(file).is_file()), "{}", job.name);
        }
        let python = Python { program: "python3".into(), peers: Peer::ALL.to_vec(), missing: vec![] };
        let ours = Ours { experiments: "fedburn".into(), jobs: "fedburn-jobs".into() };
        for job in jobs(JobName::value_variants()) {
            for participant in
                job.participants(&ours, Some(&python), 2, None).iter().filter(|p| p.program == Path::new("python3"))
            {
                assert!(Path::new(&participant.words[0]).is_file(), "{:?}", participant.words);
            }
        }
    }

    #[test]
    fn rounds_are_held_against_all_threads() {
        let ours = Ours { experiments: "fedburn".into(), jobs: "fedburn-jobs".into() };
        let reference = |name| {
            let job = jobs(&[name])[0];
            let all = job.participants(&ours, None, 2, None);
            all[job.reference(&all)].label()
        };
        assert_eq!(reference(JobName::TwoNn), "fedburn, 2 threads");
        assert_eq!(reference(JobName::Mean), "fedburn, 1 thread");
    }
}
