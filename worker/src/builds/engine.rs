//! The engine's part of a build: the files go in, lines and an image come out.

mod buildkit;
mod classic;

use std::collections::HashMap;
use std::io::{self, Write};
use std::sync::Arc;
use std::time::Duration;

use bollard::Docker;
use bollard::auth::DockerCredentials;
use bollard::errors::Error;
use bollard::query_parameters::{BuildImageOptions, BuildImageOptionsBuilder, BuilderVersion};
use bytes::Bytes;
use futures_util::StreamExt;
use protocol::definition::Build;
use protocol::native::LogStep;
use tokio::sync::mpsc;

use super::GiveUp;
use super::context::Context;
use super::log::BuildLog;
use super::tree::Tree;
use crate::brief::brief;
use crate::config::{Builder, JobLimits};
use crate::container::{NETWORK, is_not_found};
use crate::images::words;
use buildkit::Progress as BuildKitProgress;
use classic::Progress as ClassicProgress;

/// The first version of the API whose engines' own clients take BuildKit unless told otherwise.
const BUILDKIT_SINCE: (usize, usize) = (1, 42);
/// The networks that BuildKit's steps are on: the engine's own bridge, the host's, or none.
const BUILDKIT_NETWORKS: [&str; 4] = [NETWORK, "bridge", "default", "none"];
/// How much of the files is on its way at once.
const CHUNK_BYTES: usize = 64 * 1024;
const CHUNKS_MAX: usize = 16;
/// What the classic builder counts CPU time in, in microseconds.
const CPU_PERIOD: i32 = 100_000;
const MILLI: i64 = 1_000;

/// What every build of a worker is held to.
#[derive(Clone, Debug)]
pub(crate) struct Held {
    pub(crate) builder: Builder,
    pub(crate) limits: JobLimits,
    /// The network that containers are on.
    pub(crate) network: String,
    /// What is built for where a job does not say; the engine's own when `None`.
    pub(crate) platform: Option<String>,
}

impl Held {
    /// What is built for; what the engine takes when `None`.
    pub(super) fn platform_of<'a>(&'a self, build: &'a Build) -> Option<&'a str> {
        build.platform.as_deref().or(self.platform.as_deref()).filter(|platform| !platform.is_empty())
    }

    /// BuildKit cannot be held to limits on CPU and memory, nor to a network: it is taken only where there are none.
    pub(super) fn version(&self, docker: &Docker) -> BuilderVersion {
        let api = docker.client_version();
        let is_usual = (api.major_version, api.minor_version) >= BUILDKIT_SINCE;
        let is_held = self.limits.cpus_milli.is_some()
            || self.limits.memory_bytes.is_some()
            || !BUILDKIT_NETWORKS.contains(&self.network.as_str());
        match self.builder {
            Builder::BuildKit => BuilderVersion::BuilderBuildKit,
            Builder::Auto if is_usual && !is_held => BuilderVersion::BuilderBuildKit,
            Builder::Auto | Builder::Classic => BuilderVersion::BuilderV1,
        }
    }
}

/// One build.
pub(super) struct Order<'a> {
    pub(super) name: &'a str,
    pub(super) build: &'a Build,
    pub(super) held: &'a Held,
    pub(super) logins: HashMap<String, DockerCredentials>,
    /// The longest that it may take.
    pub(super) limit: Duration,
}

/// How a build ended that did not succeed.
pub(super) struct Failed {
    pub(super) why: String,
    /// The newest layer that it made.
    pub(super) left: Option<String>,
}

