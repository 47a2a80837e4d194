//! The configuration file: TOML; every key is the long option of the same name.
//! It must not know what any key means.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::anyhow;
use toml::de::{DeTable, DeValue};

use super::setting::Setting;
use crate::output::exit::{Failure, OrFail};
use crate::sys::trust::foreign_writer;

/// Far more than all keys need; a wrong path such as `/dev/zero` must not fill the memory.
const MAX_FILE_BYTES: u64 = 64 * 1024;

/// The parsed file; empty if there is none.
#[derive(Debug, Default)]
pub(crate) struct File {
    pub(crate) path: PathBuf,
    entries: BTreeMap<Setting, Entry>,
}

/// The value of one key.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Counted from 1.
    pub(crate) line: usize,
    /// In the form of the flag's value; lists are joined by commas.
    pub(crate) text: String,
}

impl File {
    /// The file that `chosen` names, else the first default file that exists.
    pub(crate) fn load(
        chosen: Option<PathBuf>,
        variables: &dyn Fn(&str) -> Option<OsString>,
    ) -> Result<Self, Failure> {
        let unreadable =
            |path: &Path| format!("cannot read the configuration file '{}'", path.display());
        if let Some(path) = chosen {
            return match read(&path) {
                Ok(text) => Self::parse(path, &text),
                Err(error) => {
                    let hint = error.downcast_ref::<Refused>().map(|it| it.hint.to_owned());
                    let error = error.context(unreadable(&path));
                    Err(Failure {
                        hint,
                        ..error.into()
                    })
                }
            };
        }
        for path in default_paths(variables) {
            match read(&path) {
                Ok(text) => return Self::parse(path, &text),
                Err(error) if is_missing(&error) => {}
                // Another etcd than the one that the file names would give a second holder.
                Err(error) => {
                    let refused = error.downcast_ref::<Refused>().map(|it| it.hint);
                    return Err(error.context(unreadable(&path))).or_hint(refused.unwrap_or(
                        "the file may name the etcd to use, so dlock does not continue without it: make it readable, or name another one with --config (/dev/null is an empty one)",
                    ));
                }
            }
        }
        Ok(Self::default())
    }

    pub(crate) fn parse(path: PathBuf, text: &str) -> Result<Self, Failure> {
        let complain = |offset: usize, what: String| {
            let line = line_of(text, offset);
            anyhow!("cannot use '{}', line {line}: {what}", path.display())
        };
        let table = DeTable::parse(text).map_err(|error| {
            let offset = error.span().map_or(0, |span| span.start);
            complain(offset, error.message().trim().replace('\n', ", "))
        })?;
        let mut entries = BTreeMap::new();
        for (key, value) in table.into_inner() {
            let offset = key.span().start;
            let key = key.into_inner();
            let Some(setting) = Setting::in_file().find(|setting| setting.name() == key) else {
                let error = Err(complain(offset, format!("unknown key '{key}'")));
                return match nearest(&key) {
                    Some(near) => error.or_hint(format!("did you mean '{near}'?")),
                    None => error.or_hint(format!("the keys are {}", keys().join(", "))),
                };
            };
            let kind = || format!("'{key}' does not take a value of this kind");
            let entry = Entry {
                line: line_of(text, offset),
                text: text_of(value.get_ref())
                    .ok_or_else(|| complain(value.span().start, kind()))?,
            };
            entries.insert(setting, entry);
        }
        Ok(Self { path, entries })
    }

    pub(crate) fn entry(&self, setting: Setting) -> Option<&Entry> {
        self.entries.get(&setting)
    }
}

/// The reason why dlock does not use a file that it could read.
#[derive(Debug)]
struct Refused {
    why: String,
    hint: &'static str,
}

impl Refused {
    /// For a file that another user can change.
    const UNTRUSTED: &str = "the file decides where the lock is and which files dlock replaces, so only its caller and root may change it: use chown and chmod go-w, or name another file with --config (/dev/null is an empty one)";
    const PIPE: &str = "write the settings into a file, or set options or DLOCK_* variables; --config /dev/null is an empty file";
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.why)
    }
}

impl std::error::Error for Refused {}

