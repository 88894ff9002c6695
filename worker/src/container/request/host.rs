//! What a container may have of the host: limits, devices, mounts, rights.

use std::collections::HashMap;
use std::path::Path;

use bollard::models::{DeviceRequest, HostConfig, ResourcesUlimits};
use protocol::definition::Definition;

use super::{Plan, RequestError};
use crate::config::is_cdi;

/// The least that the engine takes as a CPU limit, in thousandths.
const CPUS_MILLI_MIN: u32 = 10;
const NANOS_PER_MILLI: i64 = 1_000_000;

pub(super) fn config(plan: &Plan<'_>) -> Result<HostConfig, RequestError> {
    let memory = at_most(plan.definition.requirements.memory, plan.limits.memory_bytes).map(signed);
    let ulimits = plan.limits.ulimits.iter().map(|limit| ResourcesUlimits {
        name: Some(limit.name.clone()),
        soft: Some(signed(limit.soft)),
        hard: Some(signed(limit.hard)),
    });
    let disk = plan.limits.disk_bytes.map(|bytes| HashMap::from([("size".to_owned(), bytes.to_string())]));
    let isolation = plan.isolation;
    let dropped = isolation.drop_capabilities.names();
    Ok(HostConfig {
        network_mode: Some(plan.network.to_owned()),
        binds: Some(binds(plan)?),
        // More than the limit is not asked for by default: the engine's own is 64 MiB.
        shm_size: plan
            .definition
            .shm_bytes()
            .map(|asked| at_most(Some(asked), plan.limits.shm_bytes).map_or(0, signed)),
        device_requests: device_requests(&plan.share.gpus),
        nano_cpus: nano_cpus(plan),
        memory,
        // Equal: no swap on top.
        memory_swap: memory,
        pids_limit: plan.limits.pids.map(i64::from),
        ulimits: Some(ulimits.collect()).filter(|ulimits: &Vec<_>| !ulimits.is_empty()),
        storage_opt: disk,
        security_opt: isolation.no_new_privileges.then(|| vec!["no-new-privileges".to_owned()]),
        cap_drop: Some(dropped.to_vec()).filter(|dropped| !dropped.is_empty()),
        runtime: isolation.runtime.clone(),
        cgroup_parent: isolation.cgroup_parent.clone(),
        ..HostConfig::default()
    })
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// NVIDIA's devices go by their driver, those of the container device interface by the engine's own.
fn device_requests(gpus: &[String]) -> Option<Vec<DeviceRequest>> {
    let (cdi, nvidia): (Vec<String>, Vec<String>) = gpus.iter().cloned().partition(|gpu| is_cdi(gpu));
    let request = |driver: &str, device_ids: Vec<String>, capabilities| {
        let driver = Some(driver.to_owned());
        (!device_ids.is_empty()).then(|| DeviceRequest {
            driver,
            device_ids: Some(device_ids),
            capabilities,
            ..DeviceRequest::default()
        })
    };
    let gpu = Some(vec![vec!["gpu".to_owned()]]);
    let requests: Vec<DeviceRequest> =
        request("nvidia", nvidia, gpu).into_iter().chain(request("cdi", cdi, None)).collect();
    (!requests.is_empty()).then_some(requests)
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
    let bind = |host: &Path, inside: &str, how: &str| format!("{}:{inside}:{how}", host.display());
    let inputs = if plan.isolation.has_writable_inputs || mounts_into_inputs(plan.definition) { "Z" } else { "ro,Z" };
    let mut binds = vec![bind(&plan.dirs.inputs, "/inputs", inputs), bind(&plan.dirs.outputs, "/outputs", "Z")];
    for (name, _) in plan.definition.config_files.iter().filter(|(name, _)| name.starts_with('/')) {
        if name.contains(':') {
            return Err(RequestError::ColonInMount { name: name.clone() });
        }
        binds.push(bind(&plan.dirs.config_file(name), name, "Z"));
    }
    // Shared: with `Z` each container would take it from the queue's others, where SELinux is in force.
    binds.push(format!("{}:/job-cache:z", plan.cache));
    Ok(binds)
}

/// Whether something is to be mounted below `/inputs`, for which the engine has to make a file there.
fn mounts_into_inputs(definition: &Definition) -> bool {
    definition.config_files.iter().any(|(name, _)| {
        let mut segments = name.split('/').filter(|segment| !segment.is_empty() && *segment != ".");
        name.starts_with('/') && segments.next() == Some("inputs")
    })
}
