//! One client's answer on the command line: `FILE:EXAMPLES` and, behind a colon, what else it sent.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::str::FromStr;

use fedburn::core::{ClientId, ClientReport};

/// What a client sent, as files and numbers.
///
/// Written `FILE:EXAMPLES` or `FILE:EXAMPLES:NAME=VALUE,NAME=VALUE`, where a name is one of
///
/// - `client`: who it is, a number; the place in the list where not given;
/// - `accumulation`, `steps`, `class_counts` (numbers of examples joined by `/`): what some strategies ask clients to
///   report;
/// - any other: side information, a number, or a safetensors file with the model's float tensors.
///
/// # Examples
///
/// ```
/// use fedburn_experiment::aggregate::UpdateFile;
///
/// let update: UpdateFile = "a.safetensors:60:client=7,control_delta=dc.safetensors".parse()?;
/// assert_eq!((update.num_examples, update.client.map(|c| c.0)), (60, Some(7)));
/// assert!(update.vectors["control_delta"].ends_with("dc.safetensors"));
/// # Ok::<(), String>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
pub struct UpdateFile {
    /// The client's parameters.
    pub path: PathBuf,
    /// Its number of examples.
    pub num_examples: u64,
    /// Who it is; its place in the list, from 0, where not given.
    pub client: Option<ClientId>,
    /// What it reports.
    pub report: ClientReport,
    /// Numbers of the algorithm.
    pub scalars: BTreeMap<String, f64>,
    /// Files with vectors of the algorithm.
    pub vectors: BTreeMap<String, PathBuf>,
}

impl UpdateFile {
    /// An update without anything besides parameters and number of examples.
    pub fn new(path: impl Into<PathBuf>, num_examples: u64) -> Self {
        Self { path: path.into(), num_examples, ..Self::default() }
    }

    fn set(&mut self, name: &str, value: &str) -> Result<(), String> {
        let wrong = |expected: &str| format!("{name}={value}: expected {expected}");
        match name {
            "client" => self.client = Some(ClientId(value.parse().map_err(|_| wrong("a client's number"))?)),
            "steps" => self.report.steps = Some(value.parse().map_err(|_| wrong("a number of steps"))?),
            "accumulation" => self.report.accumulation = Some(value.parse().map_err(|_| wrong("a number"))?),
            "class_counts" => {
                let counts = value.split('/').map(str::parse).collect::<Result<_, _>>();
                self.report.class_counts = Some(counts.map_err(|_| wrong("numbers of examples, for example 5/0/7"))?);
            }
            _ => match value.parse::<f64>() {
                Ok(number) => drop(self.scalars.insert(name.to_owned(), number)),
                Err(_) => drop(self.vectors.insert(name.to_owned(), PathBuf::from(value))),
            },
        }
        Ok(())
    }
}

impl FromStr for UpdateFile {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let shape = "expected FILE:EXAMPLES or FILE:EXAMPLES:NAME=VALUE,…, for example a.safetensors:60:steps=5";
        // The rightmost number between colons that nothing or pairs follow: a file's name may hold colons too.
        let split = text.rmatch_indices(':').find_map(|(at, _)| {
            let rest = &text[at + 1..];
            let (number, more) = rest.split_once(':').map_or((rest, None), |(number, more)| (number, Some(more)));
            let pairs = more.is_none_or(|more| more.split(',').all(|pair| pair.contains('=')));
            let number = number.parse().ok().filter(|_| pairs && at > 0)?;
            Some((&text[..at], number, more.unwrap_or_default()))
        });
        let (file, num_examples, more) = split.ok_or_else(|| format!("`{text}`: {shape}"))?;
        let mut update = Self::new(file, num_examples);
        let mut seen = BTreeSet::new();
        for pair in more.split(',').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').ok_or_else(|| format!("`{pair}`: {shape}"))?;
            if name.is_empty() || value.is_empty() {
                return Err(format!("`{pair}`: {shape}"));
            }
            if !seen.insert(name) {
                return Err(format!("`{name}` is given twice"));
            }
            update.set(name, value)?;
        }
        Ok(update)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_numbers_and_pairs() {
        assert_eq!("a.safetensors:60".parse(), Ok(UpdateFile::new("a.safetensors", 60)));
        assert_eq!("odd:7:name:60".parse(), Ok(UpdateFile::new("odd:7:name", 60)));
        let full: UpdateFile =
            "odd:7:a:60:client=4,steps=3,accumulation=2.5,class_counts=5/0/7,tau=1e-3,c=d:1.safetensors"
                .parse()
                .unwrap();
        let report = ClientReport { class_counts: Some(vec![5, 0, 7]), accumulation: Some(2.5), steps: Some(3) };
        let expected = UpdateFile {
            client: Some(ClientId(4)),
            report,
            scalars: [("tau".to_owned(), 1e-3)].into(),
            vectors: [("c".to_owned(), PathBuf::from("d:1.safetensors"))].into(),
            ..UpdateFile::new("odd:7:a", 60)
        };
        assert_eq!(full, expected);
    }

    #[test]
    fn what_is_no_update_is_refused_with_the_reason() {
        for (text, word) in [
            ("a.safetensors", "FILE:EXAMPLES"),
            ("a.safetensors:", "FILE:EXAMPLES"),
            ("a.safetensors:6:", "FILE:EXAMPLES"),
            (":60", "FILE:EXAMPLES"),
            ("a:-1", "FILE:EXAMPLES"),
            ("a:60:steps", "FILE:EXAMPLES"),
            ("a:60:steps=", "`steps=`"),
            ("a:60:=3", "`=3`"),
            ("a:60:steps=1.5", "steps=1.5"),
            ("a:60:client=me", "client=me"),
            ("a:60:class_counts=1,2", "FILE:EXAMPLES"),
            ("a:60:class_counts=1/x", "class_counts=1/x"),
            ("a:60:steps=1,steps=2", "`steps` is given twice"),
        ] {
            let reason = text.parse::<UpdateFile>().unwrap_err();
            assert!(reason.contains(word), "{text}: {reason}");
        }
    }
}
