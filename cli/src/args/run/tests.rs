//! What the worker's words come to.

use std::path::Path;
use std::time::Duration;

use clap::Parser;
use worker::config::{GpuSpec, Isolation, JobLimits, JobUser};

use super::*;
use crate::args::{Cli, Command};

fn settings(words: &[&str], env: &[(&str, &str)]) -> Result<Settings, UsageError> {
    let cli = Cli::try_parse_from([&["gridsocket", "run"], words].concat()).unwrap();
    let Some(Command::Run(args)) = cli.command else { panic!("another command") };
    args.settings(&|name| env.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned()))
}

fn remote(words: &[&str], env: &[(&str, &str)]) -> Remote {
    match settings(words, env).unwrap() {
        Settings::Remote(remote) => *remote,
        Settings::Local(_) => panic!("local"),
    }
}

fn local(words: &[&str], env: &[(&str, &str)]) -> local::Settings {
    match settings(words, env).unwrap() {
        Settings::Local(local) => *local,
        Settings::Remote(_) => panic!("remote"),
    }
}

/// All that can be set, as text, so that a whole worker can be compared at once.
fn summary(remote: &Remote) -> Vec<String> {
    let worker = &remote.worker;
    vec![
        worker.queues.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "),
        worker.api.to_string(),
        worker.cpus.to_string(),
        format!("{:?}", worker.gpus),
        worker.data_directory.display().to_string(),
        worker.max_job_duration_ms.to_string(),
        format!("{:?}", worker.id),
        format!("{:?}", worker.memory_bytes),
        worker.tags.join(","),
        format!("{:?}", worker.limits),
        format!("{:?}", worker.isolation),
        format!("{:?}", worker.network),
        format!("{:?}", remote.on_exit),
        remote.debug.to_string(),
    ]
}

#[test]
fn the_defaults_are_those_of_existing_deployments() {
    let expected = [
        "q",
        "https://container.mtfm.io",
        "1",
        "Count(0)",
        "/tmp/worker-metapage-io/remote",
        "300000",
        "Kept",
        "None",
        "",
        &format!("{:?}", JobLimits::default()),
        &format!("{:?}", Isolation::default()),
        "None",
        "Leave",
        "false",
    ];
    assert_eq!(summary(&remote(&["q"], &[])), expected);
}

const ENV: [(&str, &str); 26] = [
    ("METAPAGE_IO_WORKER_QUEUE", "from-env"),
    ("METAPAGE_IO_WORKER_MODE", "remote"),
    ("METAPAGE_IO_WORKER_API_ADDRESS", "http://env:1/"),
    ("METAPAGE_IO_WORKER_CPUS", "2"),
    ("METAPAGE_IO_WORKER_GPUS", "1"),
    ("METAPAGE_IO_WORKER_DATA_DIRECTORY", "/env"),
    ("METAPAGE_IO_WORKER_JOB_MAX_DURATION", "1h"),
    ("METAPAGE_IO_WORKER_ID", "env-id"),
    ("METAPAGE_IO_WORKER_MEMORY", "1g"),
    ("METAPAGE_IO_WORKER_TAGS", "env"),
    ("METAPAGE_IO_WORKER_JOB_CPUS", "1"),
    ("METAPAGE_IO_WORKER_JOB_MEMORY", "1g"),
    ("METAPAGE_IO_WORKER_JOB_PIDS", "1"),
    ("METAPAGE_IO_WORKER_JOB_SHM", "1m"),
    ("METAPAGE_IO_WORKER_JOB_DISK", "1g"),
    ("METAPAGE_IO_WORKER_JOB_CACHE", "1g"),
    ("METAPAGE_IO_WORKER_JOB_ULIMITS", "core=0"),
    ("METAPAGE_IO_WORKER_NO_NEW_PRIVILEGES", "false"),
    ("METAPAGE_IO_WORKER_DROP_CAPABILITIES", "none"),
    ("METAPAGE_IO_WORKER_WRITABLE_INPUTS", "true"),
    ("METAPAGE_IO_WORKER_USER", "image"),
    ("METAPAGE_IO_WORKER_RUNTIME", "env"),
    ("METAPAGE_IO_WORKER_CGROUP_PARENT", "env.slice"),
    ("METAPAGE_IO_WORKER_NETWORK", "env"),
    ("METAPAGE_IO_WORKER_ON_EXIT", "kill"),
    ("METAPAGE_IO_WORKER_DEBUG", "true"),
];

