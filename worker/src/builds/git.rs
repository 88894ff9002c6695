//! Repositories by the `git` program. What it fetches is packed by `git archive` and never checked out: no file that a
//! stranger named is made here, no hook and no filter runs. Nothing of this machine's own git settings or keys is used.
//! `program` runs it, within limits.

mod program;

use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use protocol::native::LogStep;
use reqwest::Url;

use super::log::BuildLog;
use super::source::{Login, is_commit, shown};
use crate::files::web::{Web, WebError};
use program::{Home, MEMORY_KIB_MAX, Program};

/// The shortest text that may be the start of a commit's id.
const SHORT_COMMIT_CHARS_MIN: usize = 7;
/// The first version that connects to the addresses it is told (`http.curloptResolve`).
const PINS_SINCE: (u32, u32) = (2, 37);
/// What git keeps in memory of what it reads and writes. Its own defaults would take gigabytes for what a stranger packed.
const MEMORY_SETTINGS: [(&str, &str); 6] = [
    ("pack.threads", "1"),
    ("core.packedGitWindowSize", "16m"),
    ("core.packedGitLimit", "256m"),
    ("core.deltaBaseCacheLimit", "64m"),
    // What is larger is not read whole.
    ("core.bigFileThreshold", "32m"),
    ("pack.windowMemory", "64m"),
];

/// Why there are no files.
#[derive(Debug, thiserror::Error)]
pub(super) enum GitError {
    #[error(
        "this worker has no git program: install git where it runs, or give the address of an archive (most hosts of repositories have one)"
    )]
    NoGit,
    #[error(
        "this worker keeps jobs from private addresses, and its git program ({version}) is too old to be kept to public ones: version {}.{} or newer is needed",
        PINS_SINCE.0,
        PINS_SINCE.1
    )]
    TooOld { version: String },
    #[error("{url}: git says: {said}")]
    Git { url: String, said: String },
    #[error("{url}: {source}")]
    Web { url: String, source: WebError },
    #[error("{url}: the repository takes more disk than the {bytes_max} bytes that this worker allows")]
    TooLarge { url: String, bytes_max: u64 },
    #[error("cannot run git: {0}")]
    Io(#[from] io::Error),
}

/// One repository that is fetched.
pub(super) struct Repository<'a> {
    pub(super) url: &'a Url,
    pub(super) reference: Option<&'a str>,
    pub(super) login: Option<&'a Login>,
    pub(super) bytes_max: u64,
    pub(super) web: &'a Web,
}

impl Repository<'_> {
    /// Fetches it and gives a tar of its files, below one directory.
    pub(super) async fn fetch(&self, folder: &Path, log: &BuildLog) -> Result<File, GitError> {
        let name = shown(self.url.as_str());
        let wanted = self.reference.unwrap_or("HEAD");
        log.line(LogStep::Clone, &format!("fetching {wanted} of {name}"), false);
        let home = Home::new(folder)?;
        let mut git = Git { repository: self, settings: self.settings(), home: home.path() };
        if !self.web.fetches_private() {
            let version = git.run(&["version"]).await?;
            if !pins(&version) {
                return Err(GitError::TooOld { version: version.trim().to_owned() });
            }
            let pin = self.pin().await.map_err(|source| GitError::Web { url: name, source })?;
            git.settings.extend(pin);
        }
        git.run(&["init", "--quiet", "--bare", "."]).await?;
        let commit = match git.run(&["fetch", "--quiet", "--no-tags", "--depth=1", self.url.as_str(), wanted]).await {
            Ok(_) => git.run(&["rev-parse", "--verify", "FETCH_HEAD^{commit}"]).await?,
            // Some servers give only what has a name, and some give nothing but everything.
            Err(error @ GitError::Git { .. }) => git.all(wanted, error).await?,
            Err(error) => return Err(error),
        };
        let commit = commit.trim();
        log.line(LogStep::Clone, &format!("{wanted} is commit {commit}"), false);
        git.run(&["archive", "--format=tar", "--prefix=repository/", "--output=files.tar", commit]).await?;
        Ok(File::open(home.path().join("files.tar"))?)
    }

    fn settings(&self) -> Vec<(&'static str, String)> {
        let mut settings = vec![
            ("credential.helper", String::new()),
            ("core.hooksPath", "/dev/null".to_owned()),
            ("protocol.version", "2".to_owned()),
            // All of it in one file, which is bounded, and never one file for each object.
            ("fetch.unpackLimit", "1".to_owned()),
            // A server names no other places to fetch from.
            ("fetch.uriProtocols", String::new()),
            ("transfer.bundleURI", "false".to_owned()),
            ("gc.auto", "0".to_owned()),
        ];
        settings.extend(MEMORY_SETTINGS.map(|(name, value)| (name, value.to_owned())));
        if let Some(Login { user, password }) = self.login {
            let pair = STANDARD.encode(format!("{user}:{}", password.as_deref().unwrap_or_default()));
            // Not on the command line, where others on this machine could read it.
            settings.push(("http.extraHeader", format!("Authorization: Basic {pair}")));
        }
        if self.login.is_some() || !self.web.fetches_private() {
            // Git would send a login to whatever host it is led to, and be led to addresses that nobody judged; this is also
            // what keeps it from repositories that another one names as a part of itself.
            settings.push(("http.followRedirects", "false".to_owned()));
        }
        settings
    }

    /// The host's name is looked up and judged once, and git is told the addresses: it must not find others by itself.
    async fn pin(&self) -> Result<Vec<(&'static str, String)>, WebError> {
        let host = self.url.host_str().ok_or(WebError::NoAddress)?;
        let port = self.url.port_or_known_default().ok_or(WebError::NoAddress)?;
        let addresses = self.web.addresses(host, port).await?;
        if addresses.is_empty() {
            return Err(WebError::NoAddress);
        }
        Ok(vec![("http.curloptResolve", pinned(host, port, &addresses)), ("http.proxy", String::new())])
    }
}

