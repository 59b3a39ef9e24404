//! A file whose tensors a run begins with.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn::tensor::backend::Backend;
use fedburn::core::{ParamVector, is_below};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// The `[initial_model]` table: a model that was trained before, to go on from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InitialModelConfig {
    /// A safetensors file such as a run's `model.safetensors`, relative to the folder of the experiment's file. Its tensors
    /// go to those of the model by their paths.
    #[serde(default, skip_serializing_if = "is_empty")]
    pub file: PathBuf,
    /// Layers that begin with random values as in a run without a file, each with all that is below it: a head for other
    /// classes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub new: Vec<String>,
    /// What the file's SHA-256 has to be, in hex digits; what it is, where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
}

/// The file as it was read.
#[derive(Clone, Debug)]
pub struct InitialModel {
    path: PathBuf,
    bytes: Arc<[u8]>,
    new: Vec<String>,
}

impl InitialModelConfig {
    /// Reads the file of an experiment whose own file is at `experiment`, and fills its SHA-256 in, so that the config says
    /// what is begun with wherever the file lies.
    ///
    /// # Errors
    /// The reason, where there is no such file or its SHA-256 is another.
    pub fn read(&mut self, experiment: &Path) -> Result<InitialModel, String> {
        if self.file.as_os_str().is_empty() {
            return Err("`file` is missing, expected the safetensors file of a model".to_owned());
        }
        let path = experiment.with_file_name(&self.file);
        let bytes = std::fs::read(&path).map_err(|error| {
            let shown = path.display();
            format!(
                "`file` {shown}: {error}; expected a safetensors file, such as `model.safetensors` that a run leaves"
            )
        })?;
        let found: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        if let Some(expected) = self.sha256.as_ref().filter(|expected| !expected.eq_ignore_ascii_case(&found)) {
            let shown = path.display();
            return Err(format!("`file` {shown} has the SHA-256 {found}, expected {expected} as `sha256` says"));
        }
        self.sha256 = Some(found);
        Ok(InitialModel { path, bytes: bytes.into(), new: self.new.clone() })
    }

    /// What of it a run's results depend on: the same wherever the file lies.
    #[must_use]
    pub fn without_place(&self) -> Self {
        Self { file: PathBuf::new(), ..self.clone() }
    }
}

impl InitialModel {
    /// The vector that a run begins with, `random` being the one that it would begin with otherwise.
    ///
    /// # Errors
    /// The reason, with the tensor that does not fit.
    pub fn over<B: Backend>(&self, random: &ParamVector<B>) -> Result<ParamVector<B>, String> {
        let entries = random.schema().entries();
        let is_layer = |layer: &String| entries.iter().any(|entry| is_below(&entry.path, std::slice::from_ref(layer)));
        if let Some(unknown) = self.new.iter().find(|layer| !is_layer(layer)) {
            let mut layers: Vec<&str> = entries.iter().filter_map(|entry| entry.path.split('.').next()).collect();
            layers.dedup();
            return Err(format!("`new` names `{unknown}`, expected layers of the model: {}", layers.join(", ")));
        }
        random.with_safetensors(&self.bytes, &self.new).map_err(|error| {
            let shown = self.path.display();
            format!(
                "`file` {shown}: {error}; expected the tensors of [model], or their layers in `new` to begin at random"
            )
        })
    }
}

fn is_empty(path: &Path) -> bool {
    path.as_os_str().is_empty()
}

#[cfg(test)]
mod tests {
    use burn_flex::{Flex, FlexDevice};
    use fedburn::core::{ParamEntry, ParamKind, ParamSchema};

    use super::*;

    /// A body and a head for so many classes, all of one value.
    fn model(classes: usize, value: f32) -> ParamVector<Flex> {
        let entry = |path: &str, len| ParamEntry::new(path, vec![len], ParamKind::Weight);
        let entries = vec![entry("body.weight", 3), entry("head.weight", 2 * classes), entry("header", 1)];
        let schema = Arc::new(ParamSchema::new(entries).unwrap());
        ParamVector::from_host(vec![value; schema.num_values()], schema, &FlexDevice).unwrap()
    }

    fn config(new: &[&str]) -> InitialModelConfig {
        let new = new.iter().map(|&layer| layer.to_owned()).collect();
        InitialModelConfig { file: "start.safetensors".into(), new, sha256: None }
    }

    #[test]
    fn tensors_go_to_those_of_their_path_and_new_layers_stay() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("start.safetensors"), model(4, 1.0).to_safetensors().unwrap()).unwrap();
        let begun = |config: &InitialModelConfig, classes| {
            config.clone().read(&folder.path().join("a.toml"))?.over(&model(classes, 2.0)).map(ParamVector::into_host)
        };
        assert_eq!(begun(&config(&[]), 4).unwrap(), [1.0; 12]);
        assert_eq!(begun(&config(&["head"]), 2).unwrap(), [1., 1., 1., 2., 2., 2., 2., 1.]);
        for (new, words) in [
            (&[][..], &["start.safetensors", "`head.weight` is F32 [8], expected F32 [4]", "`new`"][..]),
            (&["heads"], &["`new` names `heads`", "body, head, header"]),
        ] {
            let error = begun(&config(new), 2).unwrap_err();
            words.iter().for_each(|word| assert!(error.contains(word), "`{word}` is not in: {error}"));
        }
    }

    #[test]
    fn a_file_is_known_by_what_it_holds() {
        let folder = tempfile::tempdir().unwrap();
        let (file, experiment) = (folder.path().join("start.safetensors"), folder.path().join("a.toml"));
        let refused = |config: &InitialModelConfig, word: &str| {
            let error = config.clone().read(&experiment).unwrap_err();
            assert!(error.contains(word), "`{word}` is not in: {error}");
        };
        refused(&config(&[]), "start.safetensors: ");
        refused(&InitialModelConfig { file: PathBuf::new(), ..config(&[]) }, "`file` is missing");
        let sha256 = |bytes: &[u8]| {
            std::fs::write(&file, bytes).unwrap();
            let mut config = config(&[]);
            config.read(&experiment).unwrap();
            config.sha256.unwrap()
        };
        let abc = sha256(b"abc");
        assert_eq!(abc, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        let mut pinned = InitialModelConfig { sha256: Some(abc.to_uppercase()), ..config(&[]) };
        pinned.clone().read(&experiment).unwrap();
        assert_ne!(sha256(b"abd"), abc);
        refused(&pinned, "expected BA7816BF");
        pinned.sha256 = None;
        let error = pinned.read(&experiment).unwrap().over(&model(2, 2.0)).unwrap_err();
        assert!(error.contains("start.safetensors"), "{error}");
    }
}