/// The default paths of the file, in order.
fn default_paths(variables: &dyn Fn(&str) -> Option<OsString>) -> Vec<PathBuf> {
    // The base directory specification ignores a relative path there.
    let absolute = |name| {
        variables(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    let user = absolute("XDG_CONFIG_HOME").or_else(|| Some(absolute("HOME")?.join(".config")));
    user.into_iter()
        .chain([PathBuf::from("/etc")])
        .map(|directory| directory.join("dlock/config.toml"))
        .collect()
}

/// Whether there is surely no such file. Any other error says nothing about it.
fn is_missing(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| {
        matches!(
            error.kind(),
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
        )
    })
}

fn read(path: &Path) -> anyhow::Result<String> {
    // Without a writer, a pipe would block dlock, and then be an empty file.
    let file = fs::OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)?;
    let metadata = file.metadata()?;
    if metadata.file_type().is_fifo() {
        let why = "it is a pipe, not a file".to_owned();
        return Err(Refused {
            why,
            hint: Refused::PIPE,
        }
        .into());
    }
    // A device such as /dev/null contains what its driver says.
    if let Some(why) = foreign_writer(&metadata).filter(|_| metadata.is_file()) {
        return Err(Refused {
            why,
            hint: Refused::UNTRUSTED,
        }
        .into());
    }
    let mut text = Vec::new();
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut text)?;
    if text.len() as u64 > MAX_FILE_BYTES {
        return Err(anyhow!("it is longer than 64 KiB"));
    }
    String::from_utf8(text).map_err(|_| anyhow!("it is not UTF-8 text"))
}

fn line_of(text: &str, offset: usize) -> usize {
    let before = &text.as_bytes()[..offset.min(text.len())];
    before.split(|byte| *byte == b'\n').count()
}

fn text_of(value: &DeValue<'_>) -> Option<String> {
    match value {
        DeValue::String(text) => Some(text.to_string()),
        DeValue::Integer(number) => Some(number.to_string()),
        DeValue::Float(number) => Some(number.as_str().to_owned()),
        DeValue::Boolean(on) => Some(on.to_string()),
        DeValue::Array(list) => {
            let words = list.iter().map(|word| match word.get_ref() {
                DeValue::String(word) => Some(word.to_string()),
                _ => None,
            });
            Some(words.collect::<Option<Vec<_>>>()?.join(","))
        }
        DeValue::Datetime(_) | DeValue::Table(_) => None,
    }
}

fn keys() -> Vec<&'static str> {
    Setting::in_file().map(Setting::name).collect()
}

