//! What clients train at a time, and what memory that takes: what `fedburn plan` shows.

use std::fmt::{self, Write as _};

use fedburn::core::ClientId;
use fedburn::ops::Kernels;
use fedburn::train::{Bytes, ClientDataSource, Cut, DepthwiseConfig, RuleConfig, StepMemory, TooLittleMemory};
use serde::Serialize;

use crate::assemble::Run;
use crate::backend::BackendJob;
use crate::config::ConfigError;

/// What `fedburn plan` shows of a run.
#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
pub enum Plan {
    /// Of clients that cut the model to fit their memory.
    Parts(MemoryPlan),
    /// Of clients that train all that they hold at once.
    Steps(StepPlan),
}

/// What a step takes, by groups of clients that follow on each other.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StepPlan {
    /// From the first client to the last.
    pub groups: Vec<StepGroup>,
}

/// Clients that train nets of the same width.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StepGroup {
    /// How many clients it has.
    pub clients: usize,
    /// Share of the model's channels that they train.
    pub share: f64,
    /// Parameters of that net.
    pub parameters: u64,
    /// What a step takes.
    pub step: Bytes,
}

/// The cuts of a run's model, one for each group of clients.
#[derive(Clone, Debug, Serialize)]
pub struct MemoryPlan {
    /// Blocks of the model.
    pub blocks: usize,
    /// Its parameters.
    pub parameters: u64,
    /// What a step takes that trains all of it.
    pub whole: Bytes,
    /// The smallest budget in which every block can be trained.
    pub every_block: Bytes,
    /// The smallest in which some block can.
    pub smallest: Bytes,
    /// From the first client to the last.
    pub groups: Vec<GroupPlan>,
}

/// The cut of a group of clients.
#[derive(Clone, Debug, Serialize)]
pub struct GroupPlan {
    /// How many clients it has.
    pub clients: usize,
    /// Memory of each.
    pub budget: Bytes,
    /// Whether they train a second model beside it.
    pub two_models: bool,
    /// How they cut the model; `None` where they have too little memory, and fail.
    pub cut: Option<Cut>,
}

/// Makes the plan of a run on a backend.
pub struct Planning<'a>(pub &'a Run);

impl BackendJob for Planning<'_> {
    type Output = Result<Plan, ConfigError>;

    fn run<B: Kernels>(self, device: B::Device) -> Self::Output {
        let (run, experiment) = (self.0, self.0.experiment());
        let refuse = |table, reason: &str| experiment.refused(table, reason.to_owned());
        let clients: Vec<ClientId> = run.clients().clients().iter().map(|client| client.id).collect();
        experiment.check_memory::<B>(&device, clients.len())?;
        let step_memory = |share| {
            let memory = experiment.step_memory::<B>(share, &device)?;
            memory.ok_or_else(|| refuse("model", "it is not made of blocks, expected for example preresnet20 or vit"))
        };
        match &experiment.config().client.rule {
            RuleConfig::Depthwise(config) => Ok(Plan::Parts(MemoryPlan::new(&step_memory(1.0)?, config, &clients))),
            RuleConfig::Sgd | RuleConfig::HeteroFl(_) => {
                let training = experiment.training().clone().among(clients.len());
                let mut groups: Vec<StepGroup> = Vec::new();
                for client in clients {
                    let share = training.share(client);
                    match groups.last_mut() {
                        Some(group) if group.share == share => group.clients += 1,
                        _ => {
                            let memory = step_memory(share)?;
                            let (parameters, step) = (memory.parameters(), memory.whole());
                            groups.push(StepGroup { clients: 1, share, parameters, step });
                        }
                    }
                }
                Ok(Plan::Steps(StepPlan { groups }))
            }
            _ => {
                let expected = "`rule` has no account of its memory, expected sgd, { heterofl = … } or { depthwise = \
                                { memory = \"64 MiB\" } }; what others hold is measured in a run";
                Err(refuse("client", expected))
            }
        }
    }
}

impl MemoryPlan {
    /// The plan for these clients.
    pub fn new(memory: &StepMemory, config: &DepthwiseConfig, clients: &[ClientId]) -> Self {
        let whole = memory.whole();
        let group = |group: usize| {
            let budget = config.memory.budget(group, whole);
            GroupPlan {
                clients: clients.iter().filter(|id| config.memory.group(**id, clients.len()) == group).count(),
                budget,
                two_models: config.mutual.is_some() && budget.0 / 2 >= whole.0,
                cut: memory.cut(budget).ok(),
            }
        };
        Self {
            blocks: memory.num_blocks(),
            parameters: memory.parameters(),
            whole,
            every_block: memory.needed_from(0),
            smallest: memory.cut(Bytes(0)).map_or_else(|TooLittleMemory { smallest, .. }| smallest, |_| Bytes(0)),
            groups: (0..config.memory.groups()).map(group).collect(),
        }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Parts(plan) => plan.fmt(f),
            Self::Steps(plan) => plan.fmt(f),
        }
    }
}

