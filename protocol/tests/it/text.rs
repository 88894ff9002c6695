//! Durations, sizes and the view of a definition: what people write, and what is made of it.

use proptest::prelude::*;
use protocol::definition::{CommandLine, DataKind, Definition, DefinitionError, NameRule, Needs, check_relative_name};
use protocol::duration::{limit_ms, parse_duration_ms};
use protocol::json::{Value, number_to_string};
use protocol::size::{SizeError, parse_size_bytes};

const DURATIONS: &str = include_str!("../vectors/duration.jsonl");

fn definition(text: &str) -> Definition {
    Definition::parse(text.as_bytes()).expect("a JSON object")
}

fn problem_fields(definition: &Definition) -> Vec<&str> {
    definition.problems.iter().map(|problem| problem.field.as_str()).collect()
}

#[test]
fn odd_durations_are_read_as_the_original_reads_them() {
    for line in DURATIONS.lines() {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        let text = line["text"].as_str().unwrap();
        let ms = parse_duration_ms(text).map(number_to_string);
        assert_eq!(ms.as_deref(), line["ms"].as_str(), "for {text:?}");
    }
}

#[test]
fn a_limit_is_at_least_a_millisecond_or_none() {
    assert_eq!(limit_ms("10m"), Some(600_000));
    assert_eq!(limit_ms("90"), Some(90));
    assert_eq!(limit_ms("1h30"), Some(5_400_000));
    assert_eq!(limit_ms("5us"), Some(1));
    assert_eq!(limit_ms("1e400"), Some(u64::MAX));
    for text in ["", "soon", "0", "0s", "-5m"] {
        assert_eq!(limit_ms(text), None, "for {text:?}");
    }
}

#[test]
fn sizes_are_read_with_and_without_units() {
    let (k, m, g) = (1024, 1024 * 1024, 1024 * 1024 * 1024);
    let good = [
        ("2g", 2 * g),
        ("2G", 2 * g),
        ("2gb", 2 * g),
        ("2 GB", 2 * g),
        ("2gi", 2 * g),
        ("2GiB", 2 * g),
        ("1.5k", 1536),
        ("64m", 64 * m),
        ("1kb", k),
        ("7b", 7),
        ("7", 7),
        (" 512 ", 512),
        ("+1k", k),
        (".5k", 512),
        ("1t", 1024 * g),
        ("1pb", 1024 * 1024 * g),
        ("1.9", 1),
    ];
    for (text, bytes) in good {
        assert_eq!(parse_size_bytes(text), Ok(bytes), "for {text:?}");
    }
    let bad = [
        ("", SizeError::Unreadable),
        ("g", SizeError::Unreadable),
        ("2x", SizeError::Unreadable),
        ("2gg", SizeError::Unreadable),
        ("1.2.3k", SizeError::Unreadable),
        (".", SizeError::Unreadable),
        ("NaN", SizeError::Unreadable),
        ("inf", SizeError::Unreadable),
        ("2 é", SizeError::Unreadable),
        ("2bb", SizeError::Unreadable),
        ("1e9", SizeError::Unreadable),
        ("0", SizeError::NotPositive),
        ("-1g", SizeError::NotPositive),
        ("0.5b", SizeError::NotPositive),
        ("8192p", SizeError::TooLarge),
        ("99999999999999999999", SizeError::TooLarge),
    ];
    for (text, error) in bad {
        assert_eq!(parse_size_bytes(text), Err(error), "for {text:?}");
    }
}

