//! A list in columns, each as wide as its widest cell.

use std::io::{self, Write};

/// Writes the rows; nothing is put behind the last cell of one.
pub fn print<const N: usize>(out: &mut impl Write, rows: &[[&str; N]]) -> io::Result<()> {
    let widest = |n: usize| rows.iter().map(|row| row[n].chars().count()).max().unwrap_or(0);
    let widths: [usize; N] = std::array::from_fn(widest);
    for row in rows {
        let cells: Vec<String> =
            row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:width$}")).collect();
        writeln!(out, "{}", cells.join("  ").trim_end())?;
    }
    Ok(())
}
