//! Images: there already, or pulled; the same one by many runs at once is pulled once. What this worker brought to the
//! machine it also removes, when it is too much.
//!
//! Ground floor first: `reference` (pure: names), `progress` and `ledger` (pure: whose an image is); `credentials` (logins),
//! `pull` (one pull); `keep` (what is removed when), `exchange` (built images in a registry of one's own).

mod credentials;
mod exchange;
mod keep;
mod ledger;
mod progress;
mod pull;
mod reference;

use std::collections::{BTreeSet, HashMap};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bollard::Docker;
use bollard::auth::DockerCredentials;
use bollard::errors::Error;
use protocol::id::UnixMillis;
use protocol::native::{LogLine, LogStep};
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;
use tracing::{info, warn};

use crate::brief::brief;
use crate::clock::{age_ms, unix_now};
use crate::config::{ConfigError, ImageConfig, PullPolicy};
use crate::container::{Engine, is_not_found};
use crate::logs::RunLog;
use crate::sync::lock;
use credentials::Logins;
use keep::Counts;
use ledger::{Entry, Ledger, Origin};
use pull::{Pulls, Step};
use reference::Reference;

pub(crate) use credentials::{Helpers, helpers};
pub(crate) use exchange::NotFetched;
pub(crate) use keep::InUse;
pub(crate) use progress::Progress;
pub(crate) use pull::words;

/// Names remembered as present; more than a worker sees in a day, and forgetting one costs one look.
const KNOWN_MAX: usize = 10_000;
/// How long an image that could not be refreshed serves before that is tried again: a registry that is away would otherwise
/// hold up each run.
const REFRESH_RETRY_MS: u64 = 10 * 60 * 1000;
/// How often uses are written down at most. What a kill loses of them only makes an image look a little older.
const SAVE_EVERY: Duration = Duration::from_secs(60);
/// How often the images asked for at the start are tried, with [`PREPULL_PAUSE`] between: a laptop's network takes a while.
const PREPULL_TRIES: u32 = 5;
const PREPULL_PAUSE: Duration = Duration::from_secs(60);

/// Why there is no image. Text, because several runs may share one pull.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cannot pull the image {reference}: {why}")]
pub(crate) struct PullError {
    reference: String,
    why: String,
}

/// What is known of the engine's images.
#[derive(Debug)]
pub(crate) struct Images {
    docker: Docker,
    config: ImageConfig,
    logins: Logins,
    /// Names that were found, with the time from which they are to be looked for anew. As in all that is known of images, a
    /// name has one spelling here.
    known: Mutex<HashMap<String, Option<Instant>>>,
    pulls: Pulls,
    ledger: Mutex<Ledger>,
    /// What was asked for at the start, by the one spelling.
    kept: BTreeSet<String>,
    saved: Mutex<Option<Instant>>,
    counts: Arc<Counts>,
    trimming: tokio::sync::Mutex<()>,
}

/// What is to be done about an image.
enum Todo {
    /// It serves, until then if that is said.
    Use(Option<Instant>),
    /// It is not there.
    Pull,
    /// It is there, but there may be a newer one.
    Refresh { after_ms: u64 },
}

/// What the engine has under a name.
pub(crate) enum Look {
    Missing,
    There(Found),
}

/// An image that is there.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// `None` when the engine's description could not be read.
    pub(crate) id: Option<String>,
    pub(crate) bytes: u64,
    pub(crate) names: Vec<String>,
    /// Whether it came from a registry, as far as the engine knows.
    pub(crate) from_registry: bool,
    /// When its name was last given to it.
    named_ms: UnixMillis,
}

