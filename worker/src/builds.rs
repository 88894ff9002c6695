//! Builds: images that jobs describe instead of naming them. The same description has the same image, which is built once;
//! runs that want it at once wait for one build, and the last of them that goes away ends it.
//!
//! Ground floor first, all of it pure but for reading and writing files without names: `key` (what an image is called),
//! `source` (where files are), `tree` (files as a list), `archive` (packed files into that), `ignore` and `context` (what the
//! engine is sent); then `log`, `fetch` and `git` (files come), `engine` (an image comes),
//! `registry` (it is kept for others, too).

mod archive;
mod context;
mod engine;
mod fetch;
mod git;
mod ignore;
mod key;
mod log;
mod registry;
mod source;
mod tree;

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use protocol::definition::Build;
use protocol::native::{LogLine, LogStep};
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;
use tracing::warn;

use crate::config::{BuildConfig, Config};
use crate::error::WorkerError;
use crate::files::web::Web;
use crate::images::{Images, InUse, words};
use crate::logs::RunLog;
use crate::sync::lock;
use context::Context;
use engine::Order;
use fetch::{Fetcher, SILENCE};
use git::Repository;
use log::{BuildLog, Cursor};
use registry::Kept;
use source::{Source, shown};
use tree::{Limits, Tree};

pub(crate) use engine::Held;
pub(crate) use key::image_name;

/// Why there is no image, with all that the build said.
#[derive(Debug)]
pub(crate) struct NotBuilt {
    pub(crate) logs: Vec<LogLine>,
}

/// What builds.
#[derive(Debug)]
pub(crate) struct Builds {
    images: Arc<Images>,
    config: BuildConfig,
    held: Held,
    folder: PathBuf,
    fetcher: Fetcher,
    room: Arc<Semaphore>,
    running: Mutex<HashMap<String, Weak<Running>>>,
    tally: crate::observe::Tally,
}

/// A build under way. It is given up when the last run that wants it is.
#[derive(Debug)]
struct Running {
    ended: watch::Receiver<Option<Result<(), String>>>,
    log: BuildLog,
    _task: AbortOnDropHandle<()>,
}