impl fmt::Display for StepPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut first = 0;
        for (index, StepGroup { clients, share, parameters, step }) in self.groups.iter().enumerate() {
            let what = if *share < 1.0 { format!("{share} of the channels") } else { "the whole model".to_owned() };
            let (who, step) = (who(first, *clients), step.rounded());
            writeln!(f, "group {index}: {who}, {what}: {parameters} parameters, a step takes {step}")?;
            first += clients;
        }
        Ok(())
    }
}

/// So many clients from `first` on, in words.
fn who(first: usize, clients: usize) -> String {
    match clients {
        0 => "no client".to_owned(),
        1 => format!("client {first}"),
        n => format!("clients {first} to {}", first + n - 1),
    }
}

/// Signs of a bar as long as a whole budget.
const BAR: usize = 32;

impl fmt::Display for MemoryPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [whole, every, smallest] = [self.whole, self.every_block, self.smallest].map(Bytes::rounded);
        writeln!(
            f,
            "  {} blocks, {} parameters; a step of the whole model takes {whole}",
            self.blocks, self.parameters
        )?;
        writeln!(f, "  every block can be trained in {every}, some block in {smallest}")?;
        let mut first = 0;
        for (index, group) in self.groups.iter().enumerate() {
            let who = who(first, group.clients);
            first += group.clients;
            let share = 100.0 * group.budget.0 as f64 / self.whole.0.max(1) as f64;
            writeln!(f, "group {index}: {who}, {} ({share:.1} % of the whole)", group.budget.rounded())?;
            match &group.cut {
                None => writeln!(f, "  insufficient memory")?,
                Some(_) if group.two_models => writeln!(f, "  the whole model beside one of its own")?,
                Some(cut) => write!(f, "{}", bars(cut, group.budget, self.blocks))?,
            }
        }
        Ok(())
    }
}

/// A line a part: what it trains, how much of the budget that takes.
fn bars(cut: &Cut, budget: Bytes, blocks: usize) -> String {
    let mut text = String::new();
    let passed: Vec<String> =
        (0..blocks).filter(|block| !cut.route.contains(block)).map(|block| (block + 1).to_string()).collect();
    if !passed.is_empty() {
        let _ = writeln!(text, "  inputs go past {}", passed.join(" "));
    }
    for part in &cut.parts {
        let trained: Vec<String> = part.blocks.clone().map(|block| (block + 1).to_string()).collect();
        let stem = if part.stem { "stem " } else { "" };
        let share = part.bytes.0 as f64 / budget.0.max(1) as f64;
        let full = ((share * BAR as f64).round() as usize).min(BAR);
        let bar = format!("{}{}", "#".repeat(full), ".".repeat(BAR - full));
        let (percent, bytes) = (100.0 * share, part.bytes.rounded());
        let _ = writeln!(text, "  {bar} {percent:5.1} %  {bytes:>11}  {stem}{}", trained.join(" "));
    }
    text
}

#[cfg(test)]
mod tests {
    use fedburn::core::{ParamEntry, ParamKind, ParamSchema, Stage, Stages};
    use fedburn::train::{LocalTrainingConfig, MemoryConfig};

    use super::*;

    /// Three blocks of a parameter and 10, 30, 20 times 4 KiB an example, in batches of one.
    fn memory() -> StepMemory {
        let stage = |path: &str, kept: usize| Stage {
            paths: vec![path.to_owned()],
            kept: vec![vec![1024 * kept]],
            in_hand: vec![vec![3 * 1024 * kept]],
            keeps_shape: true,
        };
        let names = ["stem", "a", "b", "c", "head"];
        let entries = names.map(|name| ParamEntry::new(name, vec![1], ParamKind::Weight));
        let blocks = vec![stage("a", 10), stage("b", 30), stage("c", 20)];
        let stages = Stages { stem: stage("stem", 0), blocks, head: stage("head", 0), exits: Vec::new(), workspace: 0 };
        let training = LocalTrainingConfig::sgd(1, 1, 0.1).build().unwrap();
        StepMemory::new(&stages, &ParamSchema::new(entries.into()).unwrap(), [1, 1, 1, 1], &training, 4)
    }

    #[test]
    fn groups_are_drawn_with_their_parts() {
        let groups = vec![Bytes(10), Bytes(340 << 10), Bytes(512 << 10), Bytes(2 << 20)];
        let config = DepthwiseConfig { mutual: Some(1.0), ..DepthwiseConfig::new(MemoryConfig::Groups(groups)) };
        let clients: Vec<ClientId> = (0..5).map(ClientId).collect();
        let plan = MemoryPlan::new(&memory(), &config, &clients).to_string();
        let expected = "  3 blocks, 5 parameters; a step of the whole model takes 560.04 KiB
  every block can be trained in 508.03 KiB, some block in 352.03 KiB
group 0: clients 0 to 1, 10 B (0.0 % of the whole)
  insufficient memory
group 1: client 2, 340.00 KiB (60.7 % of the whole)
  insufficient memory
group 2: client 3, 512.00 KiB (91.4 % of the whole)
  ############....................  37.5 %   192.03 KiB  stem 1
  ################################  99.2 %   508.03 KiB  2
  ########################........  75.8 %   388.02 KiB  3
group 3: client 4, 2.00 MiB (365.7 % of the whole)
  the whole model beside one of its own
";
        assert_eq!(plan, expected);
    }
}
