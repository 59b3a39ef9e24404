//! Suites that break things on purpose: longer forms of what the ordinary tests do in short.

mod crowd;
mod fuzz;
mod kill;
mod loris;
mod loss;
mod rogues;
mod simnet;

use std::process::ExitCode;

use clap::{Args, Subcommand};

/// The suite to run.
#[derive(Args)]
pub struct Fault {
    #[command(subcommand)]
    suite: Suite,
}

#[derive(Subcommand)]
enum Suite {
    /// Kill three in ten of a crowd's clients in the middle of their uploads.
    Crowd(crowd::Crowd),
    /// Search inputs that break a decoder, guided by what the code does with them; needs a compiler of C++.
    Fuzz(fuzz::Fuzz),
    /// Kill a federation's server again and again, in each way of keeping an open round.
    Kill(kill::Kill),
    /// Hold a server up with slow nodes.
    Loris(loris::Loris),
    /// Lose packets on the way; needs root, iproute2 and nftables.
    Loss(loss::Loss),
    /// Disturb honest rounds with nodes that do what is forbidden.
    Rogues(rogues::Rogues),
    /// Live through simulated federations in which networks and processes fail.
    Simnet(simnet::Simnet),
}

impl Fault {
    /// Runs the suite; its output is ours.
    ///
    /// # Errors
    /// Where the suite failed, with the line that repeats it.
    pub fn run(self) -> Result<ExitCode, String> {
        let call = match self.suite {
            Suite::Crowd(crowd) => crowd.call(),
            Suite::Fuzz(fuzz) => return fuzz.run().map(|()| ExitCode::SUCCESS),
            Suite::Kill(kill) => return kill.run().map(|()| ExitCode::SUCCESS),
            Suite::Loris(loris) => loris.call(),
            Suite::Loss(loss) => loss.call(),
            Suite::Rogues(rogues) => rogues.call(),
            Suite::Simnet(simnet) => simnet.call(),
        };
        match call.status()? {
            true => Ok(ExitCode::SUCCESS),
            false => Err(format!("the suite failed; repeat it with:\n\n    {}\n", call.shown())),
        }
    }
}
