#!/usr/bin/env python3
"""Validates JSON against the schemas in contrib/schemas: each line of the input is [NAME, VALUE]; the line of the answer is empty,
or says what is wrong. It must not know what dlock prints, nor when."""

import json
import pathlib
import sys

import jsonschema

schemas = pathlib.Path(__file__).parent.parent / "contrib" / "schemas"
validators = {}
for path in schemas.glob("*.schema.json"):
    schema = json.loads(path.read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    validators[path.name.removesuffix(".schema.json")] = jsonschema.Draft202012Validator(schema)

for line in sys.stdin:
    name, value = json.loads(line)
    errors = [f"{error.json_path}: {error.message}" for error in validators[name].iter_errors(value)]
    print("; ".join(errors).replace("\n", " "), flush=True)
