//! Tables for people: aligned text, or Markdown.

/// A head and rows of as many cells.
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table without rows.
    pub fn new<const N: usize>(head: [&str; N]) -> Self {
        Self { rows: vec![head.map(str::to_owned).to_vec()] }
    }

    /// Adds a row.
    pub fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.rows.push(cells.to_vec());
    }

    /// Lines of columns: the first to the left, the others to the right.
    pub fn text(&self) -> String {
        let width = |column: usize| self.rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..self.rows[0].len()).map(width).collect();
        let line = |row: &Vec<String>| {
            let cells = row.iter().zip(&widths).enumerate().map(|(column, (cell, &width))| match column {
                0 => format!("{cell:width$}"),
                _ => format!("{cell:>width$}"),
            });
            cells.collect::<Vec<_>>().join("  ").trim_end().to_owned() + "\n"
        };
        self.rows.iter().map(line).collect()
    }

    /// The same in Markdown.
    pub fn markdown(&self) -> String {
        let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
        let rule = format!("|---{}|\n", "|---:".repeat(self.rows[0].len() - 1));
        line(&self.rows[0]) + &rule + &self.rows[1..].iter().map(|row| line(row)).collect::<String>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let mut table = Table::new(["who", "ms"]);
        table.row(["fedburn".to_owned(), "1.5".to_owned()]);
        table.row(["x".to_owned(), "10.25".to_owned()]);
        table
    }

    #[test]
    fn columns_are_aligned() {
        assert_eq!(table().text(), "who         ms\nfedburn    1.5\nx        10.25\n");
    }

    #[test]
    fn markdown_has_a_rule_below_the_head() {
        assert_eq!(table().markdown(), "| who | ms |\n|---|---:|\n| fedburn | 1.5 |\n| x | 10.25 |\n");
    }
}
