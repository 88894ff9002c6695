//! The worker's options about images: when they are fetched, as whom, how many are kept, and what is built.

use std::path::PathBuf;

use worker::config::{BUILDS_DEFAULT, BUILDS_MAX, BuildConfig, Builder, ImageConfig, RegistryLogin, parse_duration_ms};

use super::setting::{Env, UsageError, setting};

const PULL: &str = "METAPAGE_IO_WORKER_PULL";
const PLATFORM: &str = "METAPAGE_IO_WORKER_PLATFORM";
const PREPULL: &str = "METAPAGE_IO_WORKER_PREPULL";
const IMAGE_CACHE: &str = "METAPAGE_IO_WORKER_IMAGE_CACHE";
const REGISTRY_LOGINS: &str = "METAPAGE_IO_WORKER_REGISTRY_LOGINS";
const BUILDS: &str = "METAPAGE_IO_WORKER_BUILDS";
const BUILD_TIME: &str = "METAPAGE_IO_WORKER_BUILD_TIME";
const BUILD_FILES: &str = "METAPAGE_IO_WORKER_BUILD_FILES";
const BUILDER: &str = "METAPAGE_IO_WORKER_BUILDER";
const BUILD_REGISTRY: &str = "METAPAGE_IO_WORKER_BUILD_REGISTRY";
/// Docker's own: the folder of its `config.json`.
const DOCKER_CONFIG: &str = "DOCKER_CONFIG";
const HOME: &str = "HOME";

/// How the help groups them.
const IMAGES: &str = "Images and builds";

/// Options of a worker about images.
#[derive(Clone, Debug, Default, clap::Args)]
#[group(skip)]
pub(crate) struct Args {
    /// When images are fetched: `missing` (when they are not here), `floating` or `floating=DURATION` (also when the tag has no
    /// number in it, such as `latest`, and was last looked for so long ago), `always` or `never`
    /// [env: METAPAGE_IO_WORKER_PULL] [default: floating=24h]
    #[arg(long, value_name = "WHEN", help_heading = IMAGES)]
    pull: Option<String>,
    /// The platform that images are for, such as `linux/arm64` [env: METAPAGE_IO_WORKER_PLATFORM] [default: the engine's]
    #[arg(long, value_name = "PLATFORM", help_heading = IMAGES)]
    platform: Option<String>,
    /// Images to fetch at the start and to keep, with commas between [env: METAPAGE_IO_WORKER_PREPULL]
    #[arg(long, value_name = "LIST", help_heading = IMAGES)]
    prepull: Option<String>,
    /// How much is kept of the images that this worker fetched or built itself, such as `50g`, or `all`; beyond that, those
    /// unused for longest go [env: METAPAGE_IO_WORKER_IMAGE_CACHE] [default: 100g]
    #[arg(long, value_name = "SIZE", help_heading = IMAGES)]
    image_cache: Option<String>,
    /// A login to a registry, HOST=USER:PASSWORD; may be given several times. Others on this machine can read it here: better set
    /// METAPAGE_IO_WORKER_REGISTRY_LOGINS (with spaces between), or use `docker login`, whose logins are taken too
    #[arg(long, value_name = "LOGIN", help_heading = IMAGES)]
    registry_login: Vec<String>,
    /// How many images are built at once; with 0, jobs that say how to build theirs fail here
    /// [env: METAPAGE_IO_WORKER_BUILDS] [default: 2]
    #[arg(long, value_name = "N", help_heading = IMAGES)]
    builds: Option<String>,
    /// The longest that one build may take [env: METAPAGE_IO_WORKER_BUILD_TIME] [default: 30m]
    #[arg(long, value_name = "DURATION", help_heading = IMAGES)]
    build_time: Option<String>,
    /// The most that the files of one build may have, unpacked [env: METAPAGE_IO_WORKER_BUILD_FILES] [default: 4g]
    #[arg(long, value_name = "SIZE", help_heading = IMAGES)]
    build_files: Option<String>,
    /// What builds: `buildkit`, `classic`, or `auto` (BuildKit where the engine is new enough and --job-cpus, --job-memory and
    /// --network ask for nothing that it cannot be held to) [env: METAPAGE_IO_WORKER_BUILDER] [default: auto]
    #[arg(long, value_name = "WHAT", help_heading = IMAGES)]
    builder: Option<String>,
    /// A registry of your own in which built images are kept, such as `registry.example:5000/builds`: workers that name the same
    /// one build each image once. Nothing is sent anywhere without it [env: METAPAGE_IO_WORKER_BUILD_REGISTRY]
    #[arg(long, value_name = "HOST/PREFIX", help_heading = IMAGES)]
    build_registry: Option<String>,
}

