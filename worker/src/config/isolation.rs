//! How far containers are kept from the host and from each other.

use std::fmt;
use std::str::FromStr;

use super::ConfigError;

/// The capabilities that containers are started without unless told otherwise: making device files and forging network
/// packets. The engine's other defaults are needed by what jobs do: installing packages, `su`, `chroot`.
const DROPPED: [&str; 2] = ["MKNOD", "NET_RAW"];
/// Every one of them, in the words of engines.
const ALL: &str = "ALL";
/// The longest name of a capability, a runtime or a control group; longer ones are a mistake.
const NAME_BYTES_MAX: usize = 128;

/// What capabilities(7) lists. An engine refuses each container that is to go without one that it does not know.
const CAPABILITIES: [&str; 41] = [
    "AUDIT_CONTROL",
    "AUDIT_READ",
    "AUDIT_WRITE",
    "BLOCK_SUSPEND",
    "BPF",
    "CHECKPOINT_RESTORE",
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "IPC_LOCK",
    "IPC_OWNER",
    "KILL",
    "LEASE",
    "LINUX_IMMUTABLE",
    "MAC_ADMIN",
    "MAC_OVERRIDE",
    "MKNOD",
    "NET_ADMIN",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_RAW",
    "PERFMON",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYSLOG",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_CHROOT",
    "SYS_MODULE",
    "SYS_NICE",
    "SYS_PACCT",
    "SYS_PTRACE",
    "SYS_RAWIO",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "WAKE_ALARM",
];

/// How far containers are kept from the host and from each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Isolation {
    /// Whether nothing in a container gains rights through set-uid files. A job that runs as root has them all anyway.
    pub no_new_privileges: bool,
    /// Capabilities that containers are started without.
    pub drop_capabilities: Capabilities,
    /// Whether jobs may change what is below `/inputs`: their own copy, so that it harms nobody else.
    pub has_writable_inputs: bool,
    /// Whom jobs run as.
    pub user: JobUser,
    /// The engine's runtime for containers, such as `runsc`; `None`: its default.
    pub runtime: Option<String>,
    /// The control group that containers are put into, which can hold all of them together to a limit.
    pub cgroup_parent: Option<String>,
}

impl Default for Isolation {
    fn default() -> Self {
        Self {
            no_new_privileges: true,
            drop_capabilities: Capabilities::default(),
            has_writable_inputs: false,
            user: JobUser::Worker,
            runtime: None,
            cgroup_parent: None,
        }
    }
}

/// Names of capabilities, without the `CAP_` that some write before them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capabilities(Vec<String>);

impl Capabilities {
    /// The names.
    #[must_use]
    pub fn names(&self) -> &[String] {
        &self.0
    }
}

impl Default for Capabilities {
    fn default() -> Self {
        Self(DROPPED.map(str::to_owned).to_vec())
    }
}

impl FromStr for Capabilities {
    type Err = String;

    /// A list with commas, `none` or `all`.
    fn from_str(text: &str) -> Result<Self, String> {
        if text == "none" {
            return Ok(Self(Vec::new()));
        }
        let name = |word: &str| {
            let upper = word.trim().to_ascii_uppercase();
            let name = upper.strip_prefix("CAP_").unwrap_or(&upper);
            if CAPABILITIES.contains(&name) || name == ALL {
                return Ok(name.to_owned());
            }
            let shown: String = name.chars().take(NAME_BYTES_MAX).collect();
            let rule = "write names such as MKNOD,NET_RAW (`man capabilities` lists them), none, or all";
            Err(format!("there is no capability {shown:?}; {rule}"))
        };
        text.split(',').map(name).collect::<Result<_, _>>().map(Self)
    }
}

/// Whom the processes of a job run as, unless they change that themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JobUser {
    /// User and group of the worker, as the original has it: root where the worker is root.
    Worker,
    /// Whom the image names.
    Image,
    /// This user and group.
    Fixed {
        /// The user's number.
        user: u32,
        /// The group's number.
        group: u32,
    },
}

impl JobUser {
    /// User and group in containers, for a worker that runs as `own`; `None`: whom the image names. The root of a rootless
    /// engine is the worker's own user.
    pub(crate) fn in_containers(self, own: (u32, u32), is_rootless: bool) -> Result<Option<(u32, u32)>, ConfigError> {
        let own_inside = if is_rootless { (0, 0) } else { own };
        let wanted = match self {
            Self::Worker => Some(own_inside),
            Self::Image => None,
            Self::Fixed { user, group } => Some((user, group)),
        };
        let is_own = wanted.is_some_and(|(user, _)| user == own_inside.0);
        // Root can remove everybody's files.
        if is_own || own.0 == 0 { Ok(wanted) } else { Err(ConfigError::User) }
    }
}

