//! Images: there already, or pulled; the same one by many runs at once is pulled once.

mod progress;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use bollard::errors::Error;
use bollard::query_parameters::CreateImageOptionsBuilder;
use futures_util::StreamExt;
use protocol::native::{LogLine, LogStep};
use tokio::sync::{broadcast, watch};
use tokio_util::task::AbortOnDropHandle;

use crate::clock::unix_now;
use crate::container::{Engine, is_not_found};
use crate::logs::RunLog;
use progress::Progress;

/// Progress lines that a slow run may be behind before it misses some.
const PROGRESS_MAX: usize = 256;
/// References remembered as present; more than a worker sees in a day, and forgetting one costs one look.
const KNOWN_MAX: usize = 10_000;

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
    engine: Engine,
    known: Mutex<HashSet<String>>,
    pulls: Mutex<HashMap<String, Weak<Pull>>>,
}

/// A pull under way. It is given up when the last run that wants it is.
#[derive(Debug)]
struct Pull {
    ended: watch::Receiver<Option<Result<(), String>>>,
    progress: broadcast::Sender<String>,
    _task: AbortOnDropHandle<()>,
}

impl Images {
    pub(crate) fn new(engine: Engine) -> Self {
        Self { engine, known: Mutex::default(), pulls: Mutex::default() }
    }

    /// Sees to it that `reference` is there; a pull's progress goes to `log`.
    pub(crate) async fn ensure(&self, reference: &str, log: &RunLog) -> Result<(), PullError> {
        if lock(&self.known).contains(reference) {
            return Ok(());
        }
        let failed = |why: String| PullError { reference: reference.to_owned(), why };
        match self.engine.docker().inspect_image(reference).await {
            Ok(_) => {}
            Err(error) if is_not_found(&error) => self.pull(reference, log).await.map_err(failed)?,
            Err(error) => return Err(failed(words(&error))),
        }
        let mut known = lock(&self.known);
        if known.len() >= KNOWN_MAX {
            known.clear();
        }
        known.insert(reference.to_owned());
        Ok(())
    }

    /// Somebody removed it: look again next time.
    pub(crate) fn doubt(&self, reference: &str) {
        lock(&self.known).remove(reference);
    }

    async fn pull(&self, reference: &str, log: &RunLog) -> Result<(), String> {
        let (pull, mut progress) = self.join(reference);
        let mut ended = pull.ended.clone();
        loop {
            tokio::select! {
                biased;
                line = progress.recv() => match line {
                    Ok(text) => {
                        let line = LogLine { text: format!("{text}\n"), at_ms: unix_now(), stderr: false };
                        log.send(LogStep::Pull, vec![line]).await;
                    }
                    // Not closed: the pull itself, held here, keeps a sender.
                    Err(broadcast::error::RecvError::Lagged(_) | broadcast::error::RecvError::Closed) => {}
                },
                end = wait_for_end(&mut ended) => return end,
            }
        }
    }

    /// Takes part in the pull of `reference` that is under way, or starts one.
    fn join(&self, reference: &str) -> (Arc<Pull>, broadcast::Receiver<String>) {
        let mut pulls = lock(&self.pulls);
        pulls.retain(|_, pull| pull.strong_count() > 0);
        if let Some(pull) = pulls.get(reference).and_then(Weak::upgrade)
            && pull.ended.borrow().is_none()
        {
            let progress = pull.progress.subscribe();
            return (pull, progress);
        }
        let (progress, receiver) = broadcast::channel(PROGRESS_MAX);
        let (end, ended) = watch::channel(None);
        let (engine, lines, wanted) = (self.engine.clone(), progress.clone(), reference.to_owned());
        let task = AbortOnDropHandle::new(tokio::spawn(async move {
            let result = pull(&engine, &wanted, &lines).await;
            end.send_replace(Some(result));
        }));
        let pull = Arc::new(Pull { ended, progress, _task: task });
        pulls.insert(reference.to_owned(), Arc::downgrade(&pull));
        (pull, receiver)
    }
}

async fn wait_for_end(ended: &mut watch::Receiver<Option<Result<(), String>>>) -> Result<(), String> {
    match ended.wait_for(Option::is_some).await {
        Ok(end) => end.clone().unwrap_or(Ok(())),
        Err(_) => Err("the pull was interrupted".to_owned()),
    }
}

async fn pull(engine: &Engine, reference: &str, lines: &broadcast::Sender<String>) -> Result<(), String> {
    let (name, tag) = split(reference);
    let options = CreateImageOptionsBuilder::default().from_image(name).tag(tag).build();
    let mut events = engine.docker().create_image(Some(options), None, None);
    let mut progress = Progress::default();
    while let Some(event) = events.next().await {
        let event = event.map_err(|error| words(&error))?;
        if let Some(line) = progress.line(&event, tokio::time::Instant::now()) {
            // Nobody listening is no failure.
            let _ = lines.send(line);
        }
    }
    // A registry can end the stream without an error and without an image.
    match engine.docker().inspect_image(reference).await {
        Ok(_) => Ok(()),
        Err(error) => Err(words(&error)),
    }
}

fn words(error: &Error) -> String {
    if let Error::DockerResponseServerError { message: said, .. } | Error::DockerStreamError { error: said } = error {
        said.trim_end().to_owned()
    } else {
        crate::outcome::with_sources(error)
    }
}

/// Name and tag (or digest) of a reference; without a tag the engine would pull all of them.
fn split(reference: &str) -> (&str, &str) {
    let (name, digest) = match reference.split_once('@') {
        Some((name, digest)) => (name, Some(digest)),
        None => (reference, None),
    };
    let (name, tag) = match name.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
        Some(_) | None => (name, None),
    };
    (name, digest.or(tag).unwrap_or("latest"))
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_split_where_registries_split_them() {
        assert_eq!(split("alpine"), ("alpine", "latest"));
        assert_eq!(split("alpine:3.19"), ("alpine", "3.19"));
        assert_eq!(split("host:5000/a/b"), ("host:5000/a/b", "latest"));
        assert_eq!(split("host:5000/a/b:1"), ("host:5000/a/b", "1"));
        assert_eq!(split("a@sha256:00"), ("a", "sha256:00"));
        assert_eq!(split("host:5000/a:1@sha256:00"), ("host:5000/a", "sha256:00"));
    }
}
