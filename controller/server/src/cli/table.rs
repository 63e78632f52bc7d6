//! Tables, aligned to what is in them.

use std::fmt;

use super::units::{NOTHING, printable};

/// Spaces between two columns.
const GAP: usize = 2;

/// Rows beneath headings. A heading that begins with `>` is that of numbers, which stand at the right.
#[derive(Debug)]
pub(super) struct Table {
    headings: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(super) fn new(headings: &[&'static str]) -> Self {
        Self { headings: headings.to_vec(), rows: Vec::new() }
    }

    /// Adds a row: a cell for every heading.
    pub(super) fn row<const N: usize>(&mut self, cells: [String; N]) {
        debug_assert_eq!(N, self.headings.len());
        self.rows.push(cells.into_iter().map(|cell| one_line(&cell)).collect());
    }

    fn width(&self, column: usize) -> usize {
        let cells = self.rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain([self.headings[column].trim_start_matches('>').len()]).max().unwrap_or_default()
    }
}

/// A cell: one line, and something to see.
fn one_line(cell: &str) -> String {
    match cell {
        "" => NOTHING.to_owned(),
        _ => printable(cell).replace('\n', " "),
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let widths: Vec<usize> = (0..self.headings.len()).map(|column| self.width(column)).collect();
        let headings: Vec<String> =
            self.headings.iter().map(|text| text.trim_start_matches('>').to_owned()).collect();
        for (number, row) in [&headings].into_iter().chain(&self.rows).enumerate() {
            let mut line = String::new();
            for (column, cell) in row.iter().enumerate() {
                let width = widths[column];
                match self.headings[column].starts_with('>') {
                    true => line.push_str(&format!("{cell:>width$}")),
                    false => line.push_str(&format!("{cell:<width$}")),
                }
                line.push_str(&" ".repeat(GAP));
            }
            if number > 0 {
                f.write_str("\n")?;
            }
            f.write_str(line.trim_end())?;
        }
        Ok(())
    }
}

/// Names and values, one pair a line; those without a value are left out.
#[derive(Debug, Default)]
pub(super) struct Details(Vec<(&'static str, String)>);

impl Details {
    pub(super) fn add(&mut self, name: &'static str, value: impl Into<String>) -> &mut Self {
        let value = value.into();
        if !value.is_empty() {
            self.0.push((name, one_line(&value)));
        }
        self
    }
}

impl fmt::Display for Details {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.0.iter().map(|(name, _)| name.len() + 1).max().unwrap_or_default() + GAP;
        for (number, (name, value)) in self.0.iter().enumerate() {
            let end = if number > 0 { "\n" } else { "" };
            write!(f, "{end}{:<width$}{value}", format!("{name}:"))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_what_is_in_them() {
        let mut table = Table::new(&["NAME", ">VCPUS", "STATE"]);
        table.row(["web".into(), "2".into(), "running".into()]);
        table.row(["a-longer-näme".into(), "128".into(), String::new()]);
        assert_eq!(
            table.to_string(),
            "NAME           VCPUS  STATE\nweb                2  running\na-longer-näme    128  -"
        );
        assert_eq!(
            Table::new(&["NAME", ">N"]).to_string(),
            "NAME  N",
            "headings alone where there is nothing"
        );
    }

    #[test]
    fn a_cell_is_one_line_whatever_is_in_it() {
        let mut table = Table::new(&["NAME"]);
        table.row(["a\nb\x1bc".into()]);
        assert_eq!(table.to_string(), "NAME\na b c");
    }

    #[test]
    fn details_are_aligned_and_leave_out_what_is_not() {
        let mut details = Details::default();
        details.add("id", "1").add("image", "").add("memory", "4GiB");
        assert_eq!(details.to_string(), "id:      1\nmemory:  4GiB");
    }
}
