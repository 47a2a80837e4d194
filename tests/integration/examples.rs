//! Runs every example of the README and of the manual pages: none may be wrong, and none may be new and untested.
//! The files below say how each one is run; this file reads the documents.

mod documents;
mod etcd;
mod formats;
mod scripts;
mod trust;

use std::panic;

use crate::support::Etcd;
use documents::{Block, blocks};
pub(crate) use formats::yaml;

/// How a block is tested.
enum How {
    /// A script that succeeds and prints all of this.
    Prints(&'static [&'static str]),
    /// By a function of its own.
    By(fn(&Block)),
    /// Together with the other blocks of its page, in their order.
    Story,
    /// It cannot be run, for this reason.
    Picture(&'static str),
}

/// Document, beginning of the block, and how it is tested.
type Runner = (&'static str, &'static str, How);

fn runners() -> impl Iterator<Item = &'static Runner> {
    scripts::RUNNERS.iter().chain(formats::RUNNERS)
}

/// The runner of a block. A page whose blocks belong together needs none for each of them.
fn runner(block: &Block) -> &'static How {
    let fitting = |(document, begins, _): &&Runner| {
        *document == block.document && block.text.starts_with(begins)
    };
    let mut found = runners().filter(fitting);
    let (_, _, how) = found.next().unwrap_or_else(|| {
        panic!(
            "nobody tests the example in line {} of {}, {:?}: add it to tests/integration/examples/",
            block.line,
            block.document,
            block.text.lines().next()
        )
    });
    assert!(found.next().is_none(), "{block:?} has two runners");
    how
}

#[test]
fn every_example_has_a_runner_and_every_runner_an_example() {
    let blocks = blocks();
    assert!(blocks.len() > 50, "only {} are found", blocks.len());
    for block in &blocks {
        runner(block);
    }
    for (document, begins, _) in runners() {
        assert!(
            blocks
                .iter()
                .any(|block| block.document == *document && block.text.starts_with(begins)),
            "{document} has no example any more that begins with {begins:?}"
        );
    }
}

fn run(wanted: impl Fn(&str) -> bool) {
    let blocks = blocks();
    let (mut count, mut failed) = (0, Vec::new());
    for block in blocks.iter().filter(|block| wanted(&block.document)) {
        count += 1;
        // The others may be wrong too, and are reported at once.
        if panic::catch_unwind(|| test(block)).is_err() {
            failed.push(format!("{} line {}", block.document, block.line));
        }
    }
    assert!(
        count > 0 && failed.is_empty(),
        "wrong: {}",
        failed.join(", ")
    );
}

fn test(block: &Block) {
    match runner(block) {
        How::Prints(words) => {
            let outcome = scripts::script(Etcd::shared(), &block.text).finish();
            assert_eq!(outcome.code(), Some(0), "{block:?}: {outcome:?}");
            for word in *words {
                assert!(outcome.stdout.contains(word), "{block:?}: {outcome:?}");
            }
        }
        How::By(test) => test(block),
        How::Story => {}
        How::Picture(reason) => assert!(!reason.is_empty()),
    }
}

#[test]
fn the_examples_of_the_readme_work() {
    run(|document| document == "README.md");
}

#[test]
fn the_examples_of_commands_and_files_work() {
    run(|document| document.ends_with(".1") || document.ends_with(".5"));
}

#[test]
fn the_examples_of_the_other_pages_work() {
    run(|document| document.ends_with(".7"));
}

#[test]
fn the_examples_of_the_page_about_etcd_work() {
    let blocks = blocks().into_iter();
    let page = blocks.filter(|block| block.document == "dlock-etcd.7");
    etcd::story(&page.collect::<Vec<_>>());
}

/// "Each domain gets a prefix, a role, and a user whose only role is that one" (dlock-security(7)).
#[test]
fn the_examples_of_the_page_about_security_work() {
    let blocks = blocks().into_iter();
    let page = blocks.filter(|block| block.document == "dlock-security.7");
    trust::story(&page.collect::<Vec<_>>());
}