#[test]
fn a_drain_has_a_limit_by_flag_variable_and_the_longest_job() {
    let drain = |seconds| ShutdownMode::Drain { limit: Duration::from_secs(seconds) };
    let on_exit = |words: &[&str], env: &[(&str, &str)]| remote(&[&["q"], words].concat(), env).on_exit;
    let limit = [("METAPAGE_IO_WORKER_DRAIN_TIMEOUT", "7m")];
    assert_eq!(on_exit(&["--drain", "-t", "90s"], &[]), drain(90));
    assert_eq!(on_exit(&["--drain-timeout", "20s"], &[]), drain(20));
    assert_eq!(on_exit(&["--drain-timeout", "20s"], &limit), drain(20));
    assert_eq!(on_exit(&["--drain"], &limit), drain(420));
    assert_eq!(on_exit(&["--on-exit=drain=10m"], &limit), drain(600));
    // It is no word on whether to drain where that is said otherwise.
    assert_eq!(on_exit(&[], &limit), ShutdownMode::Leave);
    assert_eq!(on_exit(&["--on-exit=leave", "--drain-timeout=20s"], &[]), ShutdownMode::Leave);
    assert_eq!(remote(&["q", "--min-free-disk=0"], &[]).worker.min_free_disk_bytes, 0);
    assert_eq!(remote(&["q"], &[("METAPAGE_IO_WORKER_MIN_FREE_DISK", "5g")]).worker.min_free_disk_bytes, 5 << 30);
    assert_eq!(remote(&["q"], &[]).worker.min_free_disk_bytes, 1 << 30);
}

#[test]
fn every_variable_wins_over_its_default() {
    let limits = JobLimits {
        cpus_milli: Some(1000),
        memory_bytes: Some(1 << 30),
        pids: Some(1),
        shm_bytes: Some(1 << 20),
        disk_bytes: Some(1 << 30),
        cache_bytes: Some(1 << 30),
        ulimits: vec!["core=0".parse().unwrap()],
    };
    let isolation = Isolation {
        no_new_privileges: false,
        drop_capabilities: "none".parse().unwrap(),
        has_writable_inputs: true,
        user: JobUser::Image,
        runtime: Some("env".to_owned()),
        cgroup_parent: Some("env.slice".to_owned()),
    };
    let expected = [
        "from-env",
        "http://env:1",
        "2",
        "Count(1)",
        "/env/remote",
        "3600000",
        "Given(WorkerId(\"env-id\"))",
        "Some(1073741824)",
        "env",
        &format!("{limits:?}"),
        &format!("{isolation:?}"),
        "Some(\"env\")",
        "Kill",
        "true",
    ];
    assert_eq!(summary(&remote(&[], &ENV)), expected);
}

#[test]
fn every_flag_wins_over_its_variable() {
    let words = [
        "from-flag",
        "-c",
        "3",
        "--gpus=device=0,2",
        "--mode=remote",
        "-a",
        "http://flag:2",
        "-d",
        "/flag",
        "-t",
        "90",
        "--id",
        "flag-id",
        "--memory",
        "2g",
        "--tags",
        "a,b",
        "--job-cpus",
        "2",
        "--job-memory",
        "2g",
        "--job-pids",
        "2",
        "--job-shm=2m",
        "--job-disk=2g",
        "--job-cache=2g",
        "--job-ulimits=nofile=1:2",
        "--no-new-privileges",
        "--drop-capabilities=all",
        "--writable-inputs=false",
        "--user=7:8",
        "--runtime=runsc",
        "--cgroup-parent=flag.slice",
        "--network",
        "flag",
        "--drain",
        "--debug=false",
    ];
    let limits = JobLimits {
        cpus_milli: Some(2000),
        memory_bytes: Some(2 << 30),
        pids: Some(2),
        shm_bytes: Some(2 << 20),
        disk_bytes: Some(2 << 30),
        cache_bytes: Some(2 << 30),
        ulimits: vec!["nofile=1:2".parse().unwrap()],
    };
    let isolation = Isolation {
        no_new_privileges: true,
        drop_capabilities: "all".parse().unwrap(),
        has_writable_inputs: false,
        user: JobUser::Fixed { user: 7, group: 8 },
        runtime: Some("runsc".to_owned()),
        cgroup_parent: Some("flag.slice".to_owned()),
    };
    let expected = [
        "from-flag",
        "http://flag:2",
        "3",
        "Devices([\"0\", \"2\"])",
        "/flag/remote",
        "90",
        "Given(WorkerId(\"flag-id\"))",
        "Some(2147483648)",
        "a,b",
        &format!("{limits:?}"),
        &format!("{isolation:?}"),
        "Some(\"flag\")",
        &format!("{:?}", ShutdownMode::Drain { limit: Duration::from_millis(90) }),
        "false",
    ];
    assert_eq!(summary(&remote(&words, &ENV)), expected);
}

#[test]
fn local_mode_is_the_local_command() {
    let env = [
        ("METAPAGE_IO_WORKER_MODE", "local"),
        ("METAPAGE_IO_WORKER_PORT", "9001"),
        ("METAPAGE_IO_WORKER_CPUS", "2"),
        ("HOME", "/h"),
    ];
    let from_env = local(&["ignored"], &env);
    assert_eq!(
        (from_env.port, from_env.worker.cpus, from_env.worker.queues),
        (9001, 2, vec!["local".parse().unwrap()])
    );
    assert_eq!(from_env.broker.data, Path::new("/h/.local/share/gridsocket/local/broker"));
    assert_eq!(local(&["-p", "9002", "-m", "local"], &env).port, 9002);
    assert_eq!(remote(&["-m", "remote", "q"], &env).worker.queues, ["q".parse().unwrap()]);
}