/// Looks for an image. `name` has been checked, or is the engine's own.
pub(crate) async fn look(docker: &Docker, name: &str) -> Result<Look, Error> {
    let found = match docker.inspect_image(name).await {
        Ok(found) => found,
        Err(error) if is_not_found(&error) => return Ok(Look::Missing),
        // There, but described in a way that the client does not know: dates are spelled in many ways.
        Err(Error::JsonDataError { .. } | Error::JsonSerdeError { .. }) => return Ok(Look::There(Found::default())),
        Err(error) => return Err(error),
    };
    let named = found.metadata.and_then(|metadata| metadata.last_tag_time).map(|time| time.unix_timestamp());
    Ok(Look::There(Found {
        id: found.id,
        bytes: found.size.and_then(|bytes| u64::try_from(bytes).ok()).unwrap_or_default(),
        names: found.repo_tags.unwrap_or_default(),
        from_registry: found.repo_digests.is_some_and(|digests| !digests.is_empty()),
        named_ms: UnixMillis(named.and_then(|seconds| u64::try_from(seconds).ok()).unwrap_or_default() * 1000),
    }))
}

/// Fetches an image, whether or not it is there: for those that are no worker.
pub(crate) async fn fetch(docker: &Docker, config: &ImageConfig, name: &str) -> Result<(), String> {
    let Some(reference) = Reference::parse(name) else { return Err(format!("{name:?} is not the name of an image")) };
    let logins = Logins::new(config.logins.clone(), config.docker_config.clone());
    let login = logins.find(reference.registry()).await;
    let docker = pull::with_readable_logins(docker.clone());
    pull::pull(&docker, reference, config.platform.as_deref(), login, |_| {}).await
}

impl Images {
    pub(crate) fn new(engine: &Engine, config: ImageConfig, data: &Path) -> Result<Self, ConfigError> {
        let mut kept = BTreeSet::new();
        for name in &config.prepull {
            let reference = Reference::parse(name).ok_or_else(|| ConfigError::ImageName { text: name.clone() })?;
            kept.insert(reference.canonical());
        }
        Ok(Self {
            docker: pull::with_readable_logins(engine.docker().clone()),
            logins: Logins::new(config.logins.clone(), config.docker_config.clone()),
            known: Mutex::default(),
            pulls: Pulls::default(),
            ledger: Mutex::new(Ledger::open(data)),
            kept,
            saved: Mutex::default(),
            counts: Arc::default(),
            trimming: tokio::sync::Mutex::default(),
            config,
        })
    }

    /// The engine's client, in which logins are spelled as the engine reads them.
    pub(crate) fn docker(&self) -> &Docker {
        &self.docker
    }

    /// How many images were fetched.
    pub(crate) const fn tally(&self) -> &crate::observe::Tally {
        self.pulls.tally()
    }

    /// All logins to registries, for a builder.
    pub(crate) async fn logins(&self) -> HashMap<String, DockerCredentials> {
        self.logins.all().await
    }

    /// Sees to it that `name` is there; a pull's progress goes to `log`. It stays as long as what is returned lives.
    pub(crate) async fn ensure(self: &Arc<Self>, name: &str, log: Option<&RunLog>) -> Result<InUse, PullError> {
        let failed = |why: String| PullError { reference: brief(name).into_owned(), why };
        let Some(reference) = Reference::parse(name) else {
            return Err(failed(
                "that is not the name of an image; write it as name:tag or registry/name:tag".to_owned(),
            ));
        };
        let key = reference.canonical();
        let in_use = self.counts.hold(&key);
        let fresh_until = match self.todo(name, &key, reference).await.map_err(|error| failed(words(&error)))? {
            Todo::Use(until) => until,
            Todo::Pull if self.config.pull == PullPolicy::Never => {
                return Err(failed("it is not on this machine, and this worker fetches none".to_owned()));
            }
            Todo::Pull => {
                self.pull(name, &key, log).await.map_err(failed)?;
                self.fresh_until(reference)
            }
            Todo::Refresh { after_ms } => match self.pull(name, &key, log).await {
                Ok(()) => self.fresh_until(reference),
                Err(why) => {
                    let text = format!("cannot look for a newer {name}, the one that is here serves: {why}");
                    tell(log, LogStep::Pull, text).await;
                    Some(Instant::now() + Duration::from_millis(after_ms.min(REFRESH_RETRY_MS)))
                }
            },
        };
        self.remember(&key, fresh_until);
        self.save_sometimes().await;
        Ok(in_use)
    }

