//! One pull: the engine's stream of events, to its end or to the first error in it; shared by all runs that want the image.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, Weak};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};
use bollard::Docker;
use bollard::auth::DockerCredentials;
use bollard::errors::Error;
use bollard::query_parameters::CreateImageOptionsBuilder;
use futures_util::StreamExt;
use tokio::sync::{broadcast, watch};
use tokio_util::task::AbortOnDropHandle;

use super::progress::Progress;
use super::reference::Reference;
use crate::observe::Tally;
use crate::sync::lock;

/// Progress lines that a slow run may be behind before it misses some.
const PROGRESS_MAX: usize = 256;
/// How the engine is told a login.
const AUTH_HEADERS: [&str; 2] = ["x-registry-auth", "x-registry-config"];

/// Pulls under way, by what is pulled. Each is given up when the last run that wants it is.
#[derive(Debug, Default)]
pub(super) struct Pulls(Mutex<HashMap<String, Weak<Pull>>>, Tally);

/// A pull under way.
#[derive(Debug)]
pub(super) struct Pull {
    ended: watch::Receiver<Option<Result<(), String>>>,
    progress: broadcast::Sender<String>,
    _task: AbortOnDropHandle<()>,
}

impl Pulls {
    /// How many came to their end, and how many of them failed.
    pub(super) const fn tally(&self) -> &Tally {
        &self.1
    }

    /// Takes part in the pull of `name` that is under way, or starts one with `work`, which tells its progress.
    pub(super) fn join<F>(&self, name: &str, work: impl FnOnce(broadcast::Sender<String>) -> F) -> Following
    where
        F: Future<Output = Result<(), String>> + Send + 'static,
    {
        let mut pulls = lock(&self.0);
        pulls.retain(|_, pull| pull.strong_count() > 0);
        if let Some(pull) = pulls.get(name).and_then(Weak::upgrade)
            && pull.ended.borrow().is_none()
        {
            let (progress, ended) = (pull.progress.subscribe(), pull.ended.clone());
            return Following { progress, ended, _pull: pull };
        }
        let (sender, progress) = broadcast::channel(PROGRESS_MAX);
        let (end, ended) = watch::channel(None);
        let (work, tally) = (work(sender.clone()), self.1.clone());
        let task = AbortOnDropHandle::new(tokio::spawn(async move {
            let result = work.await;
            tally.count(&result);
            end.send_replace(Some(result));
        }));
        let pull = Arc::new(Pull { ended: ended.clone(), progress: sender, _task: task });
        pulls.insert(name.to_owned(), Arc::downgrade(&pull));
        Following { progress, ended, _pull: pull }
    }
}

/// One that waits for a pull.
pub(super) struct Following {
    progress: broadcast::Receiver<String>,
    ended: watch::Receiver<Option<Result<(), String>>>,
    _pull: Arc<Pull>,
}

/// What happens next in a pull.
pub(super) enum Step {
    Line(String),
    End(Result<(), String>),
}

impl Following {
    pub(super) async fn next(&mut self) -> Step {
        loop {
            tokio::select! {
                biased;
                line = self.progress.recv() => match line {
                    Ok(line) => return Step::Line(line),
                    // Not closed: the pull itself, held here, keeps a sender.
                    Err(broadcast::error::RecvError::Lagged(_) | broadcast::error::RecvError::Closed) => {}
                },
                end = wait_for_end(&mut self.ended) => return Step::End(end),
            }
        }
    }
}

async fn wait_for_end(ended: &mut watch::Receiver<Option<Result<(), String>>>) -> Result<(), String> {
    match ended.wait_for(Option::is_some).await {
        Ok(end) => end.clone().unwrap_or(Ok(())),
        Err(_) => Err("the pull was interrupted".to_owned()),
    }
}

/// Pulls an image. An error anywhere in the engine's stream is a failure.
pub(super) async fn pull(
    docker: &Docker,
    reference: Reference<'_>,
    platform: Option<&str>,
    login: Option<DockerCredentials>,
    mut tell: impl FnMut(String),
) -> Result<(), String> {
    let options = CreateImageOptionsBuilder::default().from_image(reference.name).tag(reference.version());
    let options = options.platform(platform.unwrap_or_default()).build();
    let mut events = docker.create_image(Some(options), None, login);
    let mut progress = Progress::default();
    while let Some(event) = events.next().await {
        let event = event.map_err(|error| words(&error))?;
        if let Some(said) = event.error_detail.as_ref().and_then(|detail| detail.message.as_deref()) {
            return Err(said.trim_end().to_owned());
        }
        if let Some(line) = progress.line(&event, tokio::time::Instant::now()) {
            tell(line);
        }
    }
    Ok(())
}

/// The client, with logins in the alphabet that the engine reads: it takes base64 for addresses, and ignores a login that
/// has a `+` or `/` in it.
pub(super) fn with_readable_logins(docker: Docker) -> Docker {
    docker.with_request_modifier(|mut request| {
        for name in AUTH_HEADERS {
            if let Some(value) = request.headers_mut().get_mut(name)
                && let Some(readable) = STANDARD.decode(value.as_bytes()).ok().map(|bytes| URL_SAFE.encode(bytes))
                && let Ok(mut readable) = reqwest::header::HeaderValue::from_str(&readable)
            {
                readable.set_sensitive(true);
                *value = readable;
            }
        }
        request
    })
}

/// What the engine said, without the client's words around it.
pub(crate) fn words(error: &Error) -> String {
    if let Error::DockerResponseServerError { message: said, .. } | Error::DockerStreamError { error: said } = error {
        said.trim_end().to_owned()
    } else {
        crate::outcome::with_sources(error)
    }
}
