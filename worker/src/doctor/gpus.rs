//! Whether the GPUs that are offered are there.

use super::Finding;
use super::engine::Reached;
use crate::config::GpuSpec;
use crate::container::Facts;
use crate::gpus::{self, Gpus, Machine};

const CHECK: &str = "gpus";
/// The name under which NVIDIA's toolkit adds itself to an engine.
const NVIDIA: &str = "nvidia";
const INSTALL: &str = "install the driver and the NVIDIA Container Toolkit on the engine's machine \
                       (https://github.com/NVIDIA/nvidia-container-toolkit), then restart the engine";

/// What is on the machine of the engine at `host`: another machine's devices are not those of this one's driver.
pub(super) fn look(reached: &Reached, host: &str, spec: &GpuSpec) -> Finding {
    let driver = if host.starts_with("unix:") { gpus::listed() } else { Vec::new() };
    finding(spec, driver, reached.engine.facts())
}

fn finding(spec: &GpuSpec, driver: Vec<String>, facts: &Facts) -> Finding {
    let seen = driver.len();
    let doubt = doubt(spec, &driver, facts);
    let offered = match Gpus::choose(spec, Machine { driver, cdi: facts.devices.clone() }) {
        Ok(gpus) => gpus.offered().len(),
        Err(error) => {
            return Finding::fail(CHECK, error.to_string(), format!("{INSTALL}; or offer others with --gpus"));
        }
    };
    if let Some(doubt) = doubt {
        return Finding::warn(CHECK, doubt, format!("{INSTALL}; or leave out --gpus"));
    }
    let listed =
        if seen > 0 { format!("the NVIDIA driver lists {seen}") } else { "no NVIDIA driver is to be seen".to_owned() };
    let has_way = facts.runtimes.iter().any(|name| name == NVIDIA) || !facts.devices.is_empty();
    if offered > 0 && seen > 0 && !has_way {
        let seen = format!(
            "{listed}, but the engine names neither NVIDIA's runtime nor devices of the container device interface"
        );
        return Finding::warn(
            CHECK,
            seen,
            "see that the NVIDIA Container Toolkit is installed: `sudo nvidia-ctk runtime configure`",
        );
    }
    let unused =
        if offered == 0 && (seen > 0 || !facts.devices.is_empty()) { "; --gpus all would offer them" } else { "" };
    Finding::ok(CHECK, format!("{offered} offered; {listed}{unused}"))
}

/// Why a job may not get the GPUs that are offered, though nothing proves that they are missing.
pub(crate) fn doubt(spec: &GpuSpec, driver: &[String], facts: &Facts) -> Option<String> {
    let is_known = !driver.is_empty() || facts.runtimes.iter().any(|name| name == NVIDIA);
    // Names of the container device interface are the engine's to know.
    let is_nvidias = |device: &String| !device.contains('=');
    let count = match spec {
        GpuSpec::Count(count) => *count as usize,
        GpuSpec::Devices(devices) => devices.iter().filter(|device| is_nvidias(device)).count(),
        GpuSpec::All | GpuSpec::Any => 0,
    };
    (count > 0 && !is_known).then(|| {
        format!(
            "--gpus {spec} is offered, but there is no NVIDIA driver here, and the container engine has no NVIDIA runtime: jobs that \
             get a GPU may fail"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::*;

    fn facts(runtimes: &[&str], devices: &[&str]) -> Facts {
        let owned = |list: &[&str]| list.iter().map(|&text| text.to_owned()).collect();
        Facts {
            cpus: 1,
            runtimes: owned(runtimes),
            devices: owned(devices),
            id: String::new(),
            root: None,
            is_rootless: false,
            has_seccomp: true,
        }
    }

    fn level(spec: &str, driver: &[&str], facts: &Facts) -> Level {
        finding(&spec.parse().unwrap(), driver.iter().map(|&id| id.to_owned()).collect(), facts).level
    }

    #[test]
    fn gpus_that_nobody_has_seen_are_doubted_and_those_that_are_not_there_are_refused() {
        let none = facts(&["runc"], &[]);
        assert_eq!(level("none", &[], &none), Level::Ok);
        assert_eq!(level("2", &[], &none), Level::Warn);
        assert_eq!(level("device=0", &[], &none), Level::Warn);
        assert_eq!(level("all", &[], &none), Level::Fail);
        assert_eq!(level("2", &["GPU-a"], &none), Level::Fail);
        assert_eq!(level("1", &["GPU-a"], &none), Level::Warn, "a driver without a way into containers");
        let nvidia = facts(&["runc", "nvidia"], &[]);
        assert_eq!(level("1", &["GPU-a"], &nvidia), Level::Ok);
        assert_eq!(level("2", &[], &nvidia), Level::Ok, "the engine may be on another machine");
        let amd = facts(&["runc"], &["amd.com/gpu=0"]);
        assert_eq!(level("device=amd.com/gpu=0", &[], &amd), Level::Ok);
    }
}
