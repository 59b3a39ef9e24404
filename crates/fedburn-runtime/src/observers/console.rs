//! Progress for people, or events for programs.

use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::ops::ControlFlow;
use std::path::Path;
use std::time::{Duration, Instant};

use fedburn_core::{Event, Metrics, Observer, RoundIndex, StopReason};
use indicatif::{HumanDuration, ProgressBar, ProgressStyle};

use super::jsonl::{is_of_one_client, write_line};
use super::{ObserverError, Outcome};

/// How a [`Console`] shows a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ConsoleMode {
    /// A progress bar where standard error is a terminal, plain lines there otherwise.
    #[default]
    Auto,
    /// Plain lines on standard error: about twenty over a run, and one at least every half minute.
    Plain,
    /// Every event as a line of JSON on standard output, for programs.
    Json,
}

/// Shows round, accuracy, loss, rounds per second and the time left while a run goes on.
///
/// # Examples
///
/// ```
/// use fedburn_core::{Event, Observer, RoundIndex};
/// use fedburn_runtime::{Console, ConsoleMode};
///
/// let mut console = Console::new(ConsoleMode::Plain);
/// let _ = console.on_event(&Event::RunEnded { round: RoundIndex(3), stopped: None });
/// console.finish()?;
/// # Ok::<(), fedburn_runtime::ObserverError>(())
/// ```
pub struct Console {
    view: View,
    progress: Progress,
    outcome: Outcome,
}

enum View {
    Bar(ProgressBar),
    Plain(Box<dyn Write + Send>),
    Json(Box<dyn Write + Send>),
}

/// How far the run is.
#[derive(Debug)]
struct Progress {
    /// The round it went on after, and when.
    began: (RoundIndex, Instant),
    round: RoundIndex,
    rounds: u64,
    accuracy: Option<f64>,
    loss: Option<f64>,
    /// The round of the last plain line, and when it was written.
    shown: (RoundIndex, Instant),
}

impl Console {
    /// A console on the process's own standard streams.
    pub fn new(mode: ConsoleMode) -> Self {
        match mode {
            ConsoleMode::Auto if io::stderr().is_terminal() => Self::of(View::Bar(bar())),
            ConsoleMode::Auto | ConsoleMode::Plain => Self::of(View::Plain(Box::new(io::stderr()))),
            ConsoleMode::Json => Self::of(View::Json(Box::new(io::stdout()))),
        }
    }

    /// Plain lines on any writer.
    pub fn plain(out: impl Write + Send + 'static) -> Self {
        Self::of(View::Plain(Box::new(out)))
    }

    /// JSON lines on any writer.
    pub fn json(out: impl Write + Send + 'static) -> Self {
        Self::of(View::Json(Box::new(out)))
    }

    /// Takes the bar off the terminal, and gives back the first error of writing, if there was one.
    ///
    /// # Errors
    /// [`ObserverError::Io`].
    pub fn finish(mut self) -> Result<(), ObserverError> {
        // The outcome keeps the error; there is nobody left to stop.
        let _ = self.outcome.after(|| match &mut self.view {
            View::Bar(bar) => {
                bar.finish_and_clear();
                Ok(())
            }
            View::Plain(out) | View::Json(out) => out.flush(),
        });
        self.outcome.finish()
    }

    fn of(view: View) -> Self {
        let now = Instant::now();
        let start = RoundIndex(0);
        let progress =
            Progress { began: (start, now), round: start, rounds: 0, accuracy: None, loss: None, shown: (start, now) };
        Self { view, progress, outcome: Outcome::new(Path::new("terminal")) }
    }
}

impl Observer for Console {
    fn on_event(&mut self, event: &Event) -> ControlFlow<StopReason> {
        let Self { view, progress, outcome } = self;
        progress.follow(event);
        let flow = outcome.after(|| match view {
            View::Json(out) => {
                write_line(out, event)?;
                if is_of_one_client(event) { Ok(()) } else { out.flush() }
            }
            View::Bar(bar) => {
                show_bar(bar, progress, event);
                Ok(())
            }
            View::Plain(out) => show_plain(out, progress, event),
        });
        // A reader that went away (`| head`) ends a run that writes for it, not one that only shows its progress.
        if matches!(view, View::Json(_)) { flow } else { ControlFlow::Continue(()) }
    }
}

