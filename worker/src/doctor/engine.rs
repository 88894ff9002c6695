//! The container engine: whether it answers, and what it can hold jobs to.

use std::path::PathBuf;

use bollard::models::{SystemInfo, SystemInfoCgroupDriverEnum, SystemInfoCgroupVersionEnum};
use tokio::time::timeout;

use super::{Finding, QUESTION, socket};
use crate::config::Config;
use crate::container::Engine;
use crate::outcome::{in_units, with_sources};

/// The oldest interface that this program is tried with: that of version 20.10.
const API_MIN: (usize, usize) = (1, 41);

/// An engine that answers.
pub(super) struct Reached {
    pub(super) engine: Engine,
    pub(super) info: SystemInfo,
}

impl Reached {
    /// Where it keeps its data, if that is a place of this machine.
    pub(super) fn root(&self, host: &str) -> Option<PathBuf> {
        let is_here = host.starts_with("unix:");
        self.engine.facts().root.clone().filter(|root| is_here && root.exists())
    }

    pub(super) fn findings(&self, host: &str) -> Vec<Finding> {
        let version = self.engine.docker().client_version();
        vec![about_engine(&self.info, host), about_api((version.major_version, version.minor_version))]
    }
}

/// Asks for the engine at `host`, once.
pub(super) async fn reach(host: &str) -> Result<Reached, Finding> {
    let asked = timeout(QUESTION, async {
        let engine = Engine::try_connect(host).await?;
        let info = engine.docker().info().await?;
        Ok::<_, bollard::errors::Error>(Reached { engine, info })
    });
    let said = match asked.await {
        Ok(Ok(reached)) => return Ok(reached),
        Ok(Err(error)) => with_sources(&error),
        Err(_) => format!("no answer within {} s", QUESTION.as_secs()),
    };
    let owned = host.to_owned();
    let seen = tokio::task::spawn_blocking(move || {
        let user = rustix::process::geteuid().as_raw();
        (socket::look(&owned), socket::others(user))
    });
    let (socket, other) =
        timeout(QUESTION, seen).await.ok().and_then(Result::ok).unwrap_or((socket::Socket::Silent, None));
    let other = other.filter(|path| !host.ends_with(path.as_str()));
    Err(socket::finding(host, &socket, &said, other.as_deref()))
}

/// Everything else that it says of itself, compared with what the worker would ask of it.
pub(super) fn about(info: &SystemInfo, config: &Config) -> Vec<Finding> {
    let fixed =
        [about_storage(info, config.limits.disk_bytes.is_some()), about_limits(info, config), about_seccomp(info)];
    let chosen = [
        config.isolation.runtime.as_deref().map(|name| about_runtime(info, name)),
        config.isolation.cgroup_parent.as_deref().map(|name| about_cgroup_parent(info, name)),
        about_user(info, config),
    ];
    fixed.into_iter().chain(chosen.into_iter().flatten()).collect()
}

fn about_engine(info: &SystemInfo, host: &str) -> Finding {
    let text = |field: &Option<String>| field.clone().filter(|text| !text.is_empty()).unwrap_or_else(|| "?".to_owned());
    let memory = info.mem_total.and_then(|bytes| u64::try_from(bytes).ok()).map_or_else(|| "?".to_owned(), in_units);
    let os = text(&info.os_type);
    if os != "linux" {
        return Finding::fail(
            "engine",
            format!("the container engine at {host} runs containers of {os}, not of Linux"),
            "switch it to Linux containers",
        );
    }
    let cpus = info.ncpu.unwrap_or_default();
    Finding::ok(
        "engine",
        format!(
            "version {} at {host}: {}, {}, {cpus} CPUs, {memory}{}",
            text(&info.server_version),
            text(&info.operating_system),
            text(&info.architecture),
            if is(info, "name=rootless") { ", rootless" } else { "" }
        ),
    )
}

fn about_api(version: (usize, usize)) -> Finding {
    let text = format!("{}.{}", version.0, version.1);
    if version < API_MIN {
        let seen = format!("version {text} of the engine's interface is older than what workers are tried with");
        return Finding::warn(
            "engine api",
            seen,
            format!("update the engine to 20.10 (API {}.{}) or newer", API_MIN.0, API_MIN.1),
        );
    }
    Finding::ok("engine api", format!("version {text}"))
}

