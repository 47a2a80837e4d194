//! A section of a text file that a benchmark rewrites: the lines between two markers.
//! It must not know the content.

use std::path::Path;

/// Puts `text` between the lines `<!-- NAME -->` and `<!-- /NAME -->` of the file.
pub(crate) fn insert(path: &Path, name: &str, text: &str) {
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