impl FromStr for JobUser {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const RULE: &str = "write worker, image, or numbers such as 1000:1000";
        match text {
            "worker" => return Ok(Self::Worker),
            "image" => return Ok(Self::Image),
            _ => {}
        }
        let (user, group) = text.split_once(':').unwrap_or((text, text));
        match (user.parse(), group.parse()) {
            (Ok(user), Ok(group)) => Ok(Self::Fixed { user, group }),
            _ => Err(RULE),
        }
    }
}

/// A limit of the kernel on what one process may take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ulimit {
    /// Its name, such as `nofile`.
    pub name: String,
    /// What a process starts with.
    pub soft: u64,
    /// What it can raise that to.
    pub hard: u64,
}

/// The names that engines take.
const ULIMITS: [&str; 15] = [
    "core",
    "cpu",
    "data",
    "fsize",
    "locks",
    "memlock",
    "msgqueue",
    "nice",
    "nofile",
    "nproc",
    "rss",
    "rtprio",
    "rttime",
    "sigpending",
    "stack",
];

impl FromStr for Ulimit {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const RULE: &str = "write such as nofile=1024:4096,core=0, by the names that `docker run --ulimit` takes";
        let (name, limits) = text.trim().split_once('=').ok_or(RULE)?;
        let (soft, hard) = limits.split_once(':').unwrap_or((limits, limits));
        match (soft.parse(), hard.parse()) {
            (Ok(soft), Ok(hard)) if soft <= hard && ULIMITS.contains(&name) => {
                Ok(Self { name: name.to_owned(), soft, hard })
            }
            _ => Err(RULE),
        }
    }
}

impl fmt::Display for Ulimit {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}={}:{}", self.name, self.soft, self.hard)
    }
}

/// Reads the name of a runtime or a control group.
///
/// # Errors
///
/// The rule, for an empty name and for one with signs that none has.
pub fn parse_name(text: &str) -> Result<String, &'static str> {
    let is_name = !text.is_empty()
        && text.len() <= NAME_BYTES_MAX
        && !text.split('/').any(|segment| segment == "..")
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"/._-@:".contains(&byte));
    if is_name { Ok(text.to_owned()) } else { Err("write a name of letters, digits and / . _ - @ :") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_named_with_and_without_their_prefix() {
        let names = |text: &str| text.parse::<Capabilities>().map(|all| all.names().to_vec());
        assert_eq!(names("cap_net_raw, MKNOD").unwrap(), ["NET_RAW", "MKNOD"]);
        assert_eq!(names("none").unwrap(), [""; 0]);
        assert_eq!(names("all").unwrap(), ["ALL"]);
        for bad in ["", "a,,b", "NET-RAW", "CAP_"] {
            assert!(names(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_user_is_the_workers_the_images_or_a_pair_of_numbers() {
        assert_eq!("worker".parse(), Ok(JobUser::Worker));
        assert_eq!("image".parse(), Ok(JobUser::Image));
        assert_eq!("1000:100".parse(), Ok(JobUser::Fixed { user: 1000, group: 100 }));
        assert_eq!("7".parse(), Ok(JobUser::Fixed { user: 7, group: 7 }));
        for bad in ["", "me", "1:", "-1", "1:2:3"] {
            assert!(bad.parse::<JobUser>().is_err(), "{bad}");
        }
    }

    #[test]
    fn only_root_runs_jobs_as_others_and_a_rootless_engines_root_is_the_worker() {
        let (root, plain) = ((0, 0), (1000, 1000));
        let fixed = JobUser::Fixed { user: 7, group: 8 };
        assert_eq!(JobUser::Worker.in_containers(plain, false), Ok(Some(plain)));
        assert_eq!(JobUser::Worker.in_containers(plain, true), Ok(Some(root)));
        assert_eq!(fixed.in_containers(root, false), Ok(Some((7, 8))));
        assert_eq!(JobUser::Image.in_containers(root, true), Ok(None));
        for (user, is_rootless) in [(fixed, false), (JobUser::Image, false), (JobUser::Image, true), (fixed, true)] {
            assert_eq!(user.in_containers(plain, is_rootless), Err(ConfigError::User));
        }
    }

    #[test]
    fn a_ulimit_is_known_and_its_soft_value_is_not_above_its_hard_one() {
        let limit = "nofile=10:20".parse::<Ulimit>().unwrap();
        assert_eq!((limit.to_string().as_str(), limit.soft, limit.hard), ("nofile=10:20", 10, 20));
        assert_eq!("core=0".parse::<Ulimit>().unwrap().hard, 0);
        for bad in ["nofile", "nofile=", "nofile=2:1", "files=1", "nofile=-1"] {
            assert!(bad.parse::<Ulimit>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_name_leads_nowhere_else() {
        assert_eq!(parse_name("/jobs.slice"), Ok("/jobs.slice".to_owned()));
        for bad in ["", "a b", "../a", "a/..", "a\n"] {
            assert!(parse_name(bad).is_err(), "{bad}");
        }
    }
}
