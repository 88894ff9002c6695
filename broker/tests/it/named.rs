//! Tests that documents name are there.

use std::path::{Path, PathBuf};

/// Every test that a document names in backquotes, as `module::test`, `module::*` or `worker: module::test`; none may be missing.
pub(crate) fn named_in(document: &str) -> usize {
    let names = document.split('`').skip(1).step_by(2).filter(|name| is_test(name));
    names.inspect(|name| assert_exists(name)).count()
}

fn is_test(name: &str) -> bool {
    let path = name.split_once(": ").map_or(name, |(_, path)| path);
    path.contains("::")
        && path.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_' | b':' | b'*'))
        // Crates and their items look alike.
        && !path.starts_with("std::")
}

/// Fails when there is no such test.
pub(crate) fn assert_exists(name: &str) {
    let (package, path) = name.split_once(": ").unwrap_or(("broker", name));
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(package);
    let parts: Vec<&str> = path.split("::").collect();
    let is_there = ["tests/it", "src", "tests"].into_iter().any(|root| stands_in(&folder.join(root), &parts));
    assert!(is_there, "no test {name}");
}

/// Whether a test, or a module of tests, is where its path says.
fn stands_in(root: &Path, parts: &[&str]) -> bool {
    let file = |parts: &[&str]| {
        let path: PathBuf = root.join(parts.join("/"));
        std::fs::read_to_string(path.with_extension("rs")).ok()
    };
    let Some((last, modules)) = parts.split_last() else { return false };
    let holds = |text: String| match *last {
        "*" => true,
        "tests" => text.contains("mod tests"),
        name => text.contains(&format!("fn {name}(")),
    };
    let around = modules.strip_suffix(&["tests"]).unwrap_or(modules);
    file(parts).is_some() || file(modules).is_some_and(holds) || file(around).is_some_and(holds)
}

#[test]
fn every_test_that_the_security_document_names_exists() {
    let named = named_in(include_str!("../../../docs/security.md"));
    assert!(named > 50, "{named}");
}

#[test]
#[should_panic(expected = "no test attacks::paths::there_is_no_such_test")]
fn a_test_that_is_not_there_is_found_missing() {
    named_in(
        "`attacks::paths::no_blob_key_reads_or_writes_outside_of_the_store` and `attacks::paths::there_is_no_such_test`",
    );
}