impl Args {
    /// The options about images, by flag > variable > default.
    pub(super) fn images(&self, env: Env<'_>) -> Result<ImageConfig, UsageError> {
        let defaults = ImageConfig::default();
        let cache = setting("--image-cache", self.image_cache.as_deref(), IMAGE_CACHE);
        Ok(ImageConfig {
            pull: setting("--pull", self.pull.as_deref(), PULL).or(env, defaults.pull, str::parse)?,
            platform: setting("--platform", self.platform.as_deref(), PLATFORM).find(env, platform)?,
            prepull: setting("--prepull", self.prepull.as_deref(), PREPULL).or(env, Vec::new(), list)?,
            cache_bytes_max: cache.or(env, defaults.cache_bytes_max, cache_size)?,
            logins: self.logins(env)?,
            docker_config: docker_config(env),
        })
    }

    /// The options about builds.
    pub(super) fn builds(&self, env: Env<'_>) -> Result<BuildConfig, UsageError> {
        let defaults = BuildConfig::default();
        let time = setting("--build-time", self.build_time.as_deref(), BUILD_TIME);
        let files = setting("--build-files", self.build_files.as_deref(), BUILD_FILES);
        let registry = setting("--build-registry", self.build_registry.as_deref(), BUILD_REGISTRY);
        Ok(BuildConfig {
            at_once: setting("--builds", self.builds.as_deref(), BUILDS).or(env, BUILDS_DEFAULT, builds)?,
            duration_ms_max: time.or(env, defaults.duration_ms_max, parse_duration_ms)?,
            context_bytes_max: files.or(env, defaults.context_bytes_max, size)?,
            builder: setting("--builder", self.builder.as_deref(), BUILDER).or(env, Builder::Auto, str::parse)?,
            registry: registry.find(env, str::parse)?,
        })
    }

    /// The words, else the variable's parts. A refusal does not repeat what was given.
    fn logins(&self, env: Env<'_>) -> Result<Vec<RegistryLogin>, UsageError> {
        let read = |place: &str, words: Vec<String>| {
            let login = |word: &String| word.parse::<RegistryLogin>();
            words
                .iter()
                .map(login)
                .collect::<Result<Vec<_>, _>>()
                .map_err(|error| UsageError::new(place, error.to_string()))
        };
        if self.registry_login.is_empty() {
            let words = env(REGISTRY_LOGINS).unwrap_or_default().split_whitespace().map(str::to_owned).collect();
            read(REGISTRY_LOGINS, words)
        } else {
            read("--registry-login", self.registry_login.clone())
        }
    }
}

/// Where `docker login` writes.
fn docker_config(env: Env<'_>) -> Option<PathBuf> {
    let set = |name| env(name).filter(|value| !value.trim().is_empty()).map(PathBuf::from);
    set(DOCKER_CONFIG).or_else(|| set(HOME).map(|home| home.join(".docker")))
}

