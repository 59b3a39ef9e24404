//! Arbitrary bytes into every decoder, guided by what the code does with them.
//!
//! The program of `xtask/fuzz` has the list of decoders; it is libFuzzer around one of them, chosen by the environment.
//! Here is what goes around it: instrumented build, several decoders side by side, a table, and the committed inputs.

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::thread;
use std::time::Instant;

use clap::Args;

use crate::cargo::Cargo;
use crate::launch;
use crate::workspace;

#[derive(Args)]
pub struct Fuzz {
    /// Inputs of each decoder.
    #[arg(long, default_value_t = 1_000_000)]
    inputs: u64,
    /// Most seconds of each decoder; none where it is not said.
    #[arg(long)]
    seconds: Option<u64>,
    /// Where the search starts from.
    #[arg(long, default_value_t = 0)]
    seed: u32,
    /// Decoders side by side [default: one a core].
    #[arg(long)]
    jobs: Option<usize>,
    /// Adds to the committed inputs, where they are short, the fewest found that do all that was found.
    #[arg(long)]
    keep: bool,
    /// Decoders by name; all where none is named.
    decoders: Vec<String>,
}

/// A decoder as the program lists it.
struct Decoder {
    name: String,
    longest: u64,
    bound: u64,
}

/// What a search of one decoder came to, as libFuzzer tells it.
#[derive(Debug, Default, PartialEq)]
struct Search {
    inputs: u64,
    /// Inputs that did something that none before them did.
    new: u64,
    edges: u64,
    held: u64,
}

/// Where the searches take place.
struct Place {
    program: PathBuf,
    dir: PathBuf,
    /// For files of decoders; in memory where the system has that, and removed in the end.
    temporary: PathBuf,
}

impl Fuzz {
    /// Searches and prints a table.
    ///
    /// # Errors
    /// What could not be started, or each decoder that failed with the input that broke it.
    pub fn run(&self) -> Result<(), String> {
        let place = Place::new(launch::built(build(), "fedburn-fuzz")?)?;
        let all = place.decoders()?;
        if let Some(unknown) = self.decoders.iter().find(|name| all.iter().all(|decoder| decoder.name != **name)) {
            let names: Vec<&str> = all.iter().map(|decoder| decoder.name.as_str()).collect();
            return Err(format!("there is no decoder `{unknown}`, expected one of {}", names.join(", ")));
        }
        let chosen = |decoder: &Decoder| self.decoders.is_empty() || self.decoders.contains(&decoder.name);
        let waiting = Mutex::new(all.into_iter().filter(chosen).rev().collect::<Vec<_>>());
        let (done, failures) = (Mutex::new(Vec::new()), Mutex::new(Vec::new()));
        let work = || {
            while let Some(decoder) = pop(&waiting) {
                match self.search(&place, &decoder) {
                    Ok(line) => push(&done, line),
                    Err(failure) => push(&failures, format!("{}: {failure}", decoder.name)),
                }
            }
        };
        let jobs = self.jobs.unwrap_or_else(|| thread::available_parallelism().map_or(1, usize::from));
        thread::scope(|scope| (0..jobs.max(1)).for_each(|_| drop(scope.spawn(work))));

        let mut lines = done.into_inner().unwrap_or_default();
        lines.sort();
        println!(
            "\n{:<20} {:>9} {:>7} {:>5} {:>6}  held at most, of bytes allowed",
            "decoder", "inputs", "seconds", "new", "edges"
        );
        lines.iter().for_each(|line| println!("{line}"));
        let failures = failures.into_inner().unwrap_or_default();
        if failures.is_empty() { Ok(()) } else { Err(format!("{}\n", failures.join("\n\n"))) }
    }

    /// Searches one decoder; its line of the table.
    fn search(&self, place: &Place, decoder: &Decoder) -> Result<String, String> {
        let Decoder { name, longest, bound } = decoder;
        let begun = Instant::now();
        let (dir, inputs) = (place.dir.join(name), place.dir.join(name).join("inputs"));
        write_all(&inputs, &committed(name)?).map_err(|e| format!("{}: {e}", inputs.display()))?;
        let mut command = place.command(name);
        command
            .arg(format!("-runs={}", self.inputs))
            // 0 is any.
            .arg(format!("-seed={}", u64::from(self.seed) + 1))
            .arg(format!("-max_len={longest}"))
            .arg(format!("-max_total_time={}", self.seconds.unwrap_or(0)))
            .arg(format!("-artifact_prefix={}/", dir.display()))
            .args(["-timeout=30", "-print_final_stats=1"])
            .arg(&inputs);
        let search = followed(command, name, &dir.join("log"))?;
        if self.keep {
            self.keep(place, decoder).map_err(|e| format!("cannot keep inputs: {e}"))?;
        }
        let Search { inputs, new, edges, held } = search;
        Ok(format!("{name:<20} {inputs:>9} {:>7} {new:>5} {edges:>6}  {held} of {bound}", begun.elapsed().as_secs()))
    }

