//! Settings of FedFTG: what the paper's ablation and the published code's form change.

use burn::tensor::{Tensor, backend::Backend};
use fedburn_core::RoundIndex;
use serde::{Deserialize, Serialize};

use super::KIND;
use super::losses;
use crate::teachers::Taught;
use crate::{StrategyConfig, StrategyConfigError};

/// Whose losses: the paper's or the published code's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FedFtgForm {
    /// `KL(D || D_k)` for both networks, the ensemble's scores for `L_cls`, one step of the generator for all clients.
    #[default]
    Paper,
    /// Absolute differences of scores and a step for each client in turn; cross-entropy with the ensemble's
    /// probabilities, over the number of classes, for the student.
    Code,
}

/// Which classes the generator is asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LabelSampling {
    /// As often as the clients of the round have them.
    #[default]
    Customised,
    /// Those that any client of the round has, equally often.
    Uniform,
}

/// How much the word of each client that told of its examples weighs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ensemble {
    /// By its share of the class's examples, `a_k^y`.
    #[default]
    ClassLevel,
    /// All alike, `1 / m`.
    Uniform,
}

/// Settings of [`FedFtg`](crate::FedFtg). The defaults are the published code's, the form apart.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FedFtgConfig {
    /// The strategy whose aggregate is fine-tuned.
    pub base: Box<StrategyConfig>,
    /// Whose losses.
    pub form: FedFtgForm,
    /// Iterations in each round, `I`; 0 leaves the aggregate alone.
    pub iterations: usize,
    /// Steps of the generator in each iteration, `I_g`.
    pub generator_steps: usize,
    /// Steps of the student in each iteration, `I_d`.
    pub student_steps: usize,
    /// Examples of a batch, `Q`, 2 to 512: `L_dis` compares all pairs.
    pub batch_size: usize,
    /// Learning rate of the student's SGD, positive.
    pub student_lr: f64,
    /// Weight decay of the student, from 0.
    pub weight_decay: f64,
    /// Learning rate of the generator's Adam, positive.
    pub generator_lr: f64,
    /// Factor of both rates from round to round, above 0 and at most 1.
    pub lr_decay: f64,
    /// Weight of `L_cls`, from 0.
    pub lambda_cls: f64,
    /// Weight of `L_dis`, from 0.
    pub lambda_dis: f64,
    /// Whether the generator looks for inputs on which student and teachers disagree; otherwise `L_md` is not its aim.
    pub hard_mining: bool,
    /// Which classes the generator is asked for.
    pub label_sampling: LabelSampling,
    /// How much the word of each client that told of its examples weighs.
    pub ensemble: Ensemble,
    /// Whether Adam's moments outlive the round; otherwise it begins anew, as in the published code.
    pub keep_moments: bool,
    /// Networks of teachers in memory at a time, at least 1.
    pub teachers_resident: usize,
    /// Length of the generator's noise.
    pub noise: usize,
    /// Channels of the generator's last hidden layer.
    pub width: usize,
    /// Shows a picture of each class after the first round and after every so many; 0 shows none.
    pub pictures_every: u64,
}

impl Default for FedFtgConfig {
    fn default() -> Self {
        Self {
            base: Box::default(),
            form: FedFtgForm::Paper,
            iterations: 10,
            generator_steps: 1,
            student_steps: 5,
            batch_size: 50,
            student_lr: 0.1,
            weight_decay: 1e-3,
            generator_lr: 0.01,
            lr_decay: 0.998,
            lambda_cls: 1.0,
            lambda_dis: 1.0,
            hard_mining: true,
            label_sampling: LabelSampling::Customised,
            ensemble: Ensemble::ClassLevel,
            keep_moments: false,
            teachers_resident: 1,
            noise: 100,
            width: 64,
            pictures_every: 10,
        }
    }
}

impl FedFtgConfig {
    pub(super) fn check(&self) -> Result<(), StrategyConfigError> {
        StrategyConfigError::generated(KIND, self.iterations, self.batch_size)?;
        StrategyConfigError::resident(KIND, self.teachers_resident)?;
        for (field, value) in [("student_lr", self.student_lr), ("generator_lr", self.generator_lr)] {
            StrategyConfigError::positive(KIND, field, value)?;
        }
        let weights =
            [("weight_decay", self.weight_decay), ("lambda_cls", self.lambda_cls), ("lambda_dis", self.lambda_dis)];
        for (field, value) in weights {
            StrategyConfigError::not_negative(KIND, field, value)?;
        }
        StrategyConfigError::decay(KIND, "lr_decay", self.lr_decay)
    }
}

impl FedFtgConfig {
    /// What the generator makes small.
    pub(super) fn generator_loss<B: Backend>(
        &self,
        s: &Tensor<B, 2>,
        taught: &[Taught<B>],
        y: &Tensor<B, 2>,
        x: &Tensor<B, 4>,
        z: &Tensor<B, 2>,
        diversity_share: f64,
    ) -> Tensor<B, 1> {
        let mining = if self.hard_mining { 1.0 } else { 0.0 };
        let (discrepancy, fidelity, diversity) = match (self.form, taught) {
            (FedFtgForm::Code, [client]) => {
                (losses::code_discrepancy(s, client), losses::code_fidelity(client, y), losses::code_diversity(x, z))
            }
            _ => (losses::discrepancy(s, taught).neg(), losses::fidelity(taught, y), losses::diversity(x, z)),
        };
        discrepancy * mining + fidelity * self.lambda_cls + diversity * (self.lambda_dis * diversity_share)
    }

    /// What the student makes small.
    pub(super) fn student_loss<B: Backend>(&self, s: &Tensor<B, 2>, taught: &[Taught<B>]) -> Tensor<B, 1> {
        match self.form {
            FedFtgForm::Paper => losses::discrepancy(s, taught),
            FedFtgForm::Code => losses::code_distillation(s, taught),
        }
    }

    /// Factor of both learning rates in `round`.
    pub(super) fn decay(&self, round: RoundIndex) -> f64 {
        self.lr_decay.powf(round.0.saturating_sub(1) as f64)
    }
}
