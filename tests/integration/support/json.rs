//! The JSON that dlock prints, held against the schemas in contrib/schemas: all that any test makes it print.
//! It must not know which values a test expects.

use std::ffi::OsString;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{LazyLock, Mutex, PoisonError};

use serde_json::{Value, json};

use super::{dlock_program, previous_program};

/// The key that only objects of this schema have, and the name of the schema.
const SCHEMAS: [(&str, &str); 7] = [
    ("event", "event"),
    ("outcome", "report"),
    ("findings", "doctor"),
    ("fencing_token", "hold"),
    ("held", "status"),
    ("holds", "history"),
    ("waiting", "ls"),
];

/// One process for all tests: it reads a value from a line, and answers in a line.
struct Validator {
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    _process: Child,
}

static VALIDATOR: LazyLock<Mutex<Validator>> = LazyLock::new(|| {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/schemas.py");
    let mut process = Command::new("/usr/bin/python3")
        .arg(script)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("python3 starts");
    Mutex::new(Validator {
        input: process.stdin.take().expect("a pipe"),
        output: BufReader::new(process.stdout.take().expect("a pipe")),
        _process: process,
    })
});

/// The faults of `value` by the schema `contrib/schemas/NAME.schema.json`; empty if nothing is.
pub(crate) fn faults(name: &str, value: &Value) -> String {
    let mut validator = VALIDATOR.lock().unwrap_or_else(PoisonError::into_inner);
    writeln!(validator.input, "{}", json!([name, value])).expect("the validator reads");
    let mut faults = String::new();
    let read = validator.output.read_line(&mut faults);
    let hint = "no answer of tests/schemas.py: install python3-jsonschema";
    assert!(read.is_ok_and(|length| length > 0), "{hint}");
    faults.trim_end().to_owned()
}

/// Fails unless the object has one of the schemas; returns its name.
#[track_caller]
pub(crate) fn check(object: &str) -> &'static str {
    let value: Value =
        serde_json::from_str(object).unwrap_or_else(|error| panic!("{error}: {object}"));
    let found = SCHEMAS.iter().find(|(key, _)| value.get(key).is_some());
    let (_, name) = found.unwrap_or_else(|| panic!("it has no schema: {object}"));
    let faults = faults(name, &value);
    assert_eq!(faults, "", "{name}.schema.json refuses {object}");
    name
}

/// Checks each object of dlock in an output, which may have other lines.
#[track_caller]
fn check_all(output: &str) {
    if output.starts_with("{\n  \"version\":") {
        // The doctor's object has many lines.
        check(output);
    }
    for line in output
        .lines()
        .filter(|line| line.starts_with("{\"version\":"))
    {
        check(line);
    }
}

/// Checks what a program has written, and the report that its words name.
#[track_caller]
pub(super) fn check_outputs(words: &[OsString], stdout: &str, stderr: &str) {
    // The schemas describe the dlock under test, and no earlier one.
    let previous = previous_program();
    if previous != dlock_program() && words.iter().any(|word| word == previous) {
        return;
    }
    check_all(stdout);
    check_all(stderr);
    let mut words = words.iter().filter_map(|word| word.to_str());
    while let Some(word) = words.next() {
        let report = match word {
            "--" => break,
            "--report" => words.next(),
            word => word.strip_prefix("--report="),
        };
        // A pipe has no second reader.
        let report = report.filter(|path| fs::metadata(path).is_ok_and(|it| it.is_file()));
        if let Some(text) = report.and_then(|path| fs::read_to_string(path).ok()) {
            check_all(&text);
        }
    }
}
