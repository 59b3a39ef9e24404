//! Clients that train on turned labels.

use std::collections::BTreeSet;
use std::sync::Arc;

use fedburn_core::{ClientId, ClientInfo, TrainError};

use crate::{ClientDataSource, LocalData};

/// A source whose attackers train on the label `C - 1 - y` where their example has label `y` of `C` classes. They are
/// still measured on true labels.
///
/// M. Fang, X. Cao, J. Jia, N. Gong: "Local Model Poisoning Attacks to Byzantine-Robust Federated Learning", USENIX
/// Security 2020, arXiv 1911.11815, section 5.1.
pub struct LabelFlipping {
    source: Arc<dyn ClientDataSource>,
    attackers: BTreeSet<ClientId>,
}

impl LabelFlipping {
    /// Turns the labels of `attackers` among the clients of `source`.
    pub fn new(source: Arc<dyn ClientDataSource>, attackers: BTreeSet<ClientId>) -> Self {
        Self { source, attackers }
    }
}

impl ClientDataSource for LabelFlipping {
    fn clients(&self) -> Arc<[ClientInfo]> {
        self.source.clients()
    }

    fn local_data(&self, id: ClientId) -> Result<LocalData, TrainError> {
        let data = self.source.local_data(id)?;
        if !self.attackers.contains(&id) {
            return Ok(data);
        }
        let LocalData { train, held_out } = data;
        Ok(LocalData { train: train.with_flipped_labels(), held_out })
    }
}

#[cfg(test)]
mod tests {
    use fedburn_core::ClassId;
    use fedburn_data::{ClientData, Examples, Inputs};

    use super::*;
    use crate::ClientList;

    #[test]
    fn attackers_alone_train_on_turned_labels() {
        let labels = vec![ClassId(0), ClassId(0), ClassId(1)];
        let examples = Arc::new(Examples::new(Inputs::F32(vec![0.0; 3]), [1, 1, 1], labels, 4).unwrap());
        let whole = || ClientData::all(examples.clone());
        let list = ClientList::new((0..3).map(|_| LocalData { train: whole(), held_out: Some(whole()) }));
        let source = LabelFlipping::new(Arc::new(list), BTreeSet::from([ClientId(1)]));
        let counts = |id| {
            let data = source.local_data(ClientId(id)).unwrap();
            (data.train.class_counts(), data.held_out.unwrap().class_counts())
        };
        let honest = vec![2, 1, 0, 0];
        assert_eq!(counts(0), (honest.clone(), honest.clone()));
        assert_eq!(counts(1), (vec![0, 0, 1, 2], honest));
        assert_eq!(source.clients().len(), 3);
        assert!(source.local_data(ClientId(3)).is_err());
    }
}
