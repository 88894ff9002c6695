//! Help, version, refusals: what the binary says before it does anything.

use crate::run::{finish, gridsocket, run};

#[tokio::test]
async fn asked_nothing_it_says_what_it_can_do() {
    let said = run(&[]).await;
    assert_eq!(said.code, Some(0));
    for word in ["local", "serve", "run", "job", "audit", "Examples:"] {
        assert!(said.out.contains(word), "{word} is missing in:\n{}", said.out);
    }
}

#[tokio::test]
async fn the_version_is_the_packages() {
    assert_eq!(run(&["--version"]).await.out.trim(), concat!("gridsocket ", env!("CARGO_PKG_VERSION")));
}

#[tokio::test]
async fn every_commands_help_ends_with_examples() {
    for words in [&["local"][..], &["serve"], &["run"], &["job"], &["audit"]] {
        let said = run(&[words, &["--help"]].concat()).await;
        assert_eq!(said.code, Some(0));
        assert!(said.out.contains("Examples:\n  "), "{words:?}:\n{}", said.out);
    }
}

#[tokio::test]
async fn what_cannot_be_used_ends_with_2_and_a_sentence_that_names_it() {
    let cases: [(&[&str], &str); 6] = [
        (&["run"], "METAPAGE_IO_WORKER_QUEUE"),
        (&["run", "q", "--cpus", "0"], "--cpus"),
        (&["serve", "--durability", "never"], "fsync or interval"),
        (&["local", "--port", "x"], "--port"),
        (&["job", "add", "q", "--memory", "much"], "--memory"),
        (&["audit", "verify"], "--data"),
    ];
    for (words, hint) in cases {
        let said = run(words).await;
        assert_eq!(said.code, Some(2), "{words:?}: {said:?}");
        assert!(said.err.starts_with("error: ") && said.err.contains(hint), "{words:?}: {}", said.err);
        assert_eq!(said.out, "", "{words:?}");
    }
    assert_eq!(run(&["fly"]).await.code, Some(2));
}

#[tokio::test]
async fn a_variable_of_the_process_is_read_and_named_when_it_is_wrong() {
    let mut command = gridsocket(&["run", "q"]);
    command.env("METAPAGE_IO_WORKER_CPUS", "none");
    let said = finish(command).await;
    assert_eq!(said.code, Some(2));
    assert!(said.err.contains("METAPAGE_IO_WORKER_CPUS"), "{}", said.err);
}