fn about_storage(info: &SystemInfo, is_limited: bool) -> Finding {
    let driver = info.driver.as_deref().unwrap_or("?");
    let status = |name: &str| {
        let pairs = info.driver_status.iter().flatten();
        pairs.filter(|pair| pair.first().is_some_and(|first| first == name)).find_map(|pair| pair.get(1).cloned())
    };
    let below = status("Backing Filesystem").unwrap_or_default();
    if driver == "vfs" {
        return Finding::warn(
            "storage",
            "driver vfs: each container is a whole copy of its image, which takes time and disk",
            "have the engine use overlay2 (\"storage-driver\" in /etc/docker/daemon.json)",
        );
    }
    if status("Supports d_type").is_some_and(|supported| supported == "false") {
        return Finding::warn(
            "storage",
            format!("driver {driver} on {below} without d_type: files in containers misbehave"),
            "put the engine's data on ext4, or on XFS made with ftype=1",
        );
    }
    let on = if below.is_empty() { String::new() } else { format!(" on {below}") };
    let may_bound = matches!(driver, "btrfs" | "zfs") || (driver.starts_with("overlay") && below == "xfs");
    if may_bound {
        return Finding::ok(
            "storage",
            format!("driver {driver}{on}; it can hold containers to --job-disk, with project quotas on XFS"),
        );
    }
    let seen = format!("driver {driver}{on}; it cannot hold containers to --job-disk");
    if is_limited {
        let advice = "the worker looks each second and stops who took too much; for a hard limit, put the engine's data on XFS \
                      mounted with pquota";
        return Finding::warn("storage", format!("{seen} by itself, as is asked for"), advice);
    }
    Finding::ok("storage", format!("{seen}, the worker watches instead"))
}

/// What the kernel holds containers to. An engine leaves out what it cannot do, and only warns of it.
fn about_limits(info: &SystemInfo, config: &Config) -> Finding {
    let version = match info.cgroup_version {
        Some(SystemInfoCgroupVersionEnum::_2) => "2",
        Some(SystemInfoCgroupVersionEnum::_1) => "1",
        Some(SystemInfoCgroupVersionEnum::EMPTY) | None => "?",
    };
    let limits = &config.limits;
    let all = [
        ("memory", info.memory_limit, limits.memory_bytes.map(|_| "--job-memory")),
        ("CPU", info.cpu_cfs_quota, limits.cpus_milli.map(|_| "--job-cpus")),
        ("processes", info.pids_limit, limits.pids.map(|_| "--job-pids")),
    ];
    let is_missing = |(_, has, _): &&(_, Option<bool>, _)| *has == Some(false);
    let missing: Vec<&str> = all.iter().filter(is_missing).map(|(name, ..)| *name).collect();
    let asked: Vec<&str> = all.iter().filter(is_missing).filter_map(|(.., flag)| *flag).collect();
    let seen = format!("control groups version {version}");
    let advice = "switch these controllers on: boot with control groups version 2 (systemd.unified_cgroup_hierarchy=1), or with \
                  `cgroup_enable=memory swapaccount=1`; rootless engines need `Delegate=cpu memory pids` for the user's service";
    if !asked.is_empty() {
        let flags = asked.join(", ");
        return Finding::fail(
            "limits",
            format!("{seen}; the engine cannot hold containers to {flags}, and ignores it"),
            advice,
        );
    }
    if !missing.is_empty() {
        let names = missing.join(", ");
        return Finding::warn("limits", format!("{seen}; the engine holds no container to limits of: {names}"), advice);
    }
    if info.swap_limit == Some(false) {
        return Finding::ok("limits", format!("{seen}: CPU, memory and processes are enforced, swap is not"));
    }
    Finding::ok("limits", format!("{seen}: CPU, memory, swap and processes are enforced"))
}

fn is(info: &SystemInfo, name: &str) -> bool {
    let options = info.security_options.iter().flatten();
    options.flat_map(|option| option.split(',')).any(|part| part == name)
}

fn about_seccomp(info: &SystemInfo) -> Finding {
    let others = ["apparmor", "selinux", "userns"].into_iter().filter(|name| is(info, &format!("name={name}")));
    let others: String = others.map(|name| format!(", {name}")).collect();
    if !is(info, "name=seccomp") {
        let seen = "the engine has no seccomp: containers may use every system call of the kernel";
        return Finding::warn(
            "seccomp",
            seen,
            "use a kernel and an engine with seccomp before you take jobs of strangers",
        );
    }
    Finding::ok("seccomp", format!("on{others}"))
}

fn about_runtime(info: &SystemInfo, name: &str) -> Finding {
    let mut known: Vec<&str> = info.runtimes.iter().flat_map(|runtimes| runtimes.keys()).map(String::as_str).collect();
    known.sort_unstable();
    if known.contains(&name) {
        return Finding::ok("runtime", format!("the engine has {name}"));
    }
    let advice = format!(
        "install it and name it below \"runtimes\" in /etc/docker/daemon.json, then restart the engine; or leave out --runtime {name}"
    );
    Finding::fail("runtime", format!("the engine has no runtime {name}, only {}", known.join(", ")), advice)
}

