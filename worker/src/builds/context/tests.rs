use std::collections::BTreeMap;
use std::io::Read;
use std::sync::atomic::AtomicBool;

use protocol::definition::Definition;
use serde_json::{Value, json};

use super::super::tree::Limits;
use super::*;

fn build(fields: &Value) -> Build {
    Definition::parse(json!({ "build": fields }).to_string().as_bytes()).unwrap().build.unwrap()
}

fn tree(files: &[(&str, &str)]) -> Tree {
    let mut tree = Tree::new(&std::env::temp_dir(), Limits { bytes_max: 1 << 20, archive_bytes: None }).unwrap();
    for (name, content) in files {
        tree.file(name, 0o755, &mut content.as_bytes(), &AtomicBool::new(false)).unwrap();
    }
    tree
}

/// The Dockerfile's name, and what is sent by name.
fn sent(
    fields: &Value,
    tree: &Tree,
    directory: Option<&str>,
) -> Result<(String, BTreeMap<String, String>), ContextError> {
    let context = Context::new(&build(fields), tree, directory)?;
    let mut bytes = Vec::new();
    context.write(tree, &mut bytes, &AtomicBool::new(false)).unwrap();
    let mut archive = tar::Archive::new(bytes.as_slice());
    let mut files = BTreeMap::new();
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let name = entry.path().unwrap().to_str().unwrap().to_owned();
        let mut text = String::new();
        entry.read_to_string(&mut text).unwrap();
        assert!(files.insert(name, text).is_none(), "each name once");
    }
    Ok((context.dockerfile, files))
}

fn names(files: &BTreeMap<String, String>) -> Vec<&str> {
    files.keys().map(String::as_str).collect()
}

#[test]
fn a_text_alone_is_the_whole_context() {
    let (dockerfile, files) = sent(&json!({"dockerfile": "FROM a"}), &tree(&[]), None).unwrap();
    assert_eq!(dockerfile, "Dockerfile");
    assert_eq!(files, BTreeMap::from([("Dockerfile".to_owned(), "FROM a".to_owned())]));
    let (dockerfile, files) =
        sent(&json!({"dockerfile": "FROM a", "filename": "x/My.dockerfile"}), &tree(&[]), None).unwrap();
    assert_eq!((dockerfile.as_str(), names(&files)), ("x/My.dockerfile", vec!["x/My.dockerfile"]));
}

#[test]
fn one_directory_at_the_top_is_no_part_of_the_names() {
    let hoisted = tree(&[("repo-main/Dockerfile", "FROM a"), ("repo-main/src/x", "1")]);
    let (dockerfile, files) = sent(&json!({"context": "http://a/b.zip"}), &hoisted, None).unwrap();
    assert_eq!((dockerfile.as_str(), names(&files)), ("Dockerfile", vec!["Dockerfile", "src/x"]));
    // The text wins over the file of that name.
    let (_, files) = sent(&json!({"context": "http://a/b.zip", "dockerfile": "FROM b"}), &hoisted, None).unwrap();
    assert_eq!(files["Dockerfile"], "FROM b");
    let (_, files) =
        sent(&json!({"context": "http://a/b.zip", "dockerfile": "FROM b"}), &hoisted, Some("src")).unwrap();
    assert_eq!(names(&files), ["Dockerfile", "x"]);
}

#[test]
fn a_part_of_the_files_is_built_with_a_dockerfile_from_within_or_without() {
    let tree = tree(&[("Dockerfile", "outer"), ("app/Dockerfile", "inner"), ("app/x", "1"), ("other", "2")]);
    let part = |extra: Value| {
        let mut fields = json!({"context": "http://a/b.zip", "buildContext": "./app/"});
        fields.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        sent(&fields, &tree, None).unwrap()
    };
    let (dockerfile, files) = part(json!({}));
    assert_eq!((files[&dockerfile].as_str(), names(&files)), ("inner", vec!["Dockerfile", "x"]));
    let (dockerfile, files) = part(json!({"filename": "Dockerfile"}));
    assert_eq!((files[&dockerfile].as_str(), names(&files)), ("outer", vec![OUTSIDE, "Dockerfile", "x"]));
    let (dockerfile, files) = part(json!({"dockerfile": "inline"}));
    assert_eq!((files[&dockerfile].as_str(), names(&files)), ("inline", vec![OUTSIDE, "Dockerfile", "x"]));
    let (dockerfile, files) = part(json!({"filename": "app/x"}));
    assert_eq!((dockerfile.as_str(), names(&files)), ("x", vec!["Dockerfile", "x"]));
}

