//! The request that makes a run's container. Pure: its shape is what jobs rely on.

use std::collections::HashMap;

use bollard::models::{ContainerCreateBody, DeviceRequest, HostConfig};
use protocol::definition::{CommandLine, Definition};
use protocol::id::{QueueName, WorkerId};
use protocol::native::HeldRun;
use protocol::shell::{ShellError, parse_command};

use super::names::{LABEL, LABEL_GPUS, LABEL_ID, LABEL_QUEUE, LABEL_RUN, LABEL_WORKER};
use crate::config::{ApiAddress, JobLimits};
use crate::files::RunDirs;
use crate::state_machine::slots::Share;

/// The least that the engine takes as a CPU limit, in thousandths.
const CPUS_MILLI_MIN: u32 = 10;
const NANOS_PER_MILLI: i64 = 1_000_000;

/// What a container is made from.
pub(crate) struct Plan<'a> {
    pub(crate) definition: &'a Definition,
    pub(crate) image: &'a str,
    pub(crate) run: HeldRun,
    pub(crate) worker: &'a WorkerId,
    pub(crate) queue: &'a QueueName,
    pub(crate) api: &'a ApiAddress,
    pub(crate) dirs: &'a RunDirs,
    pub(crate) share: &'a Share,
    pub(crate) limits: JobLimits,
    pub(crate) no_new_privileges: bool,
    pub(crate) network: &'a str,
    /// The volume that the queue's jobs share.
    pub(crate) cache: &'a str,
    /// User and group of the worker.
    pub(crate) user: (u32, u32),
    pub(crate) host_cpus: u32,
}

/// Why a definition makes no request.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RequestError {
    #[error("{field}: {source}")]
    Command { field: &'static str, source: ShellError },
    #[error("configFiles: the absolute name {name:?} holds a colon, which the container engine cannot mount")]
    ColonInMount { name: String },
}

/// The request for `plan`.
pub(crate) fn create_request(plan: &Plan<'_>) -> Result<ContainerCreateBody, RequestError> {
    let definition = plan.definition;
    Ok(ContainerCreateBody {
        image: Some(plan.image.to_owned()),
        cmd: argv("command", definition.command.as_ref(), &definition.env)?,
        entrypoint: argv("entrypoint", definition.entrypoint.as_ref(), &definition.env)?,
        working_dir: definition.workdir.clone(),
        user: Some(format!("{}:{}", plan.user.0, plan.user.1)),
        tty: Some(false),
        attach_stdout: Some(true),
        attach_stderr: Some(true),
        env: Some(env(plan)),
        labels: Some(labels(plan)),
        host_config: Some(host_config(plan)?),
        ..ContainerCreateBody::default()
    })
}

fn argv(
    field: &'static str,
    line: Option<&CommandLine>,
    env: &[(String, String)],
) -> Result<Option<Vec<String>>, RequestError> {
    let argv = match line {
        None => return Ok(None),
        Some(CommandLine::Argv(argv)) => argv.clone(),
        Some(CommandLine::Text(text)) => {
            parse_command(text, env).map_err(|source| RequestError::Command { field, source })?
        }
    };
    Ok(if argv.is_empty() { None } else { Some(argv) })
}

/// The job's own variables first, in their order, then those it may rely on, which it cannot replace.
fn env(plan: &Plan<'_>) -> Vec<String> {
    let prefix = format!("{}/j/{}", plan.api, plan.run.job);
    let mut fixed = vec![
        ("JOB_ID", plan.run.job.to_string()),
        ("JOB_INPUTS", "/inputs".to_owned()),
        ("JOB_OUTPUTS", "/outputs".to_owned()),
        ("JOB_CACHE", "/job-cache".to_owned()),
        ("JOB_URL_PREFIX", prefix.clone()),
        ("JOB_OUTPUTS_URL_PREFIX", format!("{prefix}/outputs/")),
        ("JOB_INPUTS_URL_PREFIX", format!("{prefix}/inputs/")),
    ];
    if !plan.share.gpus.is_empty() {
        // Inside, the devices given are numbered from 0.
        let indices: Vec<String> = (0..plan.share.gpus.len()).map(|index| index.to_string()).collect();
        fixed.push(("CUDA_VISIBLE_DEVICES", indices.join(",")));
    }
    let is_own = |name: &str| !fixed.iter().any(|(fixed, _)| *fixed == name);
    let own =
        plan.definition.env.iter().filter(|(name, _)| is_own(name)).map(|(name, value)| format!("{name}={value}"));
    own.chain(fixed.iter().map(|(name, value)| format!("{name}={value}"))).collect()
}

fn labels(plan: &Plan<'_>) -> HashMap<String, String> {
    HashMap::from([
        (LABEL.to_owned(), "true".to_owned()),
        (LABEL_WORKER.to_owned(), plan.worker.to_string()),
        (LABEL_ID.to_owned(), plan.run.job.to_string()),
        (LABEL_QUEUE.to_owned(), plan.queue.to_string()),
        (LABEL_RUN.to_owned(), plan.run.run.to_string()),
        (LABEL_GPUS.to_owned(), plan.share.gpus.join(",")),
    ])
}

