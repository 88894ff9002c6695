//! The request's shape, field by field.

use std::path::Path;

use protocol::id::JobId;
use serde_json::{Value, json};

use super::*;

fn request(definition: Value, change: impl FnOnce(&mut Plan<'_>)) -> Result<Value, RequestError> {
    let definition = Definition::parse(definition.to_string().as_bytes()).unwrap();
    let (worker, queue) = ("7d0c".parse().unwrap(), "my-queue".parse().unwrap());
    let api = "https://api.example".parse().unwrap();
    let dirs = RunDirs::at(Path::new("/d/j/a/1"));
    let share = Share { gpus: vec!["3".to_owned()], ..Share::default() };
    let (limits, isolation) = (JobLimits::default(), Isolation::default());
    let mut plan = Plan {
        definition: &definition,
        image: "python:3.12-slim",
        run: HeldRun { job: JobId::from_bytes([0xa4; 32]), run: 2 },
        worker: &worker,
        queue: &queue,
        api: &api,
        data: "/d",
        dirs: &dirs,
        share: &share,
        limits: &limits,
        isolation: &isolation,
        hides_gpus: true,
        network: super::super::names::NETWORK,
        cache: "the-queues-cache",
        user: Some((0, 0)),
        host_cpus: 2,
    };
    change(&mut plan);
    create_request(&plan).map(|body| serde_json::to_value(body).unwrap())
}

#[test]
fn the_request_is_what_jobs_rely_on() {
    let definition = json!({
        "image": "python:3.12-slim", "command": "python /inputs/run.py", "entrypoint": ["sh", "-c"],
        "workdir": "/work", "shmSize": "2g", "env": {"FOO": "bar", "JOB_ID": "mine"},
        "configFiles": {"/etc/app.toml": {"type": "utf8", "value": "x"}},
        "requirements": {"gpus": 1},
    });
    let job = "a4".repeat(32);
    assert_eq!(
        request(definition, |_| {}).unwrap(),
        json!({
            "Image": "python:3.12-slim",
            "Cmd": ["python", "/inputs/run.py"],
            "Entrypoint": ["sh", "-c"],
            "WorkingDir": "/work",
            "User": "0:0",
            "Tty": false, "AttachStdout": true, "AttachStderr": true,
            "Env": ["FOO=bar", format!("JOB_ID={job}"), "JOB_INPUTS=/inputs", "JOB_OUTPUTS=/outputs",
                "JOB_CACHE=/job-cache", format!("JOB_URL_PREFIX=https://api.example/j/{job}"),
                format!("JOB_OUTPUTS_URL_PREFIX=https://api.example/j/{job}/outputs/"),
                format!("JOB_INPUTS_URL_PREFIX=https://api.example/j/{job}/inputs/"), "CUDA_VISIBLE_DEVICES=0"],
            "Labels": {"container.mtfm.io": "true", "container.mtfm.io/worker": "7d0c",
                "container.mtfm.io/id": job, "container.mtfm.io/queue": "my-queue",
                "container.mtfm.io/run": "2", "container.mtfm.io/data": "/d", "container.mtfm.io/gpus": "3"},
            "HostConfig": {
                "NetworkMode": "metaframe-container-worker-network",
                "Binds": ["/d/j/a/1/inputs:/inputs:ro,Z", "/d/j/a/1/outputs:/outputs:Z",
                    "/d/j/a/1/configFiles/etc/app.toml:/etc/app.toml:Z",
                    "the-queues-cache:/job-cache:z"],
                "ShmSize": 2_147_483_648_i64,
                "DeviceRequests": [{"Driver": "nvidia", "DeviceIDs": ["3"], "Capabilities": [["gpu"]]}],
                "SecurityOpt": ["no-new-privileges"],
                "CapDrop": ["MKNOD", "NET_RAW"],
            },
        })
    );
}

#[test]
fn limits_are_the_jobs_own_under_the_workers_caps() {
    let host = |definition: Value, limits: JobLimits| {
        request(definition, |plan| plan.limits = Box::leak(Box::new(limits))).unwrap()["HostConfig"].clone()
    };
    let stated = json!({"image": "i", "requirements": {"cpus": 1.5, "memory": "1g"}});
    let config = host(stated.clone(), JobLimits::default());
    assert_eq!((&config["NanoCpus"], &config["Memory"]), (&json!(1_500_000_000), &json!(1 << 30)));
    assert_eq!(config["MemorySwap"], config["Memory"]);
    assert_eq!(config["PidsLimit"], Value::Null);
    let caps = JobLimits { cpus_milli: Some(500), memory_bytes: Some(1 << 20), pids: Some(64), ..JobLimits::default() };
    for definition in [stated, json!({"image": "i"})] {
        let config = host(definition, caps.clone());
        assert_eq!((&config["NanoCpus"], &config["Memory"]), (&json!(500_000_000), &json!(1 << 20)));
        assert_eq!(config["PidsLimit"], json!(64));
    }
}

#[test]
fn more_cpus_than_the_machine_has_are_not_asked_of_the_engine() {
    let config = request(json!({"image": "i", "requirements": {"cpus": 64}}), |_| {}).unwrap();
    assert_eq!(config["HostConfig"]["NanoCpus"], json!(2_000_000_000));
}

#[test]
fn what_jobs_do_not_need_is_taken_from_them_unless_the_worker_says_otherwise() {
    let host = |isolation: Isolation| {
        request(json!({"image": "i"}), |plan| plan.isolation = Box::leak(Box::new(isolation))).unwrap()["HostConfig"]
            .clone()
    };
    let config = host(Isolation::default());
    assert_eq!(config["SecurityOpt"], json!(["no-new-privileges"]));
    assert_eq!(config["CapDrop"], json!(["MKNOD", "NET_RAW"]));
    assert_eq!((&config["Runtime"], &config["CgroupParent"]), (&Value::Null, &Value::Null));
    let open = host(Isolation {
        no_new_privileges: false,
        drop_capabilities: "none".parse().unwrap(),
        has_writable_inputs: true,
        runtime: Some("runsc".to_owned()),
        cgroup_parent: Some("/jobs".to_owned()),
        ..Isolation::default()
    });
    assert_eq!((&open["SecurityOpt"], &open["CapDrop"]), (&Value::Null, &Value::Null));
    assert_eq!((&open["Runtime"], &open["CgroupParent"]), (&json!("runsc"), &json!("/jobs")));
    assert_eq!(open["Binds"][0], "/d/j/a/1/inputs:/inputs:Z");
}

#[test]
fn inputs_are_read_only_but_where_a_file_is_mounted_among_them() {
    let inputs = |name: &str| {
        let definition = json!({"image": "i", "configFiles": {name: {"type": "utf8", "value": "x"}}});
        request(definition, |_| {}).unwrap()["HostConfig"]["Binds"][0].clone()
    };
    assert_eq!(inputs("/etc/app.toml"), "/d/j/a/1/inputs:/inputs:ro,Z");
    assert_eq!(inputs("inputs/app.toml"), "/d/j/a/1/inputs:/inputs:ro,Z");
    assert_eq!(inputs("//./inputs/app.toml"), "/d/j/a/1/inputs:/inputs:Z");
}

#[test]
fn devices_go_by_their_driver_and_are_numbered_from_zero_inside() {
    let with = |gpus: &[&str]| {
        let share = Share { gpus: gpus.iter().map(|&gpu| gpu.to_owned()).collect(), ..Share::default() };
        let env = json!({"NVIDIA_VISIBLE_DEVICES": "all", "CUDA_VISIBLE_DEVICES": "0,1,2,3,4,5,6,7"});
        let body = request(json!({"image": "i", "env": env}), |plan| plan.share = Box::leak(Box::new(share))).unwrap();
        let visible = |line: &&Value| line.as_str().is_some_and(|text| text.contains("VISIBLE"));
        let env: Vec<Value> = body["Env"].as_array().unwrap().iter().filter(visible).cloned().collect();
        (body["HostConfig"]["DeviceRequests"].clone(), env)
    };
    let gpu = json!([["gpu"]]);
    let nvidia = json!({"Driver": "nvidia", "DeviceIDs": ["2", "GPU-a"], "Capabilities": gpu});
    assert_eq!(with(&["2", "GPU-a"]), (json!([nvidia]), vec![json!("CUDA_VISIBLE_DEVICES=0,1")]));
    let amd = json!({"Driver": "cdi", "DeviceIDs": ["amd.com/gpu=1"]});
    let (requests, env) = with(&["amd.com/gpu=1"]);
    assert_eq!((requests, &env[1]), (json!([amd]), &json!("HIP_VISIBLE_DEVICES=0")));
    // The image may ask for all of them: the worker's word is the last.
    let (requests, env) = with(&[]);
    assert_eq!(requests, Value::Null);
    assert_eq!(env.last(), Some(&json!("NVIDIA_VISIBLE_DEVICES=void")));
    // Devices by other names are none of NVIDIA's runtime's.
    assert_eq!(with(&["amd.com/gpu=0"]).1.last(), Some(&json!("NVIDIA_VISIBLE_DEVICES=void")));
}

#[test]
fn shm_ulimits_and_disk_are_held_to_the_workers_caps() {
    let limits = JobLimits {
        shm_bytes: Some(1 << 20),
        disk_bytes: Some(1 << 30),
        ulimits: vec!["nofile=10:20".parse().unwrap()],
        ..JobLimits::default()
    };
    let limits: &'static JobLimits = Box::leak(Box::new(limits));
    let host = |definition: Value| request(definition, |plan| plan.limits = limits).unwrap()["HostConfig"].clone();
    let config = host(json!({"image": "i", "shmSize": "2g"}));
    assert_eq!(config["ShmSize"], json!(1 << 20));
    assert_eq!(config["StorageOpt"], json!({"size": "1073741824"}));
    assert_eq!(config["Ulimits"], json!([{"Name": "nofile", "Soft": 10, "Hard": 20}]));
    assert_eq!(host(json!({"image": "i"}))["ShmSize"], Value::Null);
}

#[test]
fn a_colon_in_a_mount_and_an_unreadable_command_are_refused() {
    let colon = json!({"image": "i", "configFiles": {"/etc/x:rw": {"type": "utf8", "value": ""}}});
    assert!(matches!(request(colon, |_| {}), Err(RequestError::ColonInMount { .. })));
    let substitution = json!({"image": "i", "command": "echo ${"});
    assert!(matches!(request(substitution, |_| {}), Err(RequestError::Command { field: "command", .. })));
}

#[test]
fn a_job_cannot_say_by_its_environment_which_gpus_it_has() {
    let env = json!({
        "CUDA_VISIBLE_DEVICES": "7", "CUDA_VISIBLE_DEVICES=7": "", "NVIDIA_VISIBLE_DEVICES": "all", "NVIDIA_VISIBLE_DEVICES=all": "x",
        "JOB_ID=mine": "", "OWN=a": "b",
    });
    let made = request(json!({ "image": "x", "env": env, "requirements": { "gpus": 1 } }), |_| {}).unwrap();
    let made: Vec<&str> = made["Env"].as_array().unwrap().iter().map(|line| line.as_str().unwrap()).collect();
    let of = |name: &str| made.iter().copied().filter(|line| line.split('=').next() == Some(name)).collect::<Vec<_>>();
    // Of two lines for one name some programs take the first, and some the last.
    assert_eq!(of("CUDA_VISIBLE_DEVICES"), ["CUDA_VISIBLE_DEVICES=0"]);
    assert_eq!((of("NVIDIA_VISIBLE_DEVICES").len(), of("JOB_ID").len()), (0, 1));
    assert_eq!(of("OWN"), ["OWN=a=b"]);
}
