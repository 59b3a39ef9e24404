//! Aligned plain text.

use std::fmt;

/// Rows of cells under a head; columns whose cells all begin like numbers stand to the right.
pub(crate) struct Table<const N: usize> {
    rows: Vec<[String; N]>,
}

impl<const N: usize> Table<N> {
    pub(crate) fn new(head: [&str; N]) -> Self {
        Self { rows: vec![head.map(str::to_owned)] }
    }

    pub(crate) fn row(&mut self, cells: [String; N]) {
        self.rows.push(cells);
    }
}

impl<const N: usize> fmt::Display for Table<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = |column: usize| self.rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let like_number = |cell: &str| cell.starts_with(|c: char| c.is_ascii_digit() || "+-".contains(c));
        let numbers = |column: usize| self.rows[1..].iter().all(|row| like_number(&row[column]));
        for row in &self.rows {
            let cells = row.iter().enumerate().map(|(column, cell)| match numbers(column) {
                true => format!("{cell:>0$}", width(column)),
                false => format!("{cell:<0$}", width(column)),
            });
            writeln!(f, "{}", cells.collect::<Vec<_>>().join("  ").trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_by_characters_and_kind() {
        let mut table = Table::new(["name", "value", "note"]);
        table.row(["a".into(), "1 ± 2".into(), "x".into()]);
        table.row(["long name".into(), "10".into(), "more".into()]);
        let lines = ["name       value  note", "a          1 ± 2  x", "long name     10  more"];
        assert_eq!(table.to_string().lines().collect::<Vec<_>>(), lines);
    }
}
