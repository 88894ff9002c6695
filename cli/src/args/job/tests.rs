//! What the job commands' words come to.

use clap::Parser;

use super::*;
use crate::args::Cli;

const ID: &str = "84696046848ef38f50a2f6182fc7674eaee3d1fac23fe57466d6cb5f771794e4";

fn parse(words: &[&str]) -> Command {
    let cli = Cli::try_parse_from([&["gridsocket", "job"], words].concat()).unwrap();
    match cli.command {
        Some(crate::args::Command::Job(args)) => args.command,
        other => panic!("another command: {other:?}"),
    }
}

fn add(words: &[&str], env: &[(&str, &str)]) -> Result<AddSettings, UsageError> {
    let Command::Add(add) = parse(&[&["add"], words].concat()) else { panic!("another command") };
    add.settings(&|name| env.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned()))
}

fn spec(words: &[&str]) -> Spec {
    match add(words, &[]).unwrap().source {
        Source::Flags(spec) => *spec,
        other @ (Source::Stdin | Source::Lines(_)) => panic!("not flags: {other:?}"),
    }
}

#[test]
fn queue_and_broker_have_flags_over_variables_over_defaults() {
    let env = [(QUEUE, "from-env"), (API, "http://env:1/")];
    let of = |words: &[&str], env: &[(&str, &str)]| {
        let target = add(words, env).unwrap().target;
        (target.api, target.queue.to_string())
    };
    assert_eq!(of(&["q"], &[]), ("http://localhost:8000".into(), "q".into()));
    assert_eq!(of(&[], &env), ("http://env:1".into(), "from-env".into()));
    assert_eq!(of(&["q", "--api", "http://flag:2"], &env), ("http://flag:2".into(), "q".into()));
    assert_eq!(add(&[], &[]).unwrap_err().place, "queue");
}

#[test]
fn a_job_may_be_named_without_its_queue_when_the_variable_names_it() {
    let Command::Result(one) = parse(&["result", ID]) else { panic!("another command") };
    let (target, job) = one.settings(&|name| (name == QUEUE).then(|| "q".to_owned())).unwrap();
    assert_eq!((target.queue.as_str(), job.to_string().as_str()), ("q", ID));
    assert_eq!(one.settings(&|_| None).unwrap_err().place, "queue");
    let Command::Logs(logs) = parse(&["logs", "q2", ID, "--kind", "both", "--follow", "--since", "3"]) else {
        panic!()
    };
    assert_eq!(logs.one.settings(&|_| None).unwrap().0.queue.as_str(), "q2");
    assert_eq!((logs.kind, logs.follow, logs.since), (Kind::Both, true, 3));
}

#[test]
fn every_flag_reaches_the_definition() {
    let words = [
        "q",
        "--image",
        "python:3.12",
        "-c",
        "-x --y 'z'",
        "--entrypoint",
        "sh -c",
        "--workdir",
        "/w",
        "--file",
        "a.txt",
        "--file",
        "b/c.txt=/d/e.txt",
        "--env",
        "A=1",
        "-e",
        "B=x=y",
        "--cpus",
        "0.5",
        "--gpus",
        "1",
        "--memory",
        "2g",
        "--max-duration",
        "1h30",
    ];
    assert_eq!(
        spec(&words),
        Spec {
            image: "python:3.12".into(),
            command: Some("-x --y 'z'".into()),
            entrypoint: Some("sh -c".into()),
            workdir: Some("/w".into()),
            build: None,
            shm_size: None,
            files: vec![("a.txt".into(), "a.txt".into()), ("b/c.txt".into(), "/d/e.txt".into())],
            env: vec![("A".into(), "1".into()), ("B".into(), "x=y".into())],
            cpus: Some(0.5),
            gpus: Some(1),
            memory: Some("2g".into()),
            max_duration: Some("1h30".into()),
        }
    );
}

#[test]
fn a_definition_may_come_on_standard_input_and_then_alone() {
    assert_eq!(add(&["q", "-"], &[]).unwrap().source, Source::Stdin);
    let by_variable = add(&["-"], &[(QUEUE, "q")]).unwrap();
    assert_eq!((by_variable.source, by_variable.target.queue.as_str()), (Source::Stdin, "q"));
    assert_eq!(add(&["q", "-", "--image", "a"], &[]).unwrap_err().place, "--image");
    assert!(add(&["q", "echo hello"], &[]).unwrap_err().problem.contains("-c"));
}