fn host_config(plan: &Plan<'_>) -> Result<HostConfig, RequestError> {
    let memory = at_most(plan.definition.requirements.memory, plan.limits.memory_bytes);
    let memory = memory.map(|bytes| i64::try_from(bytes).unwrap_or(i64::MAX));
    let gpus = &plan.share.gpus;
    let device_requests = (!gpus.is_empty()).then(|| {
        vec![DeviceRequest {
            driver: Some("nvidia".to_owned()),
            device_ids: Some(gpus.clone()),
            capabilities: Some(vec![vec!["gpu".to_owned()]]),
            ..DeviceRequest::default()
        }]
    });
    Ok(HostConfig {
        network_mode: Some(plan.network.to_owned()),
        binds: Some(binds(plan)?),
        shm_size: plan.definition.shm_bytes().map(|bytes| i64::try_from(bytes).unwrap_or(i64::MAX)),
        device_requests,
        nano_cpus: nano_cpus(plan),
        memory,
        // Equal: no swap on top.
        memory_swap: memory,
        pids_limit: plan.limits.pids.map(i64::from),
        security_opt: plan.no_new_privileges.then(|| vec!["no-new-privileges".to_owned()]),
        ..HostConfig::default()
    })
}

fn nano_cpus(plan: &Plan<'_>) -> Option<i64> {
    let milli = at_most(plan.definition.needs().cpus_milli, plan.limits.cpus_milli)?;
    let milli = milli.min(plan.host_cpus.saturating_mul(1000)).max(CPUS_MILLI_MIN);
    Some(i64::from(milli) * NANOS_PER_MILLI)
}

/// What is asked for, but not more than the limit; the limit when nothing is asked for.
fn at_most<T: Ord>(asked: Option<T>, limit: Option<T>) -> Option<T> {
    match (asked, limit) {
        (Some(asked), Some(limit)) => Some(asked.min(limit)),
        (asked, limit) => asked.or(limit),
    }
}

fn binds(plan: &Plan<'_>) -> Result<Vec<String>, RequestError> {
    let bind = |host: &std::path::Path, inside: &str| format!("{}:{inside}:Z", host.display());
    let mut binds = vec![bind(&plan.dirs.inputs, "/inputs"), bind(&plan.dirs.outputs, "/outputs")];
    for (name, _) in plan.definition.config_files.iter().filter(|(name, _)| name.starts_with('/')) {
        if name.contains(':') {
            return Err(RequestError::ColonInMount { name: name.clone() });
        }
        binds.push(bind(&plan.dirs.config_file(name), name));
    }
    binds.push(format!("{}:/job-cache:Z", plan.cache));
    Ok(binds)
}

#[cfg(test)]
mod tests {
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
        let mut plan = Plan {
            definition: &definition,
            image: "python:3.12-slim",
            run: HeldRun { job: JobId::from_bytes([0xa4; 32]), run: 2 },
            worker: &worker,
            queue: &queue,
            api: &api,
            dirs: &dirs,
            share: &share,
            limits: JobLimits::default(),
            no_new_privileges: false,
            network: super::super::names::NETWORK,
            cache: "the-queues-cache",
            user: (0, 0),
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
                    "container.mtfm.io/run": "2", "container.mtfm.io/gpus": "3"},
                "HostConfig": {
                    "NetworkMode": "metaframe-container-worker-network",
                    "Binds": ["/d/j/a/1/inputs:/inputs:Z", "/d/j/a/1/outputs:/outputs:Z",
                        "/d/j/a/1/configFiles/etc/app.toml:/etc/app.toml:Z",
                        "the-queues-cache:/job-cache:Z"],
                    "ShmSize": 2_147_483_648_i64,
                    "DeviceRequests": [{"Driver": "nvidia", "DeviceIDs": ["3"], "Capabilities": [["gpu"]]}],
                },
            })
        );
    }

    #[test]
    fn limits_are_the_jobs_own_under_the_workers_caps() {
        let host = |definition: Value, limits: JobLimits| {
            request(definition, |plan| plan.limits = limits).unwrap()["HostConfig"].clone()
        };
        let stated = json!({"image": "i", "requirements": {"cpus": 1.5, "memory": "1g"}});
        let config = host(stated.clone(), JobLimits::default());
        assert_eq!((&config["NanoCpus"], &config["Memory"]), (&json!(1_500_000_000), &json!(1 << 30)));
        assert_eq!(config["MemorySwap"], config["Memory"]);
        assert_eq!(config["PidsLimit"], Value::Null);
        let caps = JobLimits { cpus_milli: Some(500), memory_bytes: Some(1 << 20), pids: Some(64) };
        for definition in [stated, json!({"image": "i"})] {
            let config = host(definition, caps);
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
    fn no_new_privileges_only_when_the_worker_asks() {
        assert_eq!(request(json!({"image": "i"}), |_| {}).unwrap()["HostConfig"]["SecurityOpt"], Value::Null);
        let asked = request(json!({"image": "i"}), |plan| plan.no_new_privileges = true).unwrap();
        assert_eq!(asked["HostConfig"]["SecurityOpt"], json!(["no-new-privileges"]));
    }

    #[test]
    fn a_colon_in_a_mount_and_an_unreadable_command_are_refused() {
        let colon = json!({"image": "i", "configFiles": {"/etc/x:rw": {"type": "utf8", "value": ""}}});
        assert!(matches!(request(colon, |_| {}), Err(RequestError::ColonInMount { .. })));
        let substitution = json!({"image": "i", "command": "echo ${"});
        assert!(matches!(request(substitution, |_| {}), Err(RequestError::Command { field: "command", .. })));
    }
}
