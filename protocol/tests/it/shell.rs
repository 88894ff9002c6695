//! Splitting of command lines against npm's `shell-quote` 1.8.1 and the examples that people rely on.

use proptest::prelude::*;
use protocol::shell::{ARGV_BYTES_MAX, ShellError, parse_command};

const VECTORS: &str = include_str!("../vectors/shell.jsonl");

fn env(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect()
}

fn split(text: &str, pairs: &[(&str, &str)]) -> Vec<String> {
    parse_command(text, &env(pairs)).expect("a good command")
}

#[test]
fn odd_commands_are_split_as_the_original_splits_them() {
    let mut refused_count = 0;
    for line in VECTORS.lines() {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        let text = line["text"].as_str().unwrap();
        let variables = line["env"].as_object().unwrap();
        let variables: Vec<_> = variables.iter().map(|(k, v)| (k.clone(), v.as_str().unwrap().to_owned())).collect();
        match parse_command(text, &variables) {
            Ok(argv) => assert_eq!(serde_json::json!(argv), line["argv"], "for {text:?} with {variables:?}"),
            Err(error) => {
                assert_eq!(line["refused"], true, "{error} for {text:?} with {variables:?}");
                refused_count += 1;
            }
        }
    }
    assert!(refused_count >= 20);
}

#[test]
fn the_examples_of_the_contract() {
    let whole = |text: &str| assert_eq!(split(text, &[]), [text]);
    assert_eq!(split("echo $A", &[("A", "x y")]), ["echo", "x y"]);
    assert_eq!(split(r#"sh -c "echo $A > /outputs/o""#, &[("A", "1")]), ["sh", "-c", "echo 1 > /outputs/o"]);
    assert_eq!(split(r#"sh -c "for i in 1 2; do echo $i; done""#, &[]), ["sh", "-c", "for i in 1 2; do echo ; done"]);
    assert_eq!(split("sh -c 'cat $JOB_INPUTS/a'", &[]), ["sh", "-c", "cat $JOB_INPUTS/a"]);
    assert_eq!(split("cat $JOB_INPUTS/a", &[]), ["cat", "/a"]);
    whole("ls *.txt");
    whole("a && b");
    whole("run --tag a#b");
    assert_eq!(split("a \\\n b", &[]), ["a", "", "b"]);
    assert_eq!(split("$_FOO ${A:-b}", &[("A", "1")]), ["OO", ""]);
    assert_eq!(split("`x` ~ {a,b} [ab] FOO=x", &[]), ["`x`", "~", "{a,b}", "[ab]", "FOO=x"]);
}

#[test]
fn a_bad_substitution_is_refused_and_shown() {
    for text in ["echo ${}", "echo ${A", "a && ${A B}"] {
        let error = parse_command(text, &[]).unwrap_err();
        assert!(matches!(&error, ShellError::BadSubstitution { near } if near.starts_with("${")), "{error}");
    }
}

#[test]
fn variables_cannot_multiply_a_command_without_end() {
    let value = "x".repeat(1 << 20);
    let fits = parse_command("$A $A $A", &env(&[("A", &value)])).unwrap();
    assert_eq!(fits.len(), 3);
    for text in ["$A".repeat(1_000), "$A ".repeat(1_000)] {
        assert_eq!(parse_command(&text, &env(&[("A", &value)])), Err(ShellError::TooLong));
    }
    assert!(parse_command(&"x".repeat(ARGV_BYTES_MAX), &[]).is_ok());
}

proptest! {
    #[test]
    fn a_single_quoted_text_is_one_argument_as_it_is(text in "[^']{0,40}") {
        // A backslash before the closing quote is the one thing that single quotes do not hold.
        prop_assume!(!text.ends_with('\\'));
        prop_assert_eq!(parse_command(&format!("run '{text}'"), &[]), Ok(vec!["run".to_owned(), text]));
    }

    #[test]
    fn no_text_makes_the_splitter_panic(text in r#"[a$_{}?*#'"\\ \n;é]{0,24}"#) {
        let _ = parse_command(&text, &env(&[("a", "$a"), ("", "e")]));
    }
}