#[test]
fn a_full_definition_is_read_in_javascripts_order() {
    let definition = definition(
        r#"{"image":"alpine","command":"echo $A","entrypoint":["sh","-c"],"workdir":"/w","shmSize":"2g","maxDuration":"10m",
        "env":{"B":"b","10":"ten","A":"a","2":2,"T":true},"tags":["gpu","eu"],"build":{"dockerfile":"FROM x","buildArgs":["A=1"],"extra":1},
        "inputs":{"b":{"value":"text"},"a":{"type":"json","value":{"x":1}},"u":{"type":"url","value":"https://h/f","hash":"abc"}},
        "configFiles":{"/etc/x":{"type":"base64","value":"aGk="}},
        "requirements":{"cpus":"2.5","gpus":1,"memory":"4g","maxDuration":"1h"},"unknown":{"a":1}}"#,
    );
    assert_eq!(definition.problems, []);
    assert_eq!(definition.image.as_deref(), Some("alpine"));
    assert_eq!(definition.command, Some(CommandLine::Text("echo $A".into())));
    assert_eq!(definition.entrypoint, Some(CommandLine::Argv(vec!["sh".into(), "-c".into()])));
    let env: Vec<_> = definition.env.iter().map(|(name, value)| format!("{name}={value}")).collect();
    assert_eq!(env, ["2=2", "10=ten", "B=b", "A=a", "T=true"]);
    let kinds: Vec<_> = definition.inputs.iter().map(|(name, file)| (name.as_str(), file.kind)).collect();
    assert_eq!(kinds, [("b", DataKind::Utf8), ("a", DataKind::Json), ("u", DataKind::Url)]);
    assert_eq!(definition.inputs[2].1.hash.as_deref(), Some("abc"));
    assert_eq!(definition.config_files[0].1.text().as_deref(), Some("aGk="));
    assert_eq!(definition.shm_bytes(), Some(2 << 30));
    assert_eq!(definition.value().get("unknown"), Some(&Value::object([("a", Value::from(1.0))])));
    assert_eq!(definition.check_names(), Ok(()));
    let needs = Needs {
        cpus_milli: Some(2_500),
        memory_bytes: Some(4 << 30),
        gpus: 1,
        tags: vec!["gpu".into(), "eu".into()],
        max_duration_ms: Some(600_000),
    };
    assert_eq!(definition.needs(), needs);
    let build = definition.build.unwrap();
    assert_eq!(build.build_args, ["A=1"]);
    assert!(build.value.get("extra").is_some());
}

#[test]
fn what_has_the_wrong_type_is_left_out_and_told() {
    let definition = definition(
        r#"{"image":5,"command":["a",1],"entrypoint":{},"workdir":[],"shmSize":"big","maxDuration":"soon","env":{"A":null,"B":"b"},"tags":["x",1],
        "inputs":{"a":"text","b":{"type":"odd","value":""},"c":{"type":"utf8"},"d":{"value":5},"e":{"value":"ok","hash":7}},"configFiles":[],
        "build":"x","requirements":{"cpus":0,"gpus":"all","memory":"-1","maxDuration":0}}"#,
    );
    let fields = [
        "image",
        "build",
        "command",
        "entrypoint",
        "workdir",
        "env.A",
        "inputs.a",
        "inputs.b",
        "inputs.c",
        "inputs.d",
        "inputs.e.hash",
        "configFiles",
        "tags[1]",
        "requirements.cpus",
        "requirements.gpus",
        "requirements.memory",
        "requirements.maxDuration",
        "maxDuration",
        "shmSize",
    ];
    let mut found = problem_fields(&definition);
    found.sort_unstable();
    let mut wanted = fields.to_vec();
    wanted.sort_unstable();
    assert_eq!(found, wanted);
    assert_eq!((definition.command.as_ref(), definition.shm_bytes()), (None, None));
    assert_eq!(definition.inputs.len(), 1);
    assert_eq!(definition.needs(), Needs { tags: vec!["x".into()], ..Needs::default() });
    assert_eq!(definition.problem_with("requirements.memory").unwrap().text, "a size must be at least one byte");
    assert_eq!(definition.time_limit_ms(7_000), 7_000);
}

#[test]
fn null_and_nothing_are_no_problem() {
    let empty = definition(
        r#"{"image":null,"command":"","entrypoint":[],"env":null,"inputs":null,"requirements":{"cpus":null},"build":null,"tags":null}"#,
    );
    assert_eq!(problem_fields(&empty), [""; 0]);
    assert_eq!((empty.command.as_ref(), empty.entrypoint.as_ref()), (None, None));
    assert!(empty.needs().is_empty());
}

