//! Repositories by the `git` program. What it fetches is packed by `git archive` and never checked out: no file that a
//! stranger named is made here, no hook and no filter runs. Nothing of this machine's own git settings or keys is used.

use std::fs::File;
use std::io;
use std::path::Path;
use std::process::Stdio;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use protocol::native::LogStep;
use reqwest::Url;
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::{Child, Command};

use super::log::BuildLog;
use super::source::{Login, is_commit, shown};

/// The most of what git says that an error repeats.
const SAID_BYTES_MAX: u64 = 8 * 1024;
const SAID_LINES_MAX: usize = 5;
/// The shortest text that may be the start of a commit's id.
const SHORT_COMMIT_CHARS_MIN: usize = 7;
/// `ulimit -f` counts in these.
const BLOCK_BYTES: u64 = 512;
/// A status of `sh`: there is no such program.
const NOT_FOUND: i32 = 127;
/// Variables that would let git do something else than it is told.
const CLEARED: [&str; 12] = [
    "GIT_DIR",
    "GIT_WORK_TREE",
    "GIT_INDEX_FILE",
    "GIT_OBJECT_DIRECTORY",
    "GIT_ALTERNATE_OBJECT_DIRECTORIES",
    "GIT_NAMESPACE",
    "GIT_SSH",
    "GIT_SSH_COMMAND",
    "GIT_CONFIG_PARAMETERS",
    "GIT_TRACE",
    "GIT_TRACE_CURL",
    "GIT_CURL_VERBOSE",
];

/// Why there are no files.
#[derive(Debug, thiserror::Error)]
pub(super) enum GitError {
    #[error(
        "this worker has no git program: install git where it runs, or give the address of an archive (most hosts of repositories have one)"
    )]
    NoGit,
    #[error("{url}: git says: {said}")]
    Git { url: String, said: String },
    #[error("cannot run git: {0}")]
    Io(#[from] io::Error),
}

/// One repository that is fetched.
pub(super) struct Repository<'a> {
    pub(super) url: &'a Url,
    pub(super) reference: Option<&'a str>,
    pub(super) login: Option<&'a Login>,
    pub(super) bytes_max: u64,
}

impl Repository<'_> {
    /// Fetches it and gives a tar of its files, below one directory.
    pub(super) async fn fetch(&self, folder: &Path, log: &BuildLog) -> Result<File, GitError> {
        let name = shown(self.url.as_str());
        let wanted = self.reference.unwrap_or("HEAD");
        log.line(LogStep::Clone, &format!("fetching {wanted} of {name}"), false);
        let home = tempfile::tempdir_in(folder)?;
        let git = Git { repository: self, home: home.path() };
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
}

struct Git<'a> {
    repository: &'a Repository<'a>,
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
        if self.run(&all).await.is_err() {
            return Err(first);
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
        let spawned = self.command(arguments).spawn().map_err(|error| {
            if error.kind() == io::ErrorKind::NotFound { GitError::NoGit } else { GitError::Io(error) }
        });
        let mut child = Running(spawned?);
        let (mut output, mut said) = (String::new(), String::new());
        let (stdout, stderr) = (child.0.stdout.take(), child.0.stderr.take());
        let read = async {
            if let Some(stdout) = stdout {
                stdout.take(SAID_BYTES_MAX).read_to_string(&mut output).await?;
            }
            Ok::<_, io::Error>(())
        };
        let listen = async {
            if let Some(stderr) = stderr {
                let mut lines = BufReader::new(stderr).take(SAID_BYTES_MAX).lines();
                let mut last = std::collections::VecDeque::new();
                while let Ok(Some(line)) = lines.next_line().await {
                    last.push_back(line);
                    if last.len() > SAID_LINES_MAX {
                        last.pop_front();
                    }
                }
                said = Vec::from(last).join("; ");
            }
            Ok(())
        };
        tokio::try_join!(read, listen)?;
        let status = child.0.wait().await?;
        if status.success() {
            return Ok(output);
        }
        if status.code() == Some(NOT_FOUND) {
            return Err(GitError::NoGit);
        }
        let said = if said.is_empty() { format!("nothing, and ended with {status}") } else { self.redacted(said) };
        Err(GitError::Git { url: shown(self.repository.url.as_str()), said })
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let blocks = (self.repository.bytes_max / BLOCK_BYTES).max(1).to_string();
        // No file of it grows larger than what is allowed.
        let mut command = Command::new("sh");
        command.args(["-c", "ulimit -f \"$1\"; shift; exec git \"$@\"", "sh", &blocks]).args(arguments);
        CLEARED.iter().for_each(|name| {
            command.env_remove(name);
        });
        let mut settings = vec![
            ("credential.helper", String::new()),
            ("core.hooksPath", "/dev/null".to_owned()),
            ("protocol.version", "2".to_owned()),
            // All of it in one file, which is bounded, and never one file for each object.
            ("fetch.unpackLimit", "1".to_owned()),
        ];
        if let Some(Login { user, password }) = self.repository.login {
            let pair = STANDARD.encode(format!("{user}:{}", password.as_deref().unwrap_or_default()));
            // Not on the command line, where others on this machine could read it.
            settings.push(("http.extraHeader", format!("Authorization: Basic {pair}")));
            // Git would send it to whatever host it is led to.
            settings.push(("http.followRedirects", "false".to_owned()));
        }
        command.env("GIT_CONFIG_COUNT", settings.len().to_string());
        for (index, (key, value)) in settings.into_iter().enumerate() {
            command.env(format!("GIT_CONFIG_KEY_{index}"), key).env(format!("GIT_CONFIG_VALUE_{index}"), value);
        }
        command
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("GIT_ATTR_NOSYSTEM", "1")
            .env("GIT_TERMINAL_PROMPT", "0")
            .env("GIT_ASKPASS", "true")
            .env("GIT_ALLOW_PROTOCOL", "http:https")
            .env("HOME", self.home)
            .env("LC_ALL", "C")
            .current_dir(self.home)
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    /// Should git repeat what it was told in secret.
    fn redacted(&self, said: String) -> String {
        let Some(Login { user, password }) = self.repository.login else { return said };
        let secrets = [Some(user.as_str()), password.as_deref()];
        let long_enough = |secret: &&str| secret.len() >= 4;
        secrets.into_iter().flatten().filter(long_enough).fold(said, |said, secret| said.replace(secret, "…"))
    }
}

/// A process with its helpers: all of them end with it.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let pid = self.0.id().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
        if let Some(pid) = pid {
            // It has not been waited for, so the number is still its own.
            let _ = kill_process_group(pid, Signal::KILL);
        }
    }
}