    async fn todo(&self, name: &str, key: &str, reference: Reference<'_>) -> Result<Todo, Error> {
        if self.config.pull == PullPolicy::Always {
            return Ok(Todo::Pull);
        }
        if let Some(until) = lock(&self.known).get(key)
            && until.is_none_or(|until| Instant::now() < until)
        {
            return Ok(Todo::Use(*until));
        }
        let Look::There(found) = look(&self.docker, name).await? else { return Ok(Todo::Pull) };
        let PullPolicy::Floating { after_ms } = self.config.pull else { return Ok(Todo::Use(None)) };
        // One that no registry ever had was made on this machine.
        if !reference.is_floating() || !found.from_registry {
            return Ok(Todo::Use(None));
        }
        let asked = lock(&self.ledger).get(key).map(|entry| entry.asked_ms).unwrap_or_default().max(found.named_ms);
        match after_ms.checked_sub(age_ms(asked, unix_now())).filter(|left| *left > 0) {
            Some(left) => Ok(Todo::Use(Some(Instant::now() + Duration::from_millis(left)))),
            None => Ok(Todo::Refresh { after_ms }),
        }
    }

    fn fresh_until(&self, reference: Reference<'_>) -> Option<Instant> {
        match self.config.pull {
            PullPolicy::Floating { after_ms } if reference.is_floating() => {
                Some(Instant::now() + Duration::from_millis(after_ms))
            }
            PullPolicy::Floating { .. } | PullPolicy::Missing | PullPolicy::Always | PullPolicy::Never => None,
        }
    }

    fn remember(&self, key: &str, fresh_until: Option<Instant>) {
        let mut known = lock(&self.known);
        if known.len() >= KNOWN_MAX {
            known.clear();
        }
        known.insert(key.to_owned(), fresh_until);
        drop(known);
        lock(&self.ledger).used(key, unix_now());
    }

    /// Somebody removed it: look again next time.
    pub(crate) fn doubt(&self, name: &str) {
        if let Some(reference) = Reference::parse(name) {
            lock(&self.known).remove(&reference.canonical());
        }
    }

    async fn pull(self: &Arc<Self>, name: &str, key: &str, log: Option<&RunLog>) -> Result<(), String> {
        let (images, wanted, known_as) = (Arc::clone(self), name.to_owned(), key.to_owned());
        let mut following = self.pulls.join(key, |lines| async move {
            let Some(reference) = Reference::parse(&wanted) else { return Err("that is not a name".to_owned()) };
            let before = look(&images.docker, &wanted).await.map_err(|error| words(&error))?;
            let login = images.logins.find(reference.registry()).await;
            let platform = images.config.platform.as_deref();
            // Nobody listening is no failure.
            let tell = |line| drop(lines.send(line));
            pull::pull(&images.docker, reference, platform, login, tell).await?;
            // A registry can end the stream without an error and without an image.
            match look(&images.docker, &wanted).await {
                Ok(Look::There(after)) => images.came(&known_as, before, after).await,
                Ok(Look::Missing) => return Err("the registry gave no image".to_owned()),
                Err(error) => return Err(words(&error)),
            }
            Ok(())
        });
        loop {
            match following.next().await {
                Step::Line(line) => tell(log, LogStep::Pull, line).await,
                Step::End(end) => return end,
            }
        }
    }

    /// Writes down what a pull brought.
    async fn came(self: &Arc<Self>, key: &str, before: Look, after: Found) {
        let now = unix_now();
        let id = after.id.unwrap_or_default();
        let earlier = lock(&self.ledger).get(key).cloned();
        let origin = match (&before, &earlier) {
            (Look::Missing, _) => Origin::Pulled,
            // Still the one that we brought, or the newer one in its place.
            (Look::There(found), Some(entry)) if found.id.as_deref() == Some(&entry.id) => entry.origin.after_pull(),
            (Look::There(_), _) => Origin::Theirs,
        };
        if let Some(entry) = earlier
            && entry.id != id
            && origin == Origin::Pulled
            && matches!(before, Look::There(_))
        {
            let old = entry.id.clone();
            lock(&self.ledger).put(&old, Entry { origin: Origin::Remains, ..entry });
        }
        let entry = Entry { id, origin, bytes: after.bytes, asked_ms: now, used_ms: now };
        lock(&self.ledger).put(key, entry);
        self.after_change().await;
    }

