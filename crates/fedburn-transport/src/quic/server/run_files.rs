//! What a server keeps of a run, to go on with it.

use std::path::{Path, PathBuf};

use fedburn_core::RoundIndex;

/// What a server keeps of a run, to go on with it.
#[derive(Clone, Debug)]
pub struct RunFiles {
    /// The file in which it keeps which rounds each client took part in.
    pub participation: PathBuf,
    /// The file of answers. Those that a server kept are used whatever the next one keeps.
    pub answers: PathBuf,
    /// Whether each answer is put there, on disk, before it is acknowledged. Clients then need not keep it; otherwise
    /// they do until its round is checkpointed, and send it again to a server that was killed.
    pub keep_answers: bool,
    /// The round after which the run goes on, 0 for one that begins.
    pub resumed: RoundIndex,
}

impl RunFiles {
    /// The files of a run in its folder `dir`, without answers.
    pub fn new(dir: &Path, resumed: RoundIndex) -> Self {
        let (participation, answers) = (dir.join("participation"), dir.join("answers"));
        Self { participation, answers, keep_answers: false, resumed }
    }

    /// The same with every answer on disk before it is acknowledged.
    ///
    /// For runs that are checkpointed after each round. Where several are run again, one of them may have left an answer
    /// out before; it would count now, and its client has dropped the state that belongs to it.
    #[must_use]
    pub fn keeping_answers(self) -> Self {
        Self { keep_answers: true, ..self }
    }
}
