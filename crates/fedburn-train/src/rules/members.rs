//! What rules for ensembles share: which members a client holds.

use burn::tensor::backend::Backend;
use fedburn_core::{SliceName, TrainError};

use super::{LocalRun, TrainModel};

/// The name of a member as a part of the model.
pub(crate) fn member_name(member: usize) -> SliceName {
    format!("member {member}").into()
}

/// The layers of each of the model's members, and which members the client holds, ascending; where the model is no
/// ensemble whose members are `nested` or not, as said, [`TrainError::Unusable`].
pub(super) fn held<B: Backend, M: TrainModel<B>>(
    model: &M,
    run: &LocalRun<'_, B>,
    rule: &str,
    kind: &str,
    nested: bool,
) -> Result<(Vec<Vec<String>>, Vec<usize>), TrainError> {
    let Some(ensemble) = model.ensemble().filter(|ensemble| ensemble.nested() == nested) else {
        let reason = format!("the rule `{rule}` trains the members of a model of kind `{kind}`, and this is another");
        return Err(TrainError::Unusable { client: run.client, reason });
    };
    let members = ensemble.members();
    let slice = &run.task.slice;
    let held = (0..members.len()).filter(|&member| slice.is_empty() || slice.contains(&member_name(member))).collect();
    Ok((members, held))
}
