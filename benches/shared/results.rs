//! The results of a benchmark: on standard output, as JSON, and between the marker lines of a text file.
//! It must not know what was measured.

use std::io::Write as _;
use std::path::{Path, PathBuf};

/// The options of every benchmark.
#[derive(clap::Args)]
pub(crate) struct Results {
    /// Also write the results as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Also put the tables between the marker lines of this file
    #[arg(long, value_name = "FILE")]
    readme: Option<PathBuf>,
    /// Take only the measurements whose name contains this
    #[arg(long, value_name = "WORDS", default_value = "")]
    only: String,
    /// Passed by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

impl Results {
    /// Whether the measurement of this name is asked for.
    pub(crate) fn wants(&self, name: &str) -> bool {
        name.contains(&self.only)
    }

    /// Prints the tables, and writes the files that are asked for.
    pub(crate) fn write(&self, section: &str, tables: &str, json: &str) {
        print_line(&format!("\n{tables}"));
        if let Some(path) = &self.json {
            std::fs::write(path, json).expect("the file for the JSON can be written");
        }
        if let Some(path) = &self.readme {
            insert(path, section, tables);
        }
    }
}

/// Writes to standard output; a closed output is no failure.
pub(crate) fn print_line(text: &str) {
    let mut stdout = std::io::stdout();
    let _ = stdout.write_all(text.as_bytes());
    let _ = stdout.flush();
}

/// Puts `text` between the lines `<!-- NAME -->` and `<!-- /NAME -->` of the file.
fn insert(path: &Path, name: &str, text: &str) {
    let (begin, end) = (format!("<!-- {name} -->\n"), format!("<!-- /{name} -->\n"));
    let whole = std::fs::read_to_string(path).expect("the file with the markers can be read");
    let (before, rest) = whole
        .split_once(&begin)
        .expect("the file has the first marker");
    let (_, after) = rest
        .split_once(&end)
        .expect("the file has the second marker");
    let whole = format!("{before}{begin}{text}{end}{after}");
    std::fs::write(path, whole).expect("the file with the markers can be written");
}