/// As curl reads it.
fn pinned(host: &str, port: u16, addresses: &[IpAddr]) -> String {
    let written = addresses.iter().map(|address| match address {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => format!("[{address}]"),
    });
    format!("{host}:{port}:{}", written.collect::<Vec<_>>().join(","))
}

/// Whether a git of this version (`git version 2.47.3`) can be told addresses.
fn pins(version: &str) -> bool {
    let mut numbers = version.trim().trim_start_matches("git version ").split('.').map(str::parse::<u32>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => (major, minor) >= PINS_SINCE,
        _ => false,
    }
}

struct Git<'a> {
    repository: &'a Repository<'a>,
    settings: Vec<(&'static str, String)>,
    home: &'a Path,
}

impl Git<'_> {
    /// Fetches everything and looks for `wanted` in it; `first` is why that alone could not be had.
    async fn all(&self, wanted: &str, first: GitError) -> Result<String, GitError> {
        let url = self.repository.url.as_str();
        let all = [
            "fetch",
            "--quiet",
            url,
            "+HEAD:refs/wanted/HEAD",
            "+refs/heads/*:refs/heads/*",
            "+refs/tags/*:refs/tags/*",
        ];
        match self.run(&all).await {
            Ok(_) => {}
            Err(large @ GitError::TooLarge { .. }) => return Err(large),
            Err(_) => return Err(first),
        }
        let is_hex = wanted.len() >= SHORT_COMMIT_CHARS_MIN && wanted.chars().all(|c| c.is_ascii_hexdigit());
        let commit = is_commit(wanted) || is_hex;
        let names = [format!("refs/heads/{wanted}"), format!("refs/tags/{wanted}"), format!("refs/wanted/{wanted}")];
        for name in names.into_iter().chain(commit.then(|| wanted.to_owned())) {
            if let Ok(found) = self.run(&["rev-parse", "--verify", "--quiet", &format!("{name}^{{commit}}")]).await {
                return Ok(found);
            }
        }
        Err(first)
    }

    /// Runs git in the repository's folder; gives its output.
    async fn run(&self, arguments: &[&str]) -> Result<String, GitError> {
        let (home, settings, bytes_max) = (self.home, self.settings.as_slice(), self.repository.bytes_max);
        let program = Program { home, settings, bytes_max, memory_kib_max: MEMORY_KIB_MAX };
        let url = || shown(self.repository.url.as_str());
        match program.run(arguments).await? {
            program::End::Done(output) => Ok(output),
            program::End::NoGit => Err(GitError::NoGit),
            program::End::TooLarge => Err(GitError::TooLarge { url: url(), bytes_max }),
            program::End::Failed { said } => Err(GitError::Git { url: url(), said: self.redacted(said) }),
        }
    }

    /// Should git repeat what it was told in secret.
    fn redacted(&self, said: String) -> String {
        let Some(Login { user, password }) = self.repository.login else { return said };
        let secrets = [Some(user.as_str()), password.as_deref()];
        let long_enough = |secret: &&str| secret.len() >= 4;
        secrets.into_iter().flatten().filter(long_enough).fold(said, |said, secret| said.replace(secret, "…"))
    }
}

#[cfg(test)]
mod tests;
