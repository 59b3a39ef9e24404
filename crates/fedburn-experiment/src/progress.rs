//! What a person or a program sees while a run goes on.

use std::io::IsTerminal;

use fedburn::runtime::{Console, ConsoleMode};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::Value;

/// How much to show.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Progress {
    /// A progress bar on a terminal, plain lines elsewhere.
    #[default]
    Auto,
    /// Events as JSON lines on standard output, nothing else.
    Json,
    /// Nothing.
    Quiet,
}

impl Progress {
    /// Watches the rounds of one seed.
    pub fn console(self) -> Console {
        match self {
            Self::Auto => Console::new(ConsoleMode::Auto),
            Self::Json => Console::new(ConsoleMode::Json),
            Self::Quiet => Console::plain(std::io::sink()),
        }
    }

    /// A line for people.
    pub fn note(self, text: &str) {
        if self == Self::Auto {
            eprintln!("{text}");
        }
    }

    /// A line for people, nothing where it is empty, or the same as an event for programs.
    pub fn tell(self, text: &str, event: &Value) {
        match self {
            Self::Auto if !text.is_empty() => eprintln!("{text}"),
            Self::Json => println!("{event}"),
            Self::Auto | Self::Quiet => {}
        }
    }

    /// A bar over `length` steps of `what`, on a terminal only; elsewhere a line says that it began.
    pub fn bar(self, what: &str, length: u64) -> ProgressBar {
        if self != Self::Auto {
            return ProgressBar::hidden();
        }
        if !std::io::stderr().is_terminal() {
            eprintln!("{what}: {length} steps");
            return ProgressBar::hidden();
        }
        // The template is a constant that a test parses.
        let style = ProgressStyle::with_template(TEMPLATE).unwrap_or_else(|_| ProgressStyle::default_bar());
        ProgressBar::with_draw_target(Some(length), ProgressDrawTarget::stderr())
            .with_style(style)
            .with_message(what.to_owned())
    }
}

const TEMPLATE: &str = "{msg} {wide_bar} {pos}/{len} {eta}";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_template_parses() {
        assert!(ProgressStyle::with_template(TEMPLATE).is_ok());
    }
}
