//! The findings of `dlock doctor`: facts in, findings out.
//! It must not know how the facts were found, nor how the findings are shown.

pub mod certificate;
mod cluster;
pub mod endpoints;
pub mod facts;
pub mod keys;
pub mod latency;
pub mod machine;
pub mod state_dir;
pub mod version;

use serde::Serialize;

use super::text::printable;

/// The severity of a finding, the worst last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    Ok,
    /// Locks work now, but something may break them.
    Warning,
    /// No lock can be taken, or none that excludes others.
    Unusable,
}

/// The result of one check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The check; one of a fixed set of words, for scripts.
    pub check: &'static str,
    /// The object of the check: an endpoint, a file, a version.
    pub object: String,
    pub level: Level,
    pub says: String,
    pub hint: Option<String>,
}

impl Finding {
    /// `object` and `says` may contain text of a server or a file.
    pub fn new(check: &'static str, object: &str, level: Level, says: &str) -> Self {
        Self {
            check,
            object: printable(object),
            level,
            says: printable(says),
            hint: None,
        }
    }

    pub fn ok(check: &'static str, object: &str, says: &str) -> Self {
        Self::new(check, object, Level::Ok, says)
    }

    pub fn warning(check: &'static str, object: &str, says: &str) -> Self {
        Self::new(check, object, Level::Warning, says)
    }

    pub fn unusable(check: &'static str, object: &str, says: &str) -> Self {
        Self::new(check, object, Level::Unusable, says)
    }

    /// The same with a hint.
    #[must_use]
    pub fn hinting(self, hint: &str) -> Self {
        Self {
            hint: Some(printable(hint)),
            ..self
        }
    }

    /// The same with a hint, if there is one.
    #[must_use]
    pub fn maybe_hinting(self, hint: Option<&str>) -> Self {
        match hint {
            Some(hint) => self.hinting(hint),
            None => self,
        }
    }
}

/// The highest level of all findings.
pub fn worst(findings: &[Finding]) -> Level {
    let levels = findings.iter().map(|finding| finding.level);
    levels.max().unwrap_or(Level::Ok)
}

/// A count with its noun: `1 process`, `3 processes`.
fn counted(count: usize, one: &str, many: &str) -> String {
    let noun = if count == 1 { one } else { many };
    format!("{count} {noun}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_finding_decides() {
        let [ok, warning, unusable] = [
            Finding::ok("clock", "", ""),
            Finding::warning("clock", "", ""),
            Finding::unusable("clock", "", ""),
        ];
        assert_eq!(worst(&[]), Level::Ok);
        assert_eq!(worst(std::slice::from_ref(&ok)), Level::Ok);
        assert_eq!(worst(&[warning.clone(), ok.clone()]), Level::Warning);
        assert_eq!(worst(&[ok, unusable, warning]), Level::Unusable);
    }

    #[test]
    fn text_of_a_server_is_safe_for_a_terminal() {
        let finding = Finding::warning("version", "3.5\u{1b}[2J", "a\nb").hinting("\u{202e}");
        let text = format!("{}{}{:?}", finding.object, finding.says, finding.hint);
        assert!(!text.chars().any(char::is_control), "{text}");
        assert!(!text.contains('\u{202e}'));
    }
}
