//! Which part of the model each client holds.

use std::collections::BTreeMap;
use std::sync::Arc;

use burn::tensor::backend::Backend;
use fedburn_core::{
    Classifier, ClientId, Ensemble, ModelFamily, ParamSchema, Seed, Size, SliceName, SubModels, is_below, schema_of,
};

use crate::rules::{
    Budgets, Depths, NetCycle, SharesOfWidth, SizesOfGroups, WithoutAbsent, member_name, rows_of_absent, size_name,
};
use crate::{
    Absent, DepthwiseConfig, Heads, HeteroFlConfig, LocalTraining, RuleConfig, StepMemory, TrainingConfigError,
};

/// A part of a model: what server and clients call it, and what it holds.
pub type NamedPart = (SliceName, Arc<ParamSchema>);

/// A part's name and the paths of its layers.
type NamedPaths = (SliceName, Vec<String>);

impl LocalTraining {
    /// Share of the channels of the model's hidden layers that `client` trains.
    pub fn share(&self, client: ClientId) -> f64 {
        match &self.config().rule {
            RuleConfig::HeteroFl(config) => config.share(client, self.clients()),
            _ => 1.0,
        }
    }

    /// What decides on the server which client holds which of `parts`, which are those of [`LocalTraining::parts`], and
    /// how much it counts; `None` where each holds the whole model and counts once. What is drawn is drawn from `seed`.
    pub fn sub_models(&self, parts: &[NamedPart], seed: Seed) -> Option<Arc<dyn SubModels>> {
        let clients = self.clients();
        match self.config().rule.clone() {
            RuleConfig::HeteroFl(config) => Some(Arc::new(SharesOfWidth { config, clients })),
            RuleConfig::SplitMix(config) => Some(Arc::new(NetCycle { config, clients, nets: parts.len(), seed })),
            RuleConfig::DepthFl(config) => Some(Arc::new(Depths { config, clients, classifiers: parts.len() })),
            RuleConfig::InclusiveFl(config) => Some(Arc::new(SizesOfGroups { config, clients, sizes: parts.len() })),
            RuleConfig::Depthwise(config) if config.trained_only || config.resource_weight => {
                let parts = parts.iter().map(|(name, _)| name.clone()).collect();
                Some(Arc::new(Budgets { config, clients, parts }))
            }
            _ => None,
        }
    }

    /// Whether the server has to know which classes clients have: it tells them apart in the mean.
    pub fn goes_by_classes(&self) -> bool {
        match &self.config().rule {
            RuleConfig::HeteroFl(HeteroFlConfig { masked, absent, .. }) => *masked && *absent == Absent::LeftOut,
            _ => false,
        }
    }

    /// `sub_models` where [`LocalTraining::goes_by_classes`]: what clients hold of a model of the schema `whole`, its parts
    /// being `parts`, without the rows of classes that are not `present` at them.
    pub fn without_absent(
        &self,
        sub_models: Arc<dyn SubModels>,
        parts: &[NamedPart],
        whole: &ParamSchema,
        present: &BTreeMap<ClientId, Vec<bool>>,
    ) -> Arc<dyn SubModels> {
        let rows = present.iter().map(|(client, present)| {
            let name = HeteroFlConfig::part(self.share(*client));
            let part = parts.iter().find(|(known, _)| Some(known) == name.as_ref());
            (*client, rows_of_absent(part.map_or(whole, |(_, part)| part), present))
        });
        Arc::new(WithoutAbsent { base: sub_models, rows: rows.collect() })
    }

    /// The parts of models of `family` for inputs `[channels, height, width]` that clients may be asked to train; none
    /// where all train the whole.
    ///
    /// # Errors
    /// [`TrainingConfigError::Invalid`] for a part that models of `family` do not have.
    pub fn parts<B: Backend, F: ModelFamily<B>>(
        &self,
        family: &F,
        input: [usize; 3],
        device: &B::Device,
    ) -> Result<Vec<NamedPart>, TrainingConfigError> {
        match &self.config().rule {
            RuleConfig::Depthwise(config) => self.parts_by_memory(config, family, input, device),
            RuleConfig::HeteroFl(config) => slim_parts(config, family, device),
            RuleConfig::SplitMix(_) => members_of(family, device, "split_mix", false, members),
            RuleConfig::DepthFl(_) => members_of(family, device, "depth_fl", true, members),
            RuleConfig::InclusiveFl(_) => members_of(family, device, "inclusive_fl", true, sizes),
            _ => Ok(Vec::new()),
        }
    }
}