#[test]
fn earlier_command_lines_words_mean_the_same() {
    let of = |words: &[&str], env: &[(&str, &str)]| add(words, env).unwrap();
    let theirs =
        of(&["q", "-m", "busybox", "-c", "true", "--outputs", "out", "-w"], &[("API_SERVER_ADDRESS", "http://a:1")]);
    assert_eq!(theirs, of(&["q", "-i", "busybox", "-c", "true", "-o", "out", "-w", "--api", "http://a:1"], &[]));
    assert_eq!(of(&["-"], &[("CQ_QUEUE", "q"), ("CQ_API", "http://a:1")]), of(&["q", "-", "--api=http://a:1"], &[]));
    assert_eq!(of(&["--queue", "q", "--image", "a"], &[]), of(&["q", "--image", "a"], &[]));
    assert!(of(&["q", "-o", "out"], &[]).output_dir.is_some(), "without --wait it only has no effect");
    let own = [("GRIDSOCKET_API", "http://b:1"), ("CQ_API", "http://a:1")];
    assert_eq!(of(&["q"], &own).target.api, "http://b:1");
    for (theirs, ours) in [("submit", "add"), ("ls", "list")] {
        let name = |word: &str| format!("{:?}", parse(&[word, "q"])).split('(').next().unwrap().to_owned();
        assert_eq!(name(theirs), name(ours));
    }
    for (theirs, ours) in [("wait", "await"), ("get", "result")] {
        let name =
            |word: &str| format!("{:?}", parse(&[word, "--queue", "q", ID])).split('(').next().unwrap().to_owned();
        assert_eq!(name(theirs), name(ours));
    }
}

#[test]
fn an_image_may_be_built_from_a_repository_or_a_dockerfile() {
    let build = |words: &[&str]| spec(words).build.unwrap();
    let git = build(&["q", "-r", "https://github.com/o/r#main", "--target", "t", "--build-arg", "A=1"]);
    assert_eq!(git.fields, [("context", "https://github.com/o/r#main".to_owned()), ("target", "t".to_owned())]);
    assert_eq!(git.args, ["A=1"]);
    assert_eq!(build(&["q", "--context", "https://h/x.tgz"]).fields[0].0, "context");
    assert_eq!(build(&["q", "--dockerfile", "D"]).dockerfile, Some("D".into()));
    let refused = |words: &[&str]| add(words, &[]).unwrap_err().place;
    assert_eq!(refused(&["q", "--git", "git@github.com:o/r"]), "--git");
    assert_eq!(refused(&["q", "--target", "t"]), "--git");
    assert_eq!(refused(&["q", "--git", "https://h/x", "-m", "busybox"]), "--image");
    assert_eq!(refused(&["q", "--git", "https://h/x", "--build-arg", "A"]), "--build-arg");
}

#[test]
fn lines_come_from_a_file_or_from_standard_input() {
    let from = |words: &[&str]| add(&[&["q"], words].concat(), &[]).map(|settings| settings.source);
    assert_eq!(from(&["--from", "a.jsonl"]), Ok(Source::Lines(Some("a.jsonl".into()))));
    assert_eq!(from(&["--from", "-"]), Ok(Source::Lines(None)));
    assert_eq!(from(&["--from", "-", "--image", "x"]).unwrap_err().place, "--image");
    assert_eq!(from(&["-", "--from", "a"]).unwrap_err().place, "-");
    for words in [["--namespace", "n"], ["--array", "0-9"], ["--output-dir", "o"]] {
        let all = [&["gridsocket", "job", "add", "q", "--wait", "--from", "a"][..], &words].concat();
        assert!(Cli::try_parse_from(all).is_err(), "{words:?}");
    }
}

#[test]
fn an_array_is_a_range_of_numbers() {
    let array = |text: &str| add(&["q", "--array", text], &[]).map(|settings| settings.array);
    assert_eq!(array("0-99:2").unwrap().unwrap().count(), 50);
    for bad in ["9", "9-0", "0-9:0", "0-10000", "a-b"] {
        assert_eq!(array(bad).unwrap_err().place, "--array", "{bad}");
    }
    assert!(add(&["q", "-", "--array", "1-2"], &[]).is_ok(), "also for a definition on standard input");
}

#[test]
fn an_explanation_is_for_people_unless_json_is_asked_for() {
    let Command::Explain(explain) = parse(&["explain", "q", ID, "--json"]) else { panic!("another command") };
    assert!(explain.json && explain.one.settings(&|_| None).unwrap().0.queue.as_str() == "q");
}

#[test]
fn what_cannot_be_used_is_refused_with_the_flag_and_the_rule() {
    let cases: [(&[&str], &str); 11] = [
        (&["q", "--cpus", "0"], "--cpus"),
        (&["q", "--cpus", "inf"], "--cpus"),
        (&["q", "--gpus", "half"], "--gpus"),
        (&["q", "--memory", "much"], "--memory"),
        (&["q", "--max-duration", "soon"], "--max-duration"),
        (&["q", "--env", "NAME"], "--env"),
        (&["q", "--env", "=x"], "--env"),
        (&["q", "--file", "../x=/etc/hosts"], "--file"),
        (&["q", "--file", "/x=/etc/hosts"], "--file"),
        (&["q", "--file", "a/x", "--file", "b/x"], "--file"),
        (&["a/b"], "queue"),
    ];
    for (words, place) in cases {
        let refused = add(words, &[]).unwrap_err();
        assert_eq!(refused.place, place, "{words:?}");
        assert!(refused.problem.len() > 10, "{refused}");
    }
}

#[test]
fn an_id_has_64_digits() {
    let Command::Result(one) = parse(&["result", "q", "abc"]) else { panic!("another command") };
    assert!(one.settings(&|_| None).unwrap_err().problem.contains("64"));
}
