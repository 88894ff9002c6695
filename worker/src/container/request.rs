//! The request that makes a run's container. Pure: its shape is what jobs rely on.

mod host;

use std::collections::HashMap;

use bollard::models::ContainerCreateBody;
use protocol::definition::{CommandLine, Definition};
use protocol::id::{QueueName, WorkerId};
use protocol::native::HeldRun;
use protocol::shell::{ShellError, parse_command};

use super::names::{LABEL, LABEL_DATA, LABEL_GPUS, LABEL_ID, LABEL_QUEUE, LABEL_RUN, LABEL_WORKER};
use crate::config::{ApiAddress, Isolation, JobLimits, is_cdi};
use crate::files::RunDirs;
use crate::state_machine::slots::Share;

/// Tells NVIDIA's runtime which devices to give.
const NVIDIA_DEVICES: &str = "NVIDIA_VISIBLE_DEVICES";

/// What a container is made from.
pub(crate) struct Plan<'a> {
    pub(crate) definition: &'a Definition,
    pub(crate) image: &'a str,
    pub(crate) run: HeldRun,
    pub(crate) worker: &'a WorkerId,
    pub(crate) queue: &'a QueueName,
    pub(crate) api: &'a ApiAddress,
    /// The worker's data directory.
    pub(crate) data: &'a str,
    pub(crate) dirs: &'a RunDirs,
    pub(crate) share: &'a Share,
    pub(crate) limits: &'a JobLimits,
    pub(crate) isolation: &'a Isolation,
    /// Whether there are GPUs that a container could get at without being given any.
    pub(crate) hides_gpus: bool,
    pub(crate) network: &'a str,
    /// The volume that the queue's jobs share.
    pub(crate) cache: &'a str,
    /// User and group in the container; `None`: whom the image names.
    pub(crate) user: Option<(u32, u32)>,
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
        user: plan.user.map(|(user, group)| format!("{user}:{group}")),
        tty: Some(false),
        attach_stdout: Some(true),
        attach_stderr: Some(true),
        env: Some(env(plan)),
        labels: Some(labels(plan)),
        host_config: Some(host::config(plan)?),
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
    let gpus = &plan.share.gpus;
    if !gpus.is_empty() {
        // Inside, the devices given are numbered from 0.
        let indices: Vec<String> = (0..gpus.len()).map(|index| index.to_string()).collect();
        let is_amd = gpus.iter().all(|gpu| gpu.starts_with("amd.com/"));
        fixed.push((if is_amd { "HIP_VISIBLE_DEVICES" } else { "CUDA_VISIBLE_DEVICES" }, indices.join(",")));
    }
    if plan.hides_gpus && gpus.iter().all(|gpu| is_cdi(gpu)) {
        // NVIDIA's runtime gives none of these. Images and jobs can say `all` here, which NVIDIA's runtime would give them.
        fixed.push((NVIDIA_DEVICES, "void".to_owned()));
    }
    // Where devices are given, the engine says which. A name ends at its first `=`, whatever a definition says.
    let is_own = |name: &str| {
        let name = name.split('=').next().unwrap_or(name);
        name != NVIDIA_DEVICES && !fixed.iter().any(|(fixed, _)| *fixed == name)
    };
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
        (LABEL_DATA.to_owned(), plan.data.to_owned()),
        (LABEL_GPUS.to_owned(), plan.share.gpus.join(",")),
    ])
}

#[cfg(test)]
mod tests;
