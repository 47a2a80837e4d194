//! The JSON Schemas in contrib/schemas: each output of dlock has one, and a schema refuses what it does not name. The support module
//! checks the outputs of all other tests.
//! It must not know what the values mean.

use std::process::Stdio;

use serde_json::Value;

use crate::support::{Dlock, Etcd, Scratch, hold, json, unique};

/// All outputs, with the names of their schemas.
fn outputs() -> Vec<(&'static str, String)> {
    let etcd = Etcd::shared();
    let name = unique("schema");
    let scratch = Scratch::new();
    let report = scratch.file("report");
    let option = format!("--report={report}");
    let _holder = hold(Dlock::on(etcd), &["--note=a", "--slots=2"], &name);
    let stdout = |words: &[&str]| Dlock::on(etcd).args(words).finish().stdout;
    let mut held = Dlock::on(etcd)
        .args(["hold", "--slots=2", "--json", &name])
        .stdin(Stdio::piped())
        .start();
    held.says("}\n");
    Dlock::on(etcd)
        .args([
            "-v",
            "--log-format=json",
            "run",
            "-n",
            "--slots=2",
            &option,
            &name,
            "true",
        ])
        .finish()
        .expect_code(75);
    let events = Dlock::on(etcd)
        .args(["-v", "--log-format=json", "run", &unique("schema"), "true"])
        .finish()
        .expect_code(0);
    vec![
        ("report", scratch.read("report")),
        (
            "event",
            events.stderr.lines().next().unwrap_or_default().to_owned(),
        ),
        ("hold", held.stdout()),
        ("ls", stdout(&["ls", "--json", &name])),
        ("status", stdout(&["status", "--json", &name])),
        ("history", stdout(&["history", "--json", &name])),
        ("doctor", stdout(&["doctor", "--json"])),
    ]
}

/// Adds a key to one object after another, and calls `look` with the whole each time.
fn with_one_key_more(value: &Value, look: &mut dyn FnMut(Value)) {
    match value {
        Value::Object(object) => {
            let mut more = object.clone();
            more.insert("unknown".to_owned(), 1.into());
            look(Value::Object(more));
            for (key, inner) in object {
                with_one_key_more(inner, &mut |inner| {
                    let mut changed = object.clone();
                    changed.insert(key.clone(), inner);
                    look(Value::Object(changed));
                });
            }
        }
        Value::Array(array) => {
            for (index, inner) in array.iter().enumerate() {
                with_one_key_more(inner, &mut |inner| {
                    let mut changed = array.clone();
                    changed[index] = inner;
                    look(Value::Array(changed));
                });
            }
        }
        _ => {}
    }
}

/// "The first key of each object is version ... Each format has a JSON Schema" (dlock-json(5)); and a new key without a schema does
/// not pass the tests.
#[test]
fn each_output_begins_with_its_version_and_has_a_schema_without_other_keys() {
    for (schema, text) in outputs() {
        let begin: String = text
            .chars()
            .filter(|c| !c.is_whitespace())
            .take(12)
            .collect();
        assert_eq!(begin, "{\"version\":1", "{schema}: {text}");
        assert_eq!(json::check(&text), schema, "{text}");
        let mut count = 0;
        with_one_key_more(
            &serde_json::from_str(&text).expect("JSON"),
            &mut |changed| {
                count += 1;
                assert_ne!(json::faults(schema, &changed), "", "{changed}");
            },
        );
        assert!(count > 0);
    }
}