    /// Adds found inputs to the committed ones.
    fn keep(&self, place: &Place, decoder: &Decoder) -> io::Result<()> {
        let (name, dir) = (&decoder.name, place.dir.join(&decoder.name));
        let known = committed(name).map_err(io::Error::other)?;
        let fewest = dir.join("fewest");
        let _ = fs::remove_dir_all(&fewest);
        write_all(&fewest, &known)?;
        let mut command = place.command(name);
        command.args(["-merge=1", "-timeout=30"]).arg(format!("-max_len={}", decoder.longest.min(LONGEST_KEPT)));
        command.arg(&fewest).arg(dir.join("inputs"));
        let merged = command.stderr(fs::File::create(dir.join("merge.log"))?).status()?;
        if !merged.success() {
            return Err(io::Error::other(format!("merging failed; see {}", dir.join("merge.log").display())));
        }
        let read = |entry: io::Result<fs::DirEntry>| fs::read(entry?.path());
        let mut found = fs::read_dir(&fewest)?.map(read).collect::<io::Result<Vec<_>>>()?;
        found.retain(|input| !known.contains(input));
        found.sort_by(|a, b| (a.len(), a).cmp(&(b.len(), b)));
        let mut text: String = known.iter().map(|input| hex(input)).collect();
        for line in found.iter().map(|input| hex(input)) {
            if text.len() + line.len() <= MOST_KEPT {
                text.push_str(&line);
            }
        }
        fs::write(corpus(name), text)
    }
}

impl Place {
    fn new(program: PathBuf) -> Result<Self, String> {
        let dir = workspace::root().join("target/fault/fuzz");
        let memory = PathBuf::from("/dev/shm");
        let name = format!("fedburn-fuzz-{}", std::process::id());
        let temporary = if memory.is_dir() { memory.join(name) } else { dir.join(name) };
        for folder in [&dir, &temporary] {
            fs::create_dir_all(folder).map_err(|e| format!("cannot make {}: {e}", folder.display()))?;
        }
        Ok(Self { program, dir, temporary })
    }

    fn command(&self, decoder: &str) -> Command {
        let mut command = Command::new(&self.program);
        command.env("FEDBURN_FUZZ", decoder).env("TMPDIR", &self.temporary).current_dir(&self.dir);
        command
    }

    /// What the program knows.
    fn decoders(&self) -> Result<Vec<Decoder>, String> {
        let listed = self.command("").stderr(Stdio::null()).output();
        let listed = listed.map_err(|e| format!("cannot run {}: {e}", self.program.display()))?;
        let decoder = |line: &str| {
            let mut words = line.split(' ');
            let (name, longest, bound) = (words.next()?, words.next()?, words.next()?);
            Some(Decoder { name: name.to_owned(), longest: longest.parse().ok()?, bound: bound.parse().ok()? })
        };
        Ok(String::from_utf8_lossy(&listed.stdout).lines().filter_map(decoder).collect())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // What stays is a few small files.
        let _ = fs::remove_dir_all(&self.temporary);
    }
}

/// In the profile of tests, where an overflow is an error and not a wrapped number. Only the workspace's crates are
/// instrumented, and cargo keeps them apart from those that are not: all others are built once for both.
fn build() -> Cargo {
    let wrapper = workspace::root().join("xtask/fuzz/instrument.sh");
    Cargo::line("build --package fedburn-fuzz --features libfuzzer")
        .env("RUSTC_WORKSPACE_WRAPPER", wrapper.to_string_lossy())
}

/// Runs libFuzzer to its end. All that it says goes to a log, of its progress a line now and then to the terminal.
fn followed(mut command: Command, name: &str, log: &Path) -> Result<Search, String> {
    let failed = |e: io::Error| format!("{}: {e}", log.display());
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().map_err(failed)?;
    let said = child.stderr.take().map_or(Ok((Search::default(), None)), |said| logged(said, name, log));
    if said.is_err() {
        // Nobody reads what it says any more, and it would go on for hours. It may have ended by itself.
        let _ = child.kill();
    }
    let status = child.wait().map_err(failed)?;
    let (search, broken) = said.map_err(failed)?;
    match status {
        status if status.success() => {
            eprintln!("{name}: done, {} inputs", search.inputs);
            Ok(search)
        }
        status => {
            let input = broken.and_then(|path| fs::read(path).ok()).map(|input| hex(&input)).unwrap_or_default();
            let corpus = corpus(name);
            Err(format!(
                "failed ({status}); see {}; the input, to go into {}:\n{input}",
                log.display(),
                corpus.display()
            ))
        }
    }
}

/// What a program says until it ends: figures, and where the input is that broke it.
fn logged(said: impl Read, name: &str, log: &Path) -> io::Result<(Search, Option<PathBuf>)> {
    let (mut file, mut search, mut broken) = (fs::File::create(log)?, Search::default(), None);
    for line in BufReader::new(said).split(b'\n').map_while(Result::ok) {
        let line = String::from_utf8_lossy(&line);
        writeln!(file, "{line}")?;
        search.read(&line);
        if line.contains("\tpulse ") {
            eprintln!("{name}: {}", line.replace('\t', " "));
        }
        if let Some((_, path)) = line.split_once("Test unit written to ") {
            broken = Some(PathBuf::from(path));
        }
    }
    Ok((search, broken))
}