#[test]
fn the_shortest_time_limit_counts() {
    let own = definition(r#"{"maxDuration":"10m","requirements":{"maxDuration":60000}}"#);
    assert_eq!(own.max_duration_ms(), Some(60_000));
    assert_eq!(own.time_limit_ms(1_000), 1_000);
    assert_eq!(own.time_limit_ms(3_600_000), 60_000);
}

#[test]
fn amounts_are_rounded_up_to_what_can_be_given() {
    let needs = |requirements: &str| definition(&format!(r#"{{"requirements":{requirements}}}"#)).needs();
    assert_eq!(needs(r#"{"cpus":0.0001}"#).cpus_milli, Some(1));
    assert_eq!(needs(r#"{"cpus":0.3}"#).cpus_milli, Some(300));
    assert_eq!(needs(r#"{"cpus":1e300}"#).cpus_milli, Some(u32::MAX));
    assert_eq!(needs(r#"{"gpus":0.5}"#).gpus, 1);
    assert_eq!(needs(r#"{"gpus":true}"#).gpus, 1);
    assert_eq!(needs(r#"{"gpus":"2"}"#).gpus, 2);
    assert_eq!(needs(r#"{"memory":1048576}"#).memory_bytes, Some(1 << 20));
}

#[test]
fn what_is_no_object_is_no_definition() {
    assert_eq!(Definition::parse(b"[1]"), Err(DefinitionError::NotAnObject { found: "array" }));
    let error = Definition::parse(b"{\"a\"").unwrap_err();
    assert_eq!(error.to_string(), "the definition is not JSON: unexpected end of JSON at byte 4");
}

#[test]
fn names_that_lead_elsewhere_are_refused() {
    let refused = |field: &str, name: &str| {
        let name = Value::from(name);
        let text =
            format!(r#"{{"{field}":{{"ok.txt":{{"value":""}},{}:{{"value":""}}}}}}"#, protocol::json::to_json(&name));
        definition(&text).check_names().err().map(|error| (error.field, error.rule))
    };
    for field in ["inputs", "configFiles"] {
        for name in ["a", "a/b", "./a", "..a", "a..", "a//b", ".a", "a\\..\\b", "é\n"] {
            assert_eq!(refused(field, name), None, "for {name:?}");
        }
        for name in ["..", "../a", "a/../b", "a/..", "./../a"] {
            assert_eq!(refused(field, name).map(|found| found.1), Some(NameRule::Parent), "for {name:?}");
        }
        assert_eq!(refused(field, "").map(|found| found.1), Some(NameRule::Empty));
        assert_eq!(refused(field, "a\0b").map(|found| found.1), Some(NameRule::Nul));
        for name in [".", "a/", "a/."] {
            assert_eq!(refused(field, name).map(|found| found.1), Some(NameRule::Directory), "for {name:?}");
        }
    }
    assert_eq!(refused("inputs", "/etc/passwd"), Some(("inputs", NameRule::Absolute)));
    assert_eq!(refused("configFiles", "/etc/app.conf"), None);
    assert_eq!(refused("configFiles", "/etc/../x"), Some(("configFiles", NameRule::Parent)));
    let error = check_relative_name("build.filename", "../x").unwrap_err();
    assert_eq!(error.to_string(), r#"build.filename: the file name "../x" has a `..` segment"#);
}

#[test]
fn stored_needs_are_small_and_read_back() {
    let some = Needs { gpus: 2, ..Needs::default() };
    assert_eq!(serde_json::to_string(&some).unwrap(), r#"{"gpus":2}"#);
    assert_eq!(serde_json::from_str::<Needs>("{}").unwrap(), Needs::default());
}

proptest! {
    #[test]
    fn no_text_makes_the_readers_panic(text in r"[0-9.eE+\-_, a-zµé]{0,20}") {
        let _ = parse_duration_ms(&text);
        let _ = parse_size_bytes(&text);
    }

    #[test]
    fn a_size_with_a_unit_is_that_many(count in 1..1_000_000_u64, unit in 0..6_usize) {
        let name = ["", "k", "MB", " gi", "TiB", "p"][unit];
        let expected = count << (10 * unit);
        prop_assume!(expected >> (10 * unit) == count && expected < 1 << 63);
        prop_assert_eq!(parse_size_bytes(&format!("{count}{name}")), Ok(expected));
    }
}