#[test]
fn a_fresh_id_is_asked_for_by_any_text_and_a_given_id_wins() {
    let id = |words: &[&str], value: &'static str| remote(words, &[(GENERATE_ID, value)]).worker.id;
    assert_eq!(id(&["q"], "1"), Identity::Fresh);
    assert_eq!(id(&["q"], ""), Identity::Kept);
    assert_eq!(id(&["q", "--id", "a"], "1"), Identity::Given("a".parse().unwrap()));
}

#[test]
fn the_gpu_flag_without_a_value_leaves_the_word_to_the_variable() {
    assert_eq!(remote(&["q", "--gpus"], &[("METAPAGE_IO_WORKER_GPUS", "all")]).worker.gpus, GpuSpec::All);
    assert_eq!(remote(&["q", "--gpus"], &[]).worker.gpus, GpuSpec::Count(0));
    // The oldest deployments' way to say it.
    assert_eq!(remote(&["q", "--gpus=true"], &[]).worker.gpus, GpuSpec::Any);
}

#[test]
fn several_queues_are_words_or_stand_in_the_variable_with_commas_between() {
    let queues = |words: &[&str], value: &'static str| {
        settings(words, &[("METAPAGE_IO_WORKER_QUEUE", value)]).map(|settings| match settings {
            Settings::Remote(remote) => remote.worker.queues.iter().map(ToString::to_string).collect::<Vec<_>>(),
            Settings::Local(_) => panic!("local"),
        })
    };
    assert_eq!(queues(&["a", "b,c"], "d,e").unwrap(), ["a", "b,c"]);
    assert_eq!(queues(&[], "d").unwrap(), ["d"]);
    assert_eq!(queues(&[], " d , e").unwrap(), ["d", "e"]);
    let refused = |words: &[&str], value| queues(words, value).unwrap_err();
    assert_eq!(refused(&[], "d,,e").place, "METAPAGE_IO_WORKER_QUEUE");
    assert_eq!(refused(&[], "d,e/f").place, "METAPAGE_IO_WORKER_QUEUE");
    let twice = "the queue 3 is the same as the queue 1: name each queue once";
    assert_eq!(refused(&[], "d,e,d").to_string(), format!("METAPAGE_IO_WORKER_QUEUE: {twice}"));
    assert_eq!(refused(&["d", "e", "d"], "").to_string(), format!("queue: {twice}"));
    let many: Vec<String> = (0..65).map(|number| number.to_string()).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    assert!(refused(&many, "").problem.contains("64"));
    assert_eq!(refused(&["a", "b/c"], "").place, "queue");
}

#[test]
fn the_oldest_deployments_name_their_queue_by_a_flag() {
    let oldest = remote(&["--cpus=2", "--queue=public1", "--gpus=true"], &[]);
    assert_eq!((oldest.worker.queues, oldest.worker.cpus), (vec!["public1".parse().unwrap()], 2));
    let both = remote(&["a", "--queue", "b"], &[("METAPAGE_IO_WORKER_QUEUE", "c")]).worker.queues;
    assert_eq!(both.iter().map(ToString::to_string).collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(settings(&["--queue=a/b"], &[]).unwrap_err().place, "--queue");
}

#[test]
fn what_cannot_be_used_is_refused_with_the_place_and_the_rule() {
    let cases: [(&[&str], &str); 16] = [
        (&[], "queue"),
        (&["a/b"], "queue"),
        (&["q", "--cpus", "0"], "--cpus"),
        (&["q", "--cpus", "x"], "--cpus"),
        (&["q", "-t", "soon"], "--max-job-duration"),
        (&["q", "-t", "0"], "--max-job-duration"),
        (&["q", "-a", "broker"], "--api-address"),
        (&["q", "-m", "both"], "--mode"),
        (&["q", "-g", "GPU"], "--gpus"),
        (&["q", "--job-disk", "much"], "--job-disk"),
        (&["q", "--job-ulimits", "files=1"], "--job-ulimits"),
        (&["q", "--drop-capabilities", "NET-RAW"], "--drop-capabilities"),
        (&["q", "--user", "me"], "--user"),
        (&["q", "--runtime", "a b"], "--runtime"),
        (&["q", "--cgroup-parent", "../.."], "--cgroup-parent"),
        (&["-m", "local", "-p", "99999"], "--port"),
    ];
    for (words, place) in cases {
        let refused = settings(words, &[]).unwrap_err();
        assert_eq!(refused.place, place, "{words:?}");
        assert!(refused.problem.len() > 20, "{refused}");
    }
    assert_eq!(settings(&["q"], &[("METAPAGE_IO_WORKER_CPUS", "-1")]).unwrap_err().place, "METAPAGE_IO_WORKER_CPUS");
}