    /// Writes down what a build made.
    pub(crate) async fn built(self: &Arc<Self>, name: &str) {
        if let Ok(Look::There(Found { id: Some(id), bytes, .. })) = look(&self.docker, name).await {
            let now = unix_now();
            lock(&self.ledger).put(name, Entry { id, origin: Origin::Built, bytes, asked_ms: now, used_ms: now });
            self.after_change().await;
        }
    }

    /// Writes down a layer that a build left which did not come to its end.
    pub(crate) async fn left(self: &Arc<Self>, id: &str) {
        if let Ok(Look::There(Found { id: Some(id), bytes, names, .. })) = look(&self.docker, id).await
            && names.is_empty()
        {
            let now = unix_now();
            let entry = Entry { id: id.clone(), origin: Origin::Remains, bytes, asked_ms: now, used_ms: now };
            lock(&self.ledger).put(&id, entry);
            self.after_change().await;
        }
    }

    /// Whether `name` is an image that was built here: by this worker, or by one that nobody could fetch it from.
    pub(crate) async fn is_built(&self, name: &str) -> Result<bool, Error> {
        let Look::There(found) = look(&self.docker, name).await? else { return Ok(false) };
        let is_ours = lock(&self.ledger)
            .get(name)
            .is_some_and(|entry| entry.origin == Origin::Built && found.id.as_deref() == Some(&entry.id));
        Ok(is_ours || !found.from_registry)
    }

    /// A run is about to use an image that was built.
    pub(crate) async fn hold_built(&self, name: &str) -> InUse {
        let in_use = self.counts.hold(name);
        lock(&self.ledger).used(name, unix_now());
        self.save_sometimes().await;
        in_use
    }

    async fn after_change(self: &Arc<Self>) {
        self.save().await;
        let images = Arc::clone(self);
        // Bounded: one at a time does anything.
        tokio::spawn(async move { images.trim().await });
    }

    /// Writes down what is known, for the next start.
    pub(crate) async fn save(&self) {
        let image = lock(&self.ledger).image();
        *lock(&self.saved) = Some(Instant::now());
        match tokio::task::spawn_blocking(move || ledger::write(image)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => warn!("cannot write down which images are this worker's own: {error}"),
            Err(_) => warn!("the task that writes down images ended early"),
        }
    }

    async fn save_sometimes(&self) {
        if lock(&self.saved).is_none_or(|at| at.elapsed() >= SAVE_EVERY) {
            self.save().await;
        }
    }

    /// Fetches what the worker was told to have ready, beside its work; given up when the handle is dropped.
    pub(crate) fn prepull(self: &Arc<Self>) -> AbortOnDropHandle<()> {
        let images = Arc::clone(self);
        AbortOnDropHandle::new(tokio::spawn(async move {
            images.trim().await;
            for name in images.config.prepull.clone() {
                images.prepull_one(&name).await;
            }
        }))
    }

    async fn prepull_one(self: &Arc<Self>, name: &str) {
        for tries in 1..=PREPULL_TRIES {
            match self.ensure(name, None).await {
                Ok(_) => return info!("the image {name} is ready"),
                Err(error) => warn!("{error} (try {tries} of {PREPULL_TRIES})"),
            }
            if tries < PREPULL_TRIES {
                tokio::time::sleep(PREPULL_PAUSE).await;
            }
        }
    }
}

/// One line for a run's log, if there is a run.
async fn tell(log: Option<&RunLog>, step: LogStep, text: String) {
    if let Some(log) = log {
        log.send(step, vec![LogLine { text: format!("{text}\n"), at_ms: unix_now(), stderr: false }]).await;
    }
}
