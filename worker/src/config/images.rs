//! What a worker does about images: when they are fetched, as whom, and how much of them is kept.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use super::{ConfigError, parse_duration_ms};

/// How old an image with a floating tag may get before it is looked for again: people expect `latest` to be today's.
pub const FLOATING_MS_DEFAULT: u64 = 24 * 60 * 60 * 1000;
/// How many bytes of images a worker keeps of those that it fetched or built itself.
pub const IMAGE_CACHE_BYTES_DEFAULT: u64 = 100 << 30;
/// How many images are built at once. A build uses every CPU it is given.
pub const BUILDS_DEFAULT: u32 = 2;
/// The most builds at once: each has its files unpacked on disk.
pub const BUILDS_MAX: u32 = 64;
/// The longest that one build may take, its files fetched and all.
pub const BUILD_MS_DEFAULT: u64 = 30 * 60 * 1000;
/// The most bytes of files that an image is built from, unpacked.
pub const CONTEXT_BYTES_DEFAULT: u64 = 4 << 30;

/// What a worker does about images.
#[derive(Clone, Debug)]
pub struct ImageConfig {
    /// When an image is fetched from its registry.
    pub pull: PullPolicy,
    /// For which platform (`linux/arm64`); the engine's own when `None`.
    pub platform: Option<String>,
    /// Fetched at the start, and never removed.
    pub prepull: Vec<String>,
    /// Bytes of images that are kept of those that this worker fetched or built; `None`: all of them.
    pub cache_bytes_max: Option<u64>,
    /// Logins to registries. They win over [`Self::docker_config`].
    pub logins: Vec<RegistryLogin>,
    /// The folder of Docker's own `config.json`, with the logins of `docker login`.
    pub docker_config: Option<PathBuf>,
}

impl Default for ImageConfig {
    fn default() -> Self {
        Self {
            pull: PullPolicy::default(),
            platform: None,
            prepull: Vec::new(),
            cache_bytes_max: Some(IMAGE_CACHE_BYTES_DEFAULT),
            logins: Vec::new(),
            docker_config: None,
        }
    }
}

/// What a worker does about jobs that say how their image is built.
#[derive(Clone, Debug)]
pub struct BuildConfig {
    /// How many builds at once, up to [`BUILDS_MAX`]; with 0 such jobs are refused.
    pub at_once: u32,
    /// The longest that one may take, in milliseconds.
    pub duration_ms_max: u64,
    /// The most bytes of files that one is made from, unpacked.
    pub context_bytes_max: u64,
    /// What builds.
    pub builder: Builder,
    /// Where images that were built are kept for other workers too; nothing is ever sent anywhere else.
    pub registry: Option<BuildRegistry>,
}

impl Default for BuildConfig {
    fn default() -> Self {
        Self {
            at_once: BUILDS_DEFAULT,
            duration_ms_max: BUILD_MS_DEFAULT,
            context_bytes_max: CONTEXT_BYTES_DEFAULT,
            builder: Builder::Auto,
            registry: None,
        }
    }
}

/// A place in a registry: `HOST/PREFIX`. The host is always said, so that nothing goes to a public one by mistake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BuildRegistry(String);

/// The longest that is taken: a registry's names end at 255 bytes, and the image's own part follows.
const BUILD_REGISTRY_BYTES_MAX: usize = 200;

impl fmt::Display for BuildRegistry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for BuildRegistry {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const RULE: &str = "write a registry's host with a prefix for the images, such as registry.example:5000/builds";
        let is_word = |word: &str, others: &str| {
            let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || others.contains(c);
            let is_end = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
            word.starts_with(is_end) && word.ends_with(is_end) && word.chars().all(is_plain)
        };
        let text = text.trim().trim_end_matches('/');
        let (host, prefix) = text.split_once('/').unwrap_or((text, ""));
        let (name, port) = host.rsplit_once(':').map_or((host, None), |(name, port)| (name, Some(port)));
        let is_host = is_word(name, ".-") && (name.contains('.') || name == "localhost" || port.is_some());
        let is_port = port.is_none_or(|port| port.parse::<u16>().is_ok());
        let is_prefix = prefix.is_empty() || prefix.split('/').all(|part| is_word(part, "._-"));
        if text.len() <= BUILD_REGISTRY_BYTES_MAX && is_host && is_port && is_prefix {
            Ok(Self(text.to_owned()))
        } else {
            Err(RULE)
        }
    }
}

/// What builds images.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Builder {
    /// BuildKit where the engine's own client would take it, and where builds need not be held to limits or a network that
    /// BuildKit cannot hold them to.
    #[default]
    Auto,
    /// The engine's first builder.
    Classic,
    /// BuildKit.
    BuildKit,
}