impl fmt::Debug for Console {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Console").field("progress", &self.progress).finish_non_exhaustive()
    }
}

impl Progress {
    fn follow(&mut self, event: &Event) {
        match event {
            Event::RunStarted { round, rounds, .. } => {
                let now = Instant::now();
                (self.began, self.round, self.rounds, self.shown) = ((*round, now), *round, *rounds, (*round, now));
            }
            Event::RoundCommitted { round, .. } | Event::RoundAbandoned { round, .. } => self.round = *round,
            Event::Evaluated { metrics, .. } => {
                self.accuracy = metrics.get(Metrics::ACCURACY).or(self.accuracy);
                self.loss = metrics.get(Metrics::LOSS).or(self.loss);
            }
            _ => {}
        }
    }

    /// Whether a plain line is due at the beginning of a new round, when the last one's evaluation is known.
    fn is_due(&self) -> bool {
        let (shown, when) = self.shown;
        let since = self.round.0 - shown.0.min(self.round.0);
        since > 0 && (since >= self.rounds.div_ceil(LINES) || when.elapsed() >= LONGEST_SILENCE)
    }

    fn metrics(&self) -> String {
        let part = |name: &str, value: Option<f64>| value.map_or(String::new(), |value| format!("  {name} {value:.4}"));
        part("accuracy", self.accuracy) + &part("loss", self.loss)
    }

    fn speed(&self) -> String {
        let (began, when) = self.began;
        let (done, seconds) = ((self.round.0 - began.0.min(self.round.0)) as f64, when.elapsed().as_secs_f64());
        if done == 0.0 || seconds == 0.0 {
            return String::new();
        }
        let left = self.rounds.saturating_sub(self.round.0) as f64 * seconds / done;
        let left = Duration::try_from_secs_f64(left).unwrap_or(Duration::MAX);
        format!("  {:.2} rounds/s  {} left", done / seconds, HumanDuration(left))
    }
}

fn show_bar(bar: &ProgressBar, progress: &Progress, event: &Event) {
    bar.set_length(progress.rounds);
    bar.set_position(progress.round.0);
    bar.set_message(progress.metrics() + &progress.speed());
    match event {
        Event::RunStarted { round, .. } if round.0 > 0 => bar.println(format!("going on after round {round}")),
        Event::RoundAbandoned { round, reason, .. } => bar.println(format!("round {round} abandoned: {reason}")),
        Event::RunEnded { stopped, .. } => {
            bar.println(ended(progress, stopped.as_ref()));
            bar.finish_and_clear();
        }
        _ => {}
    }
}

fn show_plain(out: &mut dyn Write, progress: &mut Progress, event: &Event) -> io::Result<()> {
    match event {
        Event::RunStarted { round, rounds, clients, parameters } => {
            let origin = if round.0 > 0 { format!(", going on after round {round}") } else { String::new() };
            writeln!(out, "{rounds} rounds, {clients} clients, {parameters} parameters{origin}")?;
        }
        Event::RoundAbandoned { round, reason, .. } => writeln!(out, "round {round} abandoned: {reason}")?,
        Event::RoundStarted { .. } if progress.is_due() => {
            let (round, rounds) = (progress.round, progress.rounds);
            writeln!(out, "round {round}/{rounds}{}{}", progress.metrics(), progress.speed())?;
            progress.shown = (progress.round, Instant::now());
        }
        Event::RunEnded { stopped, .. } => writeln!(out, "{}", ended(progress, stopped.as_ref()))?,
        _ => return Ok(()),
    }
    out.flush()
}

fn ended(progress: &Progress, stopped: Option<&StopReason>) -> String {
    let reason = stopped.map_or(String::new(), |StopReason(reason)| format!("  stopped: {reason}"));
    let took = HumanDuration(progress.began.1.elapsed());
    format!("ended after round {} of {}{}  {took}{reason}", progress.round, progress.rounds, progress.metrics())
}

fn bar() -> ProgressBar {
    let style = ProgressStyle::with_template("{bar:24} round {pos}/{len}{msg}");
    // A style that indicatif would refuse is not worth ending a run for: its default is shown then.
    ProgressBar::new(0).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

/// Plain lines of a run, about.
const LINES: u64 = 20;
const LONGEST_SILENCE: Duration = Duration::from_secs(30);