impl LocalTraining {
    /// What each group of clients trains and lets inputs through, where that is not all.
    fn parts_by_memory<B: Backend, F: ModelFamily<B>>(
        &self,
        config: &DepthwiseConfig,
        family: &F,
        input: [usize; 3],
        device: &B::Device,
    ) -> Result<Vec<NamedPart>, TrainingConfigError> {
        let model = family.init(Seed::new(0), device);
        let (schema, memory) = (schema_of::<B, _>(&model)?, StepMemory::of::<B, _>(&model, input, self)?);
        let stages = model.staged().map(|staged| staged.stages(self.inputs(input)));
        let Some((memory, stages)) = memory.zip(stages) else { return Ok(Vec::new()) };
        if config.heads == Heads::Own && stages.exits.is_empty() {
            let expected = "shared where blocks of the model have no classifiers, or [model] kind = \"with_exits\"";
            return Err(TrainingConfigError::Invalid {
                field: "rule.depthwise.heads",
                value: "own".to_owned(),
                expected,
            });
        }
        let mut parts = Vec::new();
        for group in 0..config.memory.groups() {
            let Some(paths) = config.held(group, &stages, &memory) else { continue };
            let held: Vec<_> = schema.entries().iter().filter(|entry| is_below(&entry.path, &paths)).cloned().collect();
            if held.len() < schema.entries().len() {
                parts.push((DepthwiseConfig::part(group), Arc::new(ParamSchema::new(held)?)));
            }
        }
        Ok(parts)
    }
}

/// The nets of each share.
fn slim_parts<B: Backend, F: ModelFamily<B>>(
    config: &HeteroFlConfig,
    family: &F,
    device: &B::Device,
) -> Result<Vec<NamedPart>, TrainingConfigError> {
    let mut parts: Vec<NamedPart> = Vec::new();
    for (share, name) in config.shares.iter().filter_map(|&share| Some((share, HeteroFlConfig::part(share)?))) {
        if parts.iter().any(|(known, _)| *known == name) {
            continue;
        }
        let slim = family.slim(share).ok_or_else(|| TrainingConfigError::Invalid {
            field: "rule.heterofl.shares",
            value: share.to_string(),
            expected: "a share of the channels that the model can have: it is two_nn, fedavg_cnn or preresnet20, and \
                       groups of group norm divide what is left",
        })?;
        parts.push((name, Arc::new(schema_of::<B, _>(&slim.init(Seed::new(0), device))?)));
    }
    Ok(parts)
}

/// What `named` makes of an ensemble, which models of `family` have to be.
fn members_of<B: Backend, F: ModelFamily<B>>(
    family: &F,
    device: &B::Device,
    rule: &'static str,
    nested: bool,
    named: fn(&dyn Ensemble<B>) -> Vec<NamedPaths>,
) -> Result<Vec<NamedPart>, TrainingConfigError> {
    let model = family.init(Seed::new(0), device);
    let schema = schema_of::<B, _>(&model)?;
    let ensemble = model.ensemble().filter(|ensemble| ensemble.nested() == nested);
    let ensemble = ensemble.ok_or_else(|| TrainingConfigError::Invalid {
        field: "rule",
        value: rule.to_owned(),
        expected: "another rule, or [model] kind = \"split_mix\" with the rule `split_mix`, \"depth_fl\" with `depth_fl` \
                   and `inclusive_fl`",
    })?;
    let part = |(name, paths): NamedPaths| {
        let own = schema.entries().iter().filter(|entry| is_below(&entry.path, &paths));
        Ok((name, Arc::new(ParamSchema::new(own.cloned().collect())?)))
    };
    named(ensemble).into_iter().map(part).collect()
}

fn members<B: Backend>(ensemble: &dyn Ensemble<B>) -> Vec<NamedPaths> {
    ensemble.members().into_iter().enumerate().map(|(index, paths)| (member_name(index), paths)).collect()
}

fn sizes<B: Backend>(ensemble: &dyn Ensemble<B>) -> Vec<NamedPaths> {
    Size::all(ensemble).into_iter().enumerate().map(|(index, size)| (size_name(index), size.paths)).collect()
}