impl FromStr for Builder {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "auto" => Ok(Self::Auto),
            "classic" => Ok(Self::Classic),
            "buildkit" => Ok(Self::BuildKit),
            _ => Err(ConfigError::Builder { text: text.to_owned() }),
        }
    }
}

/// When an image is fetched from its registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PullPolicy {
    /// When it is not there.
    Missing,
    /// When it is not there, and when its tag says no version and it was last looked for so long ago. If that fails, what is
    /// there serves.
    Floating {
        /// How long ago, in milliseconds.
        after_ms: u64,
    },
    /// For each run.
    Always,
    /// Never: what is not there is an error.
    Never,
}

impl Default for PullPolicy {
    fn default() -> Self {
        Self::Floating { after_ms: FLOATING_MS_DEFAULT }
    }
}

impl FromStr for PullPolicy {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refuse = || ConfigError::PullPolicy { text: text.to_owned() };
        match text.split_once('=') {
            None if text == "missing" => Ok(Self::Missing),
            None if text == "floating" => Ok(Self::default()),
            None if text == "always" => Ok(Self::Always),
            None if text == "never" => Ok(Self::Never),
            Some(("floating", age)) => {
                parse_duration_ms(age).map(|after_ms| Self::Floating { after_ms }).map_err(|_| refuse())
            }
            Some(_) | None => Err(refuse()),
        }
    }
}

/// A login to one registry: `HOST=USER:PASSWORD`.
#[derive(Clone, PartialEq, Eq)]
pub struct RegistryLogin {
    /// Host, with a port where it has one; `docker.io` is Docker Hub.
    pub host: String,
    /// User name.
    pub user: String,
    /// Password or token. Never shown.
    pub password: String,
}

impl FromStr for RegistryLogin {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (host, user, password) = text
            .split_once('=')
            .and_then(|(host, rest)| rest.split_once(':').map(|(user, password)| (host, user, password)))
            .filter(|(host, user, password)| {
                let is_host = !host.is_empty() && !host.contains(['/', '@']) && !host.contains(char::is_whitespace);
                is_host && !user.is_empty() && !password.is_empty()
            })
            .ok_or(ConfigError::RegistryLogin)?;
        Ok(Self { host: host.to_ascii_lowercase(), user: user.to_owned(), password: password.to_owned() })
    }
}

impl fmt::Debug for RegistryLogin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RegistryLogin({}={}:…)", self.host, self.user)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn when_images_are_fetched_can_be_said_in_five_ways() {
        assert_eq!("missing".parse(), Ok(PullPolicy::Missing));
        assert_eq!("floating".parse(), Ok(PullPolicy::Floating { after_ms: FLOATING_MS_DEFAULT }));
        assert_eq!("floating=1h".parse(), Ok(PullPolicy::Floating { after_ms: 3_600_000 }));
        assert_eq!("always".parse(), Ok(PullPolicy::Always));
        assert_eq!("never".parse(), Ok(PullPolicy::Never));
        for bad in ["", "sometimes", "floating=", "floating=never", "always=1h"] {
            assert!(bad.parse::<PullPolicy>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_registry_for_builds_always_says_its_host() {
        let read = |text: &str| text.parse::<BuildRegistry>().map(|registry| registry.to_string());
        for good in ["registry.example", "registry.example:5000/team/builds", "localhost:5000/b", "docker.io/me"] {
            assert_eq!(read(good).as_deref(), Ok(good));
        }
        assert_eq!(read("r.example/b/").as_deref(), Ok("r.example/b"));
        for bad in ["", "me/builds", "builds", "https://r.example/b", "r.example/B", "r.example//b", "r.example/b:1"] {
            assert!(read(bad).is_err(), "{bad}");
        }
        for bad in ["r.example/../b", "r.example:x/b", "me@r.example/b", "r.example/b c", "-r.example/b"] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_login_is_read_and_its_password_is_not_shown() {
        let login: RegistryLogin = "Registry.Example:5000=me:pass:word=1".parse().unwrap();
        assert_eq!((login.host.as_str(), login.user.as_str()), ("registry.example:5000", "me"));
        assert_eq!(login.password, "pass:word=1");
        assert!(!format!("{login:?}").contains("word"));
        for bad in ["", "host", "host=me", "host=me:", "=me:x", "https://host=me:x", "ho st=me:x"] {
            let refused = bad.parse::<RegistryLogin>().unwrap_err();
            assert!(!refused.to_string().contains("me:x"), "a refusal does not repeat what may be a password");
        }
    }
}
