//! How the table of an experiment is put together: the file, the files that it extends, changes on top.

use std::path::{Path, PathBuf};

use toml::{Table, Value};

use crate::config::ConfigError;

/// Files may extend one another this often; more is a circle.
const MOST_EXTENSIONS: usize = 16;

/// A change of a config's table.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// A dotted field takes a value.
    Set {
        /// Its name, e.g. `client.lr`.
        field: String,
        /// Its value.
        value: Value,
    },
    /// A table is laid over the config's, by the rule of [`overlay`].
    Overlay(Table),
}

impl Change {
    /// Reads `table.field=value`; the value is TOML, or a string where it is not.
    ///
    /// # Errors
    /// [`ConfigError::Override`].
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let (field, value) = text.split_once('=').ok_or_else(|| refused(text, "expected table.field=value"))?;
        let parsed: Result<Table, _> = toml::from_str(&format!("v = {value}"));
        let value = parsed.ok().and_then(|mut t| t.remove("v")).unwrap_or_else(|| Value::String(value.to_owned()));
        Ok(Self::Set { field: field.trim().to_owned(), value })
    }

    /// Changes `table`.
    ///
    /// # Errors
    /// [`ConfigError::Override`] where the field's name is empty or leads through something that is no table.
    pub fn apply(&self, table: &mut Table) -> Result<(), ConfigError> {
        match self {
            Self::Set { field, value } => {
                set(table, field, value.clone()).map_err(|reason| refused(&format!("{field}={value}"), &reason))
            }
            Self::Overlay(over) => {
                overlay(table, over.clone());
                Ok(())
            }
        }
    }
}

/// The table of the file at `path`, laid over that of the file that its `extends` names, relative to its folder.
///
/// # Errors
/// [`ConfigError::Read`], [`ConfigError::Parse`].
pub fn read(path: &Path) -> Result<Table, ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    parse(path, &text)
}

/// [`read`] for text that is already in memory.
///
/// # Errors
/// As [`read`].
pub fn parse(path: &Path, text: &str) -> Result<Table, ConfigError> {
    let mut table = decode(path, text)?;
    let mut at = path.to_owned();
    for _ in 0..MOST_EXTENSIONS {
        let Some(base) = take_extends(&at, &mut table)? else { return Ok(table) };
        let text = std::fs::read_to_string(&base).map_err(|source| ConfigError::Read { path: base.clone(), source })?;
        let own = std::mem::replace(&mut table, decode(&base, &text)?);
        overlay(&mut table, own);
        at = base;
    }
    Err(extends_refused(path, format!("leads through more than {MOST_EXTENSIONS} files, expected no circle")))
}

/// Lays `over` on `base`: tables are merged field by field, everything else is replaced; a table that says its `kind` is
/// a choice of its own and replaces as a whole.
pub fn overlay(base: &mut Table, over: Table) {
    for (field, value) in over {
        match (base.get_mut(&field), value) {
            (Some(Value::Table(below)), Value::Table(above)) if !above.contains_key("kind") => overlay(below, above),
            (_, value) => {
                base.insert(field, value);
            }
        }
    }
}

fn decode(path: &Path, text: &str) -> Result<Table, ConfigError> {
    toml::from_str(text).map_err(|e| ConfigError::Parse {
        path: path.to_owned(),
        field: None,
        reason: e.to_string().trim_end().to_owned(),
    })
}

fn take_extends(path: &Path, table: &mut Table) -> Result<Option<PathBuf>, ConfigError> {
    match table.remove("extends") {
        None => Ok(None),
        Some(Value::String(name)) => Ok(Some(path.with_file_name(name))),
        Some(other) => Err(extends_refused(path, format!("is {other}, expected the name of a file"))),
    }
}

fn extends_refused(path: &Path, reason: String) -> ConfigError {
    ConfigError::Parse { path: path.to_owned(), field: Some("extends".to_owned()), reason }
}

/// Sets a dotted field of a table, making tables on the way.
fn set(table: &mut Table, key: &str, value: Value) -> Result<(), String> {
    let (place, last) = key.trim().rsplit_once('.').map_or(("", key.trim()), |(place, last)| (place, last));
    if last.is_empty() {
        return Err("the field's name is empty".to_owned());
    }
    let mut at = table;
    for part in place.split('.').filter(|p| !p.is_empty()) {
        let next = at.entry(part).or_insert_with(|| Value::Table(Table::new()));
        at = next.as_table_mut().ok_or_else(|| format!("`{part}` is not a table"))?;
    }
    at.insert(last.to_owned(), value);
    Ok(())
}

fn refused(text: &str, reason: &str) -> ConfigError {
    ConfigError::Override { text: text.to_owned(), reason: reason.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(text: &str) -> Table {
        toml::from_str(text).unwrap()
    }

    #[test]
    fn tables_merge_and_choices_replace() {
        let mut base = table("title = 'a'\nclient = { lr = 0.1, epochs = 1 }\nstrategy = { kind = 'fedprox', mu = 1 }");
        overlay(&mut base, table("client = { lr = 0.2 }\nstrategy = { kind = 'fedavg' }\nseeds = [1]"));
        let expected =
            table("title = 'a'\nseeds = [1]\nclient = { lr = 0.2, epochs = 1 }\nstrategy = { kind = 'fedavg' }");
        assert_eq!(base, expected);
        overlay(&mut base, table("client = 3"));
        assert_eq!(base["client"], Value::Integer(3));
    }

    #[test]
    fn files_extend_files_of_their_folder() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        write("_base.toml", "seeds = [0]\nclient = { lr = 0.1, epochs = 1 }");
        write("_middle.toml", "extends = '_base.toml'\nclient = { lr = 0.2 }");
        write("top.toml", "extends = '_middle.toml'\ntitle = 'top'");
        let expected = table("title = 'top'\nseeds = [0]\nclient = { lr = 0.2, epochs = 1 }");
        assert_eq!(read(&dir.path().join("top.toml")).unwrap(), expected);
        for (text, word) in [
            ("extends = 'circle.toml'", "circle"),
            ("extends = 3", "the name of a file"),
            ("extends = 'absent.toml'", "absent.toml"),
        ] {
            write("circle.toml", text);
            let error = read(&dir.path().join("circle.toml")).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }
}