fn platform(text: &str) -> Result<String, &'static str> {
    let is_plain =
        |part: &str| !part.is_empty() && part.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c));
    if (2..=3).contains(&text.split('/').count()) && text.split('/').all(is_plain) {
        Ok(text.to_owned())
    } else {
        Err("write a platform such as linux/amd64 or linux/arm64")
    }
}

fn list(text: &str) -> Result<Vec<String>, &'static str> {
    let names: Vec<String> = text.split(',').map(|name| name.trim().to_owned()).collect();
    if names.iter().any(String::is_empty) { Err("write names of images with commas between them") } else { Ok(names) }
}

/// A size, or `all`.
pub(super) fn cache_size(text: &str) -> Result<Option<u64>, String> {
    if text == "all" { Ok(None) } else { size(text).map(Some) }
}

fn size(text: &str) -> Result<u64, String> {
    protocol::size::parse_size_bytes(text).map_err(|error| error.to_string())
}

fn builds(text: &str) -> Result<u32, String> {
    let number = text.parse().ok().filter(|number| *number <= BUILDS_MAX);
    number.ok_or_else(|| format!("write a whole number from 0 to {BUILDS_MAX}"))
}

#[cfg(test)]
mod tests {
    use worker::config::{CONTEXT_BYTES_DEFAULT, IMAGE_CACHE_BYTES_DEFAULT, PullPolicy};

    use super::*;

    fn args() -> Args {
        Args::default()
    }

    #[test]
    fn nothing_given_are_the_defaults_and_the_logins_of_docker() {
        let images = args().images(&|name| (name == HOME).then(|| "/h".to_owned())).unwrap();
        assert_eq!(images.pull, PullPolicy::default());
        assert_eq!(images.cache_bytes_max, Some(IMAGE_CACHE_BYTES_DEFAULT));
        assert_eq!(images.docker_config, Some("/h/.docker".into()));
        assert!(images.prepull.is_empty() && images.logins.is_empty());
        let builds = args().builds(&|_| None).unwrap();
        assert_eq!((builds.at_once, builds.context_bytes_max), (BUILDS_DEFAULT, CONTEXT_BYTES_DEFAULT));
    }

    #[test]
    fn flags_win_over_variables() {
        let env = |name: &str| match name {
            PULL => Some("never".to_owned()),
            PREPULL => Some("a:1, b".to_owned()),
            REGISTRY_LOGINS => Some("r.example=a:b  docker.io=c:d".to_owned()),
            DOCKER_CONFIG => Some("/docker".to_owned()),
            IMAGE_CACHE => Some("all".to_owned()),
            BUILDS => Some("0".to_owned()),
            _ => None,
        };
        let images = Args { pull: Some("always".to_owned()), ..args() }.images(&env).unwrap();
        assert_eq!((images.pull, images.prepull), (PullPolicy::Always, vec!["a:1".to_owned(), "b".to_owned()]));
        assert_eq!((images.logins.len(), images.cache_bytes_max), (2, None));
        assert_eq!(images.docker_config, Some("/docker".into()));
        let given = Args { registry_login: vec!["x.example=a:b".to_owned()], ..args() }.images(&env).unwrap();
        assert_eq!(given.logins.len(), 1);
        assert_eq!(args().builds(&env).unwrap().at_once, 0);
    }

    #[test]
    fn what_cannot_be_meant_is_refused_and_a_password_is_not_repeated() {
        let none = |_: &str| None;
        let login = Args { registry_login: vec!["secret".to_owned()], ..args() }.images(&none).unwrap_err();
        assert!(!login.to_string().contains("secret") && login.place == "--registry-login");
        for bad in ["linux", "linux/", "a b/c", "linux/arm/v7/x"] {
            assert!(platform(bad).is_err(), "{bad}");
        }
        assert!(
            platform("linux/arm/v7").is_ok() && list("a,,b").is_err() && builds("65").is_err() && builds("-1").is_err()
        );
        assert_eq!(cache_size("1g"), Ok(Some(1 << 30)));
    }
}