/// The known key that differs by the fewest letters, if by few enough for a typing error.
fn nearest(key: &str) -> Option<&'static str> {
    let key = key.to_lowercase().replace('_', "-");
    let near = keys()
        .into_iter()
        .map(|known| (strsim::levenshtein(&key, known), known))
        .min()?;
    (near.0 <= 1 + near.1.len() / 4).then_some(near.1)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> Result<File, Failure> {
        File::parse("/x/config.toml".into(), text)
    }

    #[test]
    fn every_kind_of_value_becomes_the_text_of_a_flag() {
        let file = parse(
            "# ours\nendpoints = [\"a\", 'b']\nttl = 30\n\nno-wait = true\nconnect-timeout = 0.5\n",
        )
        .unwrap();
        let entry = |setting| {
            file.entry(setting)
                .map(|entry| (entry.line, entry.text.as_str()))
        };
        assert_eq!(entry(Setting::Endpoints), Some((2, "a,b")));
        assert_eq!(entry(Setting::Ttl), Some((3, "30")));
        assert_eq!(entry(Setting::NoWait), Some((5, "true")));
        assert_eq!(entry(Setting::ConnectTimeout), Some((6, "0.5")));
        assert!(parse("").unwrap().entry(Setting::Ttl).is_none());
    }

    #[test]
    fn an_unknown_key_is_named_with_its_line() {
        let failure = parse("ttl = 5\n\nendpoint = 'x'\n").unwrap_err();
        assert_eq!(
            failure.error.to_string(),
            "cannot use '/x/config.toml', line 3: unknown key 'endpoint'"
        );
        assert_eq!(failure.hint.as_deref(), Some("did you mean 'endpoints'?"));
        let failure = parse("connect_timeout = 3").unwrap_err();
        assert_eq!(
            failure.hint.as_deref(),
            Some("did you mean 'connect-timeout'?")
        );
        let failure = parse("zzzzzzz = 3").unwrap_err();
        assert!(
            failure
                .hint
                .unwrap()
                .starts_with("the keys are endpoints, ")
        );
        let failure = parse("[run]\nttl = 3").unwrap_err();
        assert!(
            failure
                .error
                .to_string()
                .contains("line 1: unknown key 'run'")
        );
    }

    #[test]
    fn an_error_in_the_toml_is_named_with_its_line() {
        for text in [
            "\nttl = ",
            "\nttl 5",
            "\nttl = 5 5",
            "\nttl = [1]",
            "\nttl = {}",
            "\n\u{7f}",
            "ttl=1\nttl=2",
        ] {
            let error = parse(text).unwrap_err().error.to_string();
            assert!(
                error.starts_with("cannot use '/x/config.toml', line 2: "),
                "{text:?}: {error}"
            );
            assert!(!error.contains('\n'), "{error:?}");
        }
    }

    #[test]
    fn the_default_paths_follow_the_base_directories() {
        let paths = |set: &'static [(&str, &str)]| {
            default_paths(&move |name| {
                set.iter()
                    .find(|(key, _)| *key == name)
                    .map(|(_, value)| (*value).into())
            })
        };
        let etc = PathBuf::from("/etc/dlock/config.toml");
        assert_eq!(paths(&[]), std::slice::from_ref(&etc));
        assert_eq!(
            paths(&[("HOME", "/h")]),
            [PathBuf::from("/h/.config/dlock/config.toml"), etc.clone()]
        );
        assert_eq!(
            paths(&[("HOME", "/h"), ("XDG_CONFIG_HOME", "/x")]),
            [PathBuf::from("/x/dlock/config.toml"), etc.clone()]
        );
        assert_eq!(
            paths(&[("HOME", "/h"), ("XDG_CONFIG_HOME", "x")]),
            [PathBuf::from("/h/.config/dlock/config.toml"), etc]
        );
    }

    #[test]
    fn only_a_default_file_that_is_missing_counts_as_none() {
        let load = |directory: &str| {
            File::load(None, &|name| {
                (name == "XDG_CONFIG_HOME").then(|| directory.into())
            })
        };
        assert!(load("/nowhere/at/all").is_ok());
        assert!(load("/dev/null").is_ok());
        let long = format!("/{}", "x".repeat(300));
        let failure = load(&long).unwrap_err();
        assert_eq!(failure.exit, crate::output::exit::Exit::Failed);
        let error = format!("{:#}", failure.error);
        assert!(
            error.starts_with("cannot read the configuration file '/xxx")
                && error.contains("too long"),
            "{error}"
        );
        assert!(failure.hint.unwrap().contains("--config"));
    }

    #[test]
    fn a_file_that_others_can_change_is_refused() {
        let home = std::env::temp_dir().join(format!("dlock-config-{}", std::process::id()));
        let path = home.join("dlock/config.toml");
        fs::create_dir_all(home.join("dlock")).unwrap();
        fs::write(&path, "ttl = 5\n").unwrap();
        let refusals = |mode| {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let default = |name: &str| (name == "XDG_CONFIG_HOME").then(|| home.clone().into());
            let loaded = [
                File::load(Some(path.clone()), &|_| None),
                File::load(None, &default),
            ];
            loaded.map(Result::err)
        };
        assert!(refusals(0o644).iter().all(Option::is_none));
        for failure in refusals(0o646) {
            let failure = failure.unwrap();
            let error = format!("{:#}", failure.error);
            assert!(error.contains(path.to_str().unwrap()), "{error}");
            assert!(error.ends_with(": every user may write to it"), "{error}");
            assert!(failure.hint.unwrap().contains("chmod"));
        }
        fs::remove_dir_all(home).unwrap();
    }

    #[test]
    fn a_chosen_file_must_exist() {
        let failure = File::load(Some("/nowhere/at/all".into()), &|_| None).unwrap_err();
        let error = format!("{:#}", failure.error);
        assert!(
            error.starts_with("cannot read the configuration file '/nowhere/at/all': "),
            "{error}"
        );
        assert!(File::load(Some("/dev/zero".into()), &|_| None).is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// Almost TOML: most texts get far into the parser, few are valid.
        #[test]
        fn nothing_panics(
            bytes in proptest::collection::vec(any::<u8>(), 0..200),
            near in "((endpoints|ttl|no-wait|tt|\\[run\\]) ?= ?([0-9]{1,30}|\"[^\n]{0,9}\"?|\\[('a',?){0,3}\\]|true|1e9|\\{\\})\n){0,4}.{0,9}",
        ) {
            for text in [String::from_utf8_lossy(&bytes).into_owned(), near] {
                if let Err(failure) = parse(&text) {
                    let error = failure.error.to_string();
                    prop_assert!(error.starts_with("cannot use '/x/config.toml', line "), "{}", error);
                }
            }
        }
    }
}