#[test]
fn what_the_ignore_file_names_stays_at_home_but_never_the_dockerfile() {
    let with = |extra: &[(&str, &str)]| {
        let mut files =
            vec![("Dockerfile", "FROM a"), ("keep", "1"), ("secret/key", "2"), (".dockerignore", "*\n!keep\n")];
        files.extend(extra);
        let (_, files) = sent(&json!({"context": "http://a/b.zip"}), &tree(&files), None).unwrap();
        files.into_keys().collect::<Vec<_>>()
    };
    assert_eq!(with(&[]), ["Dockerfile", "keep"]);
    assert_eq!(
        with(&[("Dockerfile.dockerignore", "keep")]),
        [".dockerignore", "Dockerfile", "Dockerfile.dockerignore", "secret/key"]
    );
}

#[test]
fn links_and_modes_come_through() {
    let mut tree = tree(&[("Dockerfile", "FROM a"), ("run.sh", "")]);
    tree.link("link", "/etc/passwd".to_owned()).unwrap();
    tree.directory("empty", 0o700).unwrap();
    let context = Context::new(&build(&json!({"context": "http://a/b.zip"})), &tree, None).unwrap();
    let mut bytes = Vec::new();
    context.write(&tree, &mut bytes, &AtomicBool::new(false)).unwrap();
    let ended = context.write(&tree, &mut Vec::new(), &AtomicBool::new(true));
    assert_eq!(ended.unwrap_err().kind(), std::io::ErrorKind::BrokenPipe);
    let mut archive = tar::Archive::new(bytes.as_slice());
    let found: Vec<_> = archive
        .entries()
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            (entry.path().unwrap().display().to_string(), entry.header().mode().unwrap(), entry.header().entry_type())
        })
        .collect();
    assert_eq!(
        found,
        [
            ("Dockerfile".to_owned(), 0o755, EntryType::Regular),
            ("empty".to_owned(), 0o700, EntryType::Directory),
            ("link".to_owned(), 0o777, EntryType::Symlink),
            ("run.sh".to_owned(), 0o755, EntryType::Regular),
        ]
    );
}

#[test]
fn what_leads_out_or_is_not_there_is_refused() {
    let tree = tree(&[("Dockerfile", ""), ("a/b", "")]);
    let refused = |fields: Value| sent(&fields, &tree, None).unwrap_err().to_string();
    for bad in ["..", "/", "a/../..", "/etc", "https://example.com/x.git", "--build-arg=x", "nothing", "Dockerfile"] {
        assert!(
            refused(json!({"context": "http://a/b.zip", "buildContext": bad})).contains("build.buildContext"),
            "{bad}"
        );
    }
    for bad in ["../x", "/x", "a/../../x", ""] {
        assert!(refused(json!({"dockerfile": "FROM a", "filename": bad})).contains("build.filename"), "{bad}");
    }
    assert!(refused(json!({"context": "http://a/b.zip", "filename": "nothing"})).contains("\"nothing\""));
    assert!(refused(json!({"context": "http://a/b.zip", "buildContext": "a"})).contains("\"Dockerfile\""));
    assert!(refused(json!({"target": "x"})).contains("say what to build"));
    let elsewhere =
        Context::new(&build(&json!({"context": "http://a/b.git#:x", "dockerfile": "FROM a"})), &tree, Some("x"));
    assert!(elsewhere.unwrap_err().to_string().contains("no directory"));
}