fn about_cgroup_parent(info: &SystemInfo, name: &str) -> Finding {
    let is_slice = std::path::Path::new(name).extension().is_some_and(|extension| extension == "slice");
    let is_systemd = info.cgroup_driver == Some(SystemInfoCgroupDriverEnum::SYSTEMD);
    if is_slice == is_systemd {
        return Finding::ok("cgroup parent", format!("{name} is a name of the kind that the engine takes"));
    }
    if is_systemd {
        let advice = "write the name of a slice, such as --cgroup-parent jobs.slice";
        return Finding::fail(
            "cgroup parent",
            format!("the engine's groups are systemd's, and {name} is no slice"),
            advice,
        );
    }
    let advice = "write a path, such as --cgroup-parent /jobs";
    Finding::fail("cgroup parent", format!("the engine's groups are not systemd's, and {name} is a slice"), advice)
}

fn about_user(info: &SystemInfo, config: &Config) -> Option<Finding> {
    let own = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    let user = config.isolation.user.in_containers(own, is(info, "name=rootless"));
    match user {
        Ok(_) => None,
        Err(error) => Some(Finding::fail("user", error.to_string(), "leave --user out, or run the worker as root")),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::super::Level;
    use super::*;

    fn config() -> Config {
        Config::new(vec!["q".parse().unwrap()], "http://a.example".parse().unwrap(), "/d".into())
    }

    fn storage(driver: &str, below: &str) -> SystemInfo {
        let pair = vec!["Backing Filesystem".to_owned(), below.to_owned()];
        SystemInfo { driver: Some(driver.into()), driver_status: Some(vec![pair]), ..SystemInfo::default() }
    }

    #[test]
    fn a_limit_that_is_not_enforced_fails_where_it_is_asked_for_and_is_told_where_not() {
        let info = SystemInfo { memory_limit: Some(false), ..SystemInfo::default() };
        assert_eq!(about_limits(&info, &config()).level, Level::Warn);
        let mut config = config();
        config.limits.memory_bytes = Some(1 << 30);
        let found = about_limits(&info, &config);
        assert_eq!(found.level, Level::Fail);
        assert!(found.seen.contains("--job-memory"), "{found:?}");
        assert_eq!(about_limits(&SystemInfo::default(), &config).level, Level::Ok);
    }

    #[test]
    fn a_storage_that_bounds_no_container_matters_only_where_a_bound_is_asked_for() {
        assert_eq!(about_storage(&storage("overlay2", "extfs"), false).level, Level::Ok);
        assert_eq!(about_storage(&storage("overlay2", "extfs"), true).level, Level::Warn);
        assert_eq!(about_storage(&storage("overlay2", "xfs"), true).level, Level::Ok);
        assert_eq!(about_storage(&storage("vfs", "extfs"), false).level, Level::Warn);
    }

    #[test]
    fn what_an_engine_has_not_is_told_with_what_it_has() {
        let runtimes = HashMap::from([("runc".to_owned(), bollard::models::Runtime::default())]);
        let info = SystemInfo { runtimes: Some(runtimes), ..SystemInfo::default() };
        assert_eq!(about_runtime(&info, "runc").level, Level::Ok);
        let found = about_runtime(&info, "runsc");
        assert!(found.level == Level::Fail && found.seen.contains("only runc"), "{found:?}");
        assert_eq!(about_seccomp(&info).level, Level::Warn);
        let has = SystemInfo { security_options: Some(vec!["name=seccomp,profile=default".into()]), ..info };
        assert_eq!(about_seccomp(&has).level, Level::Ok);
    }

    #[test]
    fn a_control_group_has_to_be_named_as_the_engine_names_them() {
        let of = |driver| SystemInfo { cgroup_driver: Some(driver), ..SystemInfo::default() };
        let systemd = of(SystemInfoCgroupDriverEnum::SYSTEMD);
        let plain = of(SystemInfoCgroupDriverEnum::CGROUPFS);
        for (info, name, level) in [
            (&systemd, "jobs.slice", Level::Ok),
            (&systemd, "/jobs", Level::Fail),
            (&plain, "/jobs", Level::Ok),
            (&plain, "jobs.slice", Level::Fail),
        ] {
            assert_eq!(about_cgroup_parent(info, name).level, level, "{name}");
        }
    }

    #[test]
    fn an_old_interface_is_told_and_containers_of_another_system_are_no_use() {
        assert_eq!(about_api((1, 40)).level, Level::Warn);
        assert_eq!(about_api((1, 41)).level, Level::Ok);
        assert_eq!(about_api((2, 0)).level, Level::Ok);
        let info = |os: &str| SystemInfo { os_type: Some(os.into()), ..SystemInfo::default() };
        assert_eq!(about_engine(&info("linux"), "unix:///s").level, Level::Ok);
        assert_eq!(about_engine(&info("windows"), "unix:///s").level, Level::Fail);
    }
}