impl Builds {
    /// Prepares the folder below the data directory; what an earlier process left there goes.
    pub(crate) fn open(
        config: &Config,
        images: Arc<Images>,
        held: Held,
        tls: &rustls::ClientConfig,
    ) -> Result<Self, WorkerError> {
        let folder = config.data_directory.join("builds");
        let fetches_private = config.files.fetch_private.is_allowed(config.network.as_deref());
        let web = Web::new(tls, &config.api, fetches_private, SILENCE);
        let config = config.builds.clone();
        match fs::remove_dir_all(&folder) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                warn!("cannot remove all of {}: {error}", folder.display());
            }
            Ok(()) | Err(_) => {}
        }
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder).map_err(WorkerError::disk(&folder))?;
        Ok(Self {
            images,
            held,
            folder,
            fetcher: Fetcher(web.map_err(|error| WorkerError::Tls(error.to_string()))?),
            room: Arc::new(Semaphore::new(
                usize::try_from(config.at_once).unwrap_or(usize::MAX).min(Semaphore::MAX_PERMITS),
            )),
            running: Mutex::default(),
            tally: crate::observe::Tally::default(),
            config,
        })
    }

    /// Sees to it that the image of `build` is there, under its `name`; what the build says goes to `log`. It stays as long
    /// as what is returned lives.
    pub(crate) async fn ensure(self: &Arc<Self>, build: &Build, name: &str, log: &RunLog) -> Result<InUse, NotBuilt> {
        let in_use = self.images.hold_built(name).await;
        let no = |why: &str| NotBuilt { logs: BuildLog::new().result(why) };
        if self.config.at_once == 0 {
            return Err(no("this worker builds no images: name a ready one in `image` and leave `build` out"));
        }
        match self.images.is_built(name).await {
            Ok(true) => return Ok(in_use),
            Ok(false) => {}
            Err(error) => return Err(no(&format!("cannot ask the engine for the image {name}: {}", words(&error)))),
        }
        let (running, mut cursor) = self.join(build, name);
        let mut ended = running.ended.clone();
        loop {
            tokio::select! {
                biased;
                end = wait_for_end(&mut ended) => {
                    running.log.drain(&mut cursor, log).await;
                    return match end {
                        Ok(()) => Ok(in_use),
                        Err(why) => Err(NotBuilt { logs: running.log.result(&why) }),
                    };
                }
                () = running.log.follow(&mut cursor, log) => {}
            }
        }
    }

    /// How many images were built.
    pub(crate) const fn tally(&self) -> &crate::observe::Tally {
        &self.tally
    }

    /// Takes part in the build that is under way, or starts it.
    fn join(self: &Arc<Self>, build: &Build, name: &str) -> (Arc<Running>, Cursor) {
        let mut all = lock(&self.running);
        all.retain(|_, running| running.strong_count() > 0);
        if let Some(running) = all.get(name).and_then(Weak::upgrade)
            && running.ended.borrow().is_none()
        {
            let cursor = running.log.start();
            return (running, cursor);
        }
        let (log, (end, ended)) = (BuildLog::new(), watch::channel(None));
        let (builds, build, wanted, said) = (Arc::clone(self), build.clone(), name.to_owned(), log.clone());
        let task = AbortOnDropHandle::new(tokio::spawn(async move {
            let result = builds.build(&build, &wanted, &said).await;
            builds.tally.count(&result);
            end.send_replace(Some(result));
        }));
        let cursor = log.start();
        let running = Arc::new(Running { ended, log, _task: task });
        all.insert(name.to_owned(), Arc::downgrade(&running));
        (running, cursor)
    }

    async fn build(&self, build: &Build, name: &str, log: &BuildLog) -> Result<(), String> {
        let room = match Arc::clone(&self.room).try_acquire_owned() {
            Ok(room) => Ok(room),
            Err(_) => {
                log.line(LogStep::Build, "waiting for another build to end", false);
                Arc::clone(&self.room).acquire_owned().await
            }
        };
        let room = room.map_err(|_| "the worker is stopping".to_owned())?;
        let kept = self.kept(build, name, log).await;
        if let Some(kept) = &kept
            && kept.fetch(&self.images, name, log).await
        {
            return Ok(());
        }
        let limit = Duration::from_millis(self.config.duration_ms_max);
        match timeout(limit, self.make(build, name, limit, log)).await {
            Ok(made) => made?,
            Err(_) => {
                return Err(format!("the build was stopped after {} s, which is this worker's limit", limit.as_secs()));
            }
        }
        if let Some(kept) = kept {
            kept.send(Arc::clone(&self.images), name, log, room).await;
        }
        Ok(())
    }

    /// Where the image is kept for other workers, if there is such a place.
    async fn kept(&self, build: &Build, name: &str, log: &BuildLog) -> Option<Kept> {
        let registry = self.config.registry.as_ref()?;
        match Kept::of(registry, self.images.docker(), name, self.held.platform_of(build)).await {
            Ok(kept) => Some(kept),
            Err(why) => {
                log.line(LogStep::Build, &format!("warning: the image has no place in {registry}: {why}"), true);
                None
            }
        }
    }

    /// The job that wanted this image was deleted: it goes, if nothing else uses it.
    pub(crate) async fn discard(&self, build: &Build) {
        self.images.discard(&image_name(build)).await;
    }

    async fn make(&self, build: &Build, name: &str, limit: Duration, log: &BuildLog) -> Result<(), String> {
        let (tree, directory) = self.files(build, log).await?;
        let context = Context::new(build, &tree, directory.as_deref()).map_err(|error| error.to_string())?;
        let order = Order { name, build, held: &self.held, logins: self.images.logins().await, limit };
        let docker = self.images.docker();
        match order.run(docker, Arc::new(context), Arc::new(tree), log).await {
            Ok(()) => {
                self.images.built(name).await;
                Ok(())
            }
            Err(failed) => {
                if let Some(layer) = &failed.left {
                    self.images.left(layer).await;
                }
                Err(format!("the image could not be built: {}", failed.why))
            }
        }
    }

    /// The files that `build.context` names; without one, none.
    async fn files(&self, build: &Build, log: &BuildLog) -> Result<(Tree, Option<String>), String> {
        let bytes_max = self.config.context_bytes_max;
        let Some(address) = build.context.as_deref() else {
            let tree = Tree::new(&self.folder, Limits { bytes_max, archive_bytes: None });
            return tree.map(|tree| (tree, None)).map_err(|error| format!("cannot store files: {error}"));
        };
        let source = Source::parse(address).map_err(|error| error.to_string())?;
        let (file, archive_bytes) = match &source {
            Source::Archives { urls, login, .. } => {
                let fetched = self.fetcher.first_of(urls, login.as_ref(), &self.folder, bytes_max, log).await;
                fetched.map(|(file, bytes)| (file, Some(bytes))).map_err(|error| format!("build.context: {error}"))?
            }
            Source::Git { url, reference, login, .. } => {
                let (reference, login, web) = (reference.as_deref(), login.as_ref(), &self.fetcher.0);
                let repository = Repository { url, reference, login, bytes_max, web };
                let fetched = repository.fetch(&self.folder, log).await;
                (fetched.map_err(|error| format!("build.context: {error}"))?, None)
            }
        };
        let tree = self.unpack(file, Limits { bytes_max, archive_bytes }).await;
        let tree = tree.map_err(|why| format!("build.context: {}: {why}", shown(address)))?;
        let mut said = format!("unpacked {} files and directories, {} bytes", tree.nodes().len(), tree.bytes());
        if let Some(commit) = &tree.commit {
            said.push_str(&format!(", of commit {commit}"));
        }
        if tree.left_out > 0 {
            said.push_str(&format!("; left out {} devices and pipes", tree.left_out));
        }
        log.line(LogStep::Clone, &said, false);
        Ok((tree, source.directory().map(str::to_owned)))
    }

    async fn unpack(&self, file: fs::File, limits: Limits) -> Result<Tree, String> {
        let (folder, given_up) = (self.folder.clone(), GiveUp::default());
        let flag = Arc::clone(&given_up.0);
        let unpacked = tokio::task::spawn_blocking(move || {
            let mut tree = Tree::new(&folder, limits).map_err(tree::TreeError::from)?;
            archive::unpack(file, &mut tree, &flag)?;
            Ok::<_, archive::ArchiveError>(tree)
        });
        match unpacked.await {
            Ok(unpacked) => unpacked.map_err(|error| error.to_string()),
            Err(_) => Err("the worker failed while it unpacked this; its log says where".to_owned()),
        }
    }
}

/// Tells a thread that nobody waits for it any more, when it is dropped.
#[derive(Default)]
struct GiveUp(Arc<AtomicBool>);

impl Drop for GiveUp {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

async fn wait_for_end(ended: &mut watch::Receiver<Option<Result<(), String>>>) -> Result<(), String> {
    match ended.wait_for(Option::is_some).await {
        Ok(end) => end.clone().unwrap_or(Ok(())),
        Err(_) => Err("the build was interrupted".to_owned()),
    }
}