impl Search {
    /// Takes in a line: `#524288 pulse  cov: 123 …`, `stat::number_of_executed_units: 1000000`, `held: 4096`.
    fn read(&mut self, line: &str) {
        let after = |word: &str| line.split_once(word)?.1.split_whitespace().next()?.parse::<u64>().ok();
        let figures = [
            ("number_of_executed_units: ", &mut self.inputs),
            ("new_units_added: ", &mut self.new),
            ("cov: ", &mut self.edges),
            ("held: ", &mut self.held),
        ];
        for (word, figure) in figures {
            *figure = after(word).unwrap_or(*figure);
        }
    }
}

/// The file of a decoder's committed inputs: one a line, in hexadecimal.
fn corpus(decoder: &str) -> PathBuf {
    workspace::root().join(format!("xtask/fuzz/corpus/{decoder}.hex"))
}

/// The committed inputs.
fn committed(decoder: &str) -> Result<Vec<Vec<u8>>, String> {
    let path = corpus(decoder);
    let inputs: Option<Vec<_>> = workspace::read(&path)?.lines().map(unhex).collect();
    inputs.ok_or_else(|| format!("{}: expected bytes in hexadecimal, an input a line", path.display()))
}

fn unhex(line: &str) -> Option<Vec<u8>> {
    let (pairs, rest) = line.as_bytes().as_chunks::<2>();
    let byte = |pair: &[u8; 2]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    if rest.is_empty() { pairs.iter().map(byte).collect() } else { None }
}

fn hex(input: &[u8]) -> String {
    input.iter().map(|byte| format!("{byte:02x}")).chain(["\n".to_owned()]).collect()
}

/// Writes inputs as files of a folder.
fn write_all(dir: &Path, inputs: &[Vec<u8>]) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    inputs.iter().enumerate().try_for_each(|(number, input)| fs::write(dir.join(format!("committed-{number}")), input))
}

fn pop<T>(from: &Mutex<Vec<T>>) -> Option<T> {
    from.lock().ok()?.pop()
}

fn push<T>(to: &Mutex<Vec<T>>, value: T) {
    if let Ok(mut to) = to.lock() {
        to.push(value);
    }
}

/// Most bytes of an input that is kept.
const LONGEST_KEPT: u64 = 2_048;
/// Most characters of a corpus to which found inputs are added: all of them stay below a mebibyte.
const MOST_KEPT: usize = 12 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_read_as_they_come() {
        let mut search = Search::default();
        for line in [
            "INFO: Seed: 1",
            "held: 96",
            "#2097152\tpulse  cov: 391 ft: 1510 corp: 152/6Kb lim: 4096 exec/s: 699050 rss: 31Mb",
            "held: 4096",
            "stat::number_of_executed_units: 3000000",
            "stat::new_units_added:          612",
        ] {
            search.read(line);
        }
        assert_eq!(search, Search { inputs: 3_000_000, new: 612, edges: 391, held: 4_096 });
    }

    #[test]
    fn half_a_byte_is_no_input() {
        assert_eq!(unhex("00ff"), Some(vec![0, 255]));
        assert_eq!((unhex("00f"), unhex("00zz"), unhex("0é")), (None, None, None));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_program_that_cannot_be_followed_is_ended() {
        let pid = std::env::temp_dir().join(format!("fedburn-xtask-fuzz-pid-{}", std::process::id()));
        let mut command = Command::new("sh");
        // A log that is full.
        command.args(["-c", &format!("echo $$ > {}; echo held: 1 >&2; exec tail -f /dev/null", pid.display())]);
        let failure = followed(command, "frames", Path::new("/dev/full")).unwrap_err();
        assert!(failure.starts_with("/dev/full: "), "{failure}");
        let is_there = format!("kill -0 {}", fs::read_to_string(&pid).unwrap());
        let alive = Command::new("sh").args(["-c", &is_there]).status().unwrap();
        fs::remove_file(pid).unwrap();
        assert!(!alive.success());
    }

    #[test]
    fn a_failing_program_is_told_with_its_input() {
        let dir = std::env::temp_dir().join(format!("fedburn-xtask-fuzz-{}", std::process::id()));
        let (log, input) = (dir.join("log"), dir.join("committed-0"));
        write_all(&dir, &[vec![0, 255]]).unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", &format!("echo 'Test unit written to {}' >&2; exit 77", input.display())]);
        let failure = followed(command, "frames", &log).unwrap_err();
        fs::remove_dir_all(&dir).unwrap();
        assert!(failure.contains("77") && failure.contains("\n00ff\n") && failure.contains("frames.hex"), "{failure}");
    }
}
