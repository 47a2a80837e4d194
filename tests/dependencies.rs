//! The dependencies of dlock: with allowed licences, from one registry, and built by the compiler that the manifest
//! promises. It calls cargo(1), without the network.

use std::process::Command;
use std::sync::LazyLock;

use serde_json::Value;
use spdx::{Expression, ParseMode};

/// Licences that only require attribution. A crate may offer others beside one of them.
const LICENCES: [&str; 8] = [
    "MIT",
    "Apache-2.0",
    "ISC",
    "Zlib",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "Unicode-3.0",
    "Unlicense",
];

/// All packages that are built here, tests included, from the lock file as it is.
static PACKAGES: LazyLock<Vec<Value>> = LazyLock::new(|| {
    let cargo = |words: &[&str]| {
        let output = Command::new(env!("CARGO"))
            .args(words)
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    };
    let rustc = cargo(&["--version", "--verbose"]);
    let host = rustc
        .lines()
        .find_map(|line| line.strip_prefix("host: "))
        .unwrap();
    let words = [
        "metadata",
        "--format-version=1",
        "--locked",
        "--offline",
        "--filter-platform",
        host,
    ];
    let metadata: Value = serde_json::from_str(&cargo(&words)).unwrap();
    metadata["packages"].as_array().unwrap().clone()
});

fn others() -> impl Iterator<Item = &'static Value> {
    assert!(PACKAGES.len() > 100);
    PACKAGES
        .iter()
        .filter(|package| package["name"] != env!("CARGO_PKG_NAME"))
}

#[test]
fn all_licences_are_allowed() {
    for package in others() {
        let name = &package["name"];
        let licence = package["license"].as_str();
        let licence =
            licence.unwrap_or_else(|| panic!("{name} does not say under which licence it is"));
        let expression = Expression::parse_mode(licence, ParseMode::LAX).unwrap();
        let fits = expression.evaluate(|asked| {
            // An exception only grants more.
            asked
                .license
                .id()
                .is_some_and(|id| LICENCES.contains(&id.name))
        });
        assert!(fits, "{name} is under {licence}");
    }
}

#[test]
fn a_licence_with_other_terms_is_noticed() {
    for (licence, fits) in [
        ("MIT/Apache-2.0", true),
        ("(MIT OR GPL-3.0-only) AND Unicode-3.0", true),
        ("MIT AND GPL-3.0-only", false),
        ("AGPL-3.0-or-later", false),
    ] {
        let expression = Expression::parse_mode(licence, ParseMode::LAX).unwrap();
        let found = expression.evaluate(|asked| {
            asked
                .license
                .id()
                .is_some_and(|id| LICENCES.contains(&id.name))
        });
        assert_eq!(found, fits, "{licence}");
    }
}

#[test]
fn all_come_from_one_registry() {
    let sources: Vec<&str> = others()
        .filter_map(|package| package["source"].as_str())
        .collect();
    assert_eq!(sources.len(), others().count(), "one has no source");
    assert!(sources[0].starts_with("registry+"), "{}", sources[0]);
    for (package, source) in others().zip(&sources) {
        assert_eq!(source, &sources[0], "{}", package["name"]);
    }
}

/// `rust-version` is a promise: no dependency may need more. That our own code keeps it is clippy's lint
/// `incompatible_msrv`, an error in `make test`.
#[test]
fn no_dependency_needs_a_newer_compiler() {
    let parse = |version: &str| -> Vec<u32> {
        version
            .split('.')
            .map(|number| number.parse().unwrap())
            .collect()
    };
    let own = parse(env!("CARGO_PKG_RUST_VERSION"));
    for package in others() {
        if let Some(version) = package["rust_version"].as_str() {
            let needed = parse(version);
            assert!(
                needed[..2] <= own[..2],
                "{} needs {version}",
                package["name"]
            );
        }
    }
    let readme = include_str!("../README.md");
    let promise = format!("Rust {} or later", env!("CARGO_PKG_RUST_VERSION"));
    assert!(
        readme.contains(&promise),
        "the README does not say {promise:?}"
    );
}

/// A lock file as it is.
fn lock_file(path: &str) -> toml::Table {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    toml::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn packages(lock: &toml::Table) -> impl Iterator<Item = (&str, &str, &toml::Value)> {
    let all = lock["package"].as_array().unwrap().iter();
    all.map(|it| {
        (
            it["name"].as_str().unwrap(),
            it["version"].as_str().unwrap(),
            it,
        )
    })
}

/// The fuzz targets are a workspace of their own, with a lock file of its own: they must test what is shipped.
#[test]
fn the_fuzz_targets_have_the_same_dependencies() {
    const STALE: &str =
        "fuzz/Cargo.lock is stale: copy Cargo.lock over it, and run cargo metadata in fuzz";
    let (ours, theirs) = (lock_file("Cargo.lock"), lock_file("fuzz/Cargo.lock"));
    let mut shared = 0;
    for (name, version, package) in packages(&theirs) {
        let known: Vec<&str> = packages(&ours)
            .filter(|it| it.0 == name)
            .map(|it| it.1)
            .collect();
        assert!(
            known.is_empty() || known.contains(&version),
            "{name} {version}: {STALE}"
        );
        shared += usize::from(!known.is_empty());
        if name == env!("CARGO_PKG_NAME") {
            let manifest = lock_file("Cargo.toml");
            let wanted: Vec<&str> = manifest["dependencies"]
                .as_table()
                .unwrap()
                .keys()
                .map(String::as_str)
                .collect();
            let named = package["dependencies"].as_array().unwrap().iter();
            // A version follows the name where there are two.
            let mut named: Vec<&str> = named
                .map(|it| it.as_str().unwrap().split(' ').next().unwrap())
                .collect();
            named.sort_unstable();
            assert_eq!(named, wanted, "{STALE}");
        }
    }
    assert!(shared > 100, "{shared}");
}
