//! The schema of the events of `--log-format json`, from the table of the events.
//! It must not know how it is compared.

use dlock::output::events;
use serde_json::{Map, Value, json};

/// The type of a field, by the unit in its name.
fn type_of(field: &str) -> &'static str {
    const COUNTS: [&str; 6] = ["token", "ahead", "count", "pid", "uid", "exit_code"];
    if field.ends_with("_seconds") {
        "number"
    } else if COUNTS.contains(&field) {
        "integer"
    } else {
        "string"
    }
}

/// The text of `contrib/schemas/event.schema.json`.
pub(crate) fn event() -> String {
    let mut fields = Map::new();
    for field in events::TABLE.iter().flat_map(|event| event.fields) {
        fields.insert((*field).to_owned(), json!({"type": type_of(field)}));
    }
    let kinds = events::TABLE
        .iter()
        .map(|event| json!({"const": event.name, "description": event.meaning}));
    let rules = events::TABLE.iter().map(|event| {
        json!({
            "if": {"properties": {"event": {"const": event.name}}},
            "then": {"properties": {"fields": {"propertyNames": {"enum": event.fields}}}},
        })
    });
    let schema = json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "dlock --log-format json",
        "description": "One message of dlock on a line; dlock-events(7) describes it.",
        "type": "object",
        "required": ["version", "ts", "level", "event", "message", "fields"],
        "additionalProperties": false,
        "properties": {
            "version": {
                "const": 1,
                "description": "Version of this format; it grows when a key is removed or gets another meaning.",
            },
            "ts": {
                "type": "string",
                "format": "date-time",
                "pattern": r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]+)?Z$",
            },
            "level": {"enum": ["error", "warn", "info", "debug"]},
            "event": {"oneOf": kinds.collect::<Vec<Value>>()},
            "message": {"type": "string", "description": "For people; it may change with any version."},
            "fields": {"type": "object", "additionalProperties": false, "properties": fields},
        },
        "allOf": rules.collect::<Vec<Value>>(),
    });
    format!("{schema:#}\n")
}