impl Order<'_> {
    /// Builds. When this is dropped the connection goes, and the engine ends the build.
    pub(super) async fn run(
        self,
        docker: &Docker,
        context: Arc<Context>,
        tree: Arc<Tree>,
        log: &BuildLog,
    ) -> Result<(), Failed> {
        let version = self.held.version(docker);
        let is_buildkit = version == BuilderVersion::BuilderBuildKit;
        log.line(LogStep::Build, &self.announcement(&context.dockerfile, is_buildkit), false);
        let options = self.options(&context.dockerfile, version);
        let (chunks, body) = mpsc::channel(CHUNKS_MAX);
        let given_up = GiveUp::default();
        let flag = Arc::clone(&given_up.0);
        let writing = tokio::task::spawn_blocking(move || context.write(&tree, Chunks::new(chunks), &flag));
        let body =
            futures_util::stream::unfold(body, |mut body| async { body.recv().await.map(|chunk| (chunk, body)) });
        let docker = docker.clone().with_timeout(self.limit);
        let mut events = docker.build_image(options, Some(self.logins), Some(bollard::body_stream(body)));
        let (mut classic, mut buildkit) = (ClassicProgress::default(), BuildKitProgress::default());
        let mut failure = None;
        while let Some(event) = events.next().await {
            match event {
                Ok(info) if is_buildkit => buildkit.event(info, log),
                Ok(info) => classic.event(info, log),
                Err(error) => {
                    failure = Some(said(&error));
                    break;
                }
            }
        }
        classic.finish(log);
        drop(events);
        drop(given_up);
        let written = writing.await.map_err(io::Error::other).and_then(|written| written);
        let left = classic.into_left();
        match (failure, written) {
            (Some(why), _) => Err(Failed { why, left }),
            // The engine may end well before it has read the padding at the end.
            (None, Err(error)) if error.kind() != io::ErrorKind::BrokenPipe => {
                Err(Failed { why: format!("the files could not be read again: {error}"), left })
            }
            (None, _) => match docker.inspect_image(self.name).await {
                Err(error) if is_not_found(&error) => {
                    Err(Failed { why: "the engine ended the build without an image".to_owned(), left })
                }
                Ok(_) | Err(_) => Ok(()),
            },
        }
    }

    fn platform(&self) -> Option<&str> {
        self.held.platform_of(self.build)
    }

    /// Says what is built. Values of arguments may be secrets, their names are not.
    fn announcement(&self, dockerfile: &str, is_buildkit: bool) -> String {
        let mut text = format!("building {} from {}", self.name, brief(dockerfile));
        for (what, value) in [("target", self.build.target.as_deref()), ("platform", self.platform())] {
            if let Some(value) = value {
                text.push_str(&format!(", {what} {}", brief(value)));
            }
        }
        let arguments: Vec<&str> = arguments(self.build).map(|(name, _)| name).collect();
        if !arguments.is_empty() {
            text.push_str(&format!(", with {}", brief(&arguments.join(", "))));
        }
        text.push_str(if is_buildkit { " (BuildKit)" } else { " (classic builder)" });
        text
    }

    fn options(&self, dockerfile: &str, version: BuilderVersion) -> BuildImageOptions {
        let arguments: HashMap<String, String> =
            arguments(self.build).map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        let mut options = BuildImageOptionsBuilder::default()
            .dockerfile(dockerfile)
            .t(self.name)
            .rm(true)
            .forcerm(true)
            .buildargs(&arguments)
            .target(self.build.target.as_deref().unwrap_or_default())
            .platform(self.platform().unwrap_or_default())
            .version(version);
        if version == BuilderVersion::BuilderBuildKit {
            if self.held.network == "none" {
                options = options.networkmode("none");
            }
            return options.session(&uuid::Uuid::new_v4().to_string()).build();
        }
        options = options.networkmode(&self.held.network);
        if let Some(milli) = self.held.limits.cpus_milli {
            let quota = i64::from(milli) * i64::from(CPU_PERIOD) / MILLI;
            options = options.cpuperiod(CPU_PERIOD).cpuquota(i32::try_from(quota).unwrap_or(i32::MAX));
        }
        // The client's number ends at 2 GiB; a limit above that cannot be said.
        if let Some(bytes) = self.held.limits.memory_bytes.and_then(|bytes| i32::try_from(bytes).ok()) {
            options = options.memory(bytes).memswap(bytes);
        }
        options.build()
    }
}

/// `NAME=value` pairs; a name without a value would be filled in from the worker's own environment elsewhere, and is left out.
fn arguments(build: &Build) -> impl Iterator<Item = (&str, &str)> {
    build.build_args.iter().filter_map(|pair| pair.split_once('=')).filter(|(name, _)| !name.is_empty())
}

fn said(error: &Error) -> String {
    let words = words(error);
    if words.is_empty() { "the engine gave no reason".to_owned() } else { words }
}

/// A writer whose bytes become a request's body.
struct Chunks {
    sender: mpsc::Sender<Bytes>,
    chunk: Vec<u8>,
}

impl Chunks {
    fn new(sender: mpsc::Sender<Bytes>) -> Self {
        Self { sender, chunk: Vec::with_capacity(CHUNK_BYTES) }
    }

    fn send(&mut self) -> io::Result<()> {
        if self.chunk.is_empty() {
            return Ok(());
        }
        let chunk = std::mem::replace(&mut self.chunk, Vec::with_capacity(CHUNK_BYTES));
        self.sender.blocking_send(chunk.into()).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

impl Write for Chunks {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.chunk.len() >= CHUNK_BYTES {
            self.send()?;
        }
        let room = CHUNK_BYTES.saturating_sub(self.chunk.len()).min(bytes.len());
        self.chunk.extend_from_slice(bytes.get(..room).unwrap_or_default());
        Ok(room)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.send()
    }
}
