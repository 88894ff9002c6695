//! The `git` program, run so that it takes no more memory, disk and time than it may, and leaves neither processes nor folders:
//! not when nobody waits for it any more, and not when this process is killed.

use std::io;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::time::sleep;
use tracing::warn;

use crate::container::below;

/// The most of what git says that an error repeats.
const SAID_BYTES_MAX: u64 = 8 * 1024;
const SAID_LINES_MAX: usize = 5;
/// `ulimit -f` counts in these.
const BLOCK_BYTES: u64 = 512;
/// The address space of each of git's processes. It reads a file and what that was made from whole, and servers pack files of up
/// to 512 MiB so; what is beyond this was packed to take memory.
pub(super) const MEMORY_KIB_MAX: u64 = 2 * 1024 * 1024;
/// A status of `sh`: there is no such program.
const NOT_FOUND: i32 = 127;
/// How often the folder's size is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// What was fetched lies there twice for a while: as git keeps it, and as the archive made of it.
const COPIES_MAX: u64 = 2;
/// How often removing the folder is tried, with a pause between: processes that were killed take a moment to be gone.
const REMOVE_TRIES: u32 = 50;
const REMOVE_PAUSE: Duration = Duration::from_millis(100);
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
/// Where a proxy is named, which would look names up by itself.
const PROXIES: [&str; 6] = ["http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"];
/// Whether addresses are pinned is told by this setting.
const PIN: &str = "http.curloptResolve";

/// Standard input is open as long as this process lives: when it ends, so does all that was started. The shell stays, so that it
/// and not this process is the parent of both.
const SCRIPT: &str = r#"
ulimit -f "$1" 2>/dev/null; ulimit -v "$2" 2>/dev/null; shift 2
exec 3<&0 </dev/null
git "$@" 3<&- & git=$!
(exec >/dev/null 2>&1; read -r gone <&3; kill -9 0) & guard=$!
wait "$git"; status=$?
exec 2>/dev/null; kill -9 "$guard"; wait "$guard"
exit "$status"
"#;

/// How a run of git ended.
pub(super) enum End {
    Done(String),
    Failed { said: String },
    TooLarge,
    NoGit,
}

/// A folder that goes with all that is in it, whenever it is not needed any more.
pub(super) struct Home(Option<TempDir>);

impl Home {
    pub(super) fn new(folder: &Path) -> io::Result<Self> {
        tempfile::tempdir_in(folder).map(|home| Self(Some(home)))
    }

    pub(super) fn path(&self) -> &Path {
        self.0.as_ref().map_or(Path::new("/"), TempDir::path)
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        let Some(folder) = self.0.take().map(TempDir::keep) else { return };
        let remove = move || {
            let mut tries = 1;
            while let Err(error) = std::fs::remove_dir_all(&folder) {
                if error.kind() == io::ErrorKind::NotFound {
                    return;
                }
                if tries >= REMOVE_TRIES {
                    return warn!("cannot remove {}, the next start will: {error}", folder.display());
                }
                tries += 1;
                std::thread::sleep(REMOVE_PAUSE);
            }
        };
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(remove)),
            Err(_) => remove(),
        }
    }
}

/// Git, in a folder of its own.
pub(super) struct Program<'a> {
    pub(super) home: &'a Path,
    pub(super) settings: &'a [(&'static str, String)],
    /// The most bytes of one file; the folder may have twice as much.
    pub(super) bytes_max: u64,
    /// The most address space of one of its processes.
    pub(super) memory_kib_max: u64,
}

impl Program<'_> {
    pub(super) async fn run(&self, arguments: &[&str]) -> io::Result<End> {
        let mut child = Running(self.command(arguments).spawn()?);
        // Open until it has ended: see the script.
        let _life = child.0.stdin.take();
        tokio::select! {
            ended = listen(&mut child.0) => match ended? {
                // Of a file that grew too large git can say no more than that it could not write.
                End::Failed { .. } if self.taken(self.bytes_max).await >= self.bytes_max => Ok(End::TooLarge),
                end @ (End::Done(_) | End::Failed { .. } | End::TooLarge | End::NoGit) => Ok(end),
            },
            () = self.overfull() => Ok(End::TooLarge),
        }
    }

    /// Waits until there is more in the folder than there may be. Files alone are bounded already, their number is not.
    async fn overfull(&self) {
        let bytes_max = self.bytes_max.saturating_mul(COPIES_MAX);
        loop {
            sleep(LOOK_EVERY).await;
            if self.taken(bytes_max).await > bytes_max {
                return;
            }
        }
    }

    async fn taken(&self, enough: u64) -> u64 {
        let home = self.home.to_owned();
        tokio::task::spawn_blocking(move || below(&home, enough)).await.unwrap_or(0)
    }

    pub(super) fn command(&self, arguments: &[&str]) -> Command {
        let blocks = (self.bytes_max / BLOCK_BYTES).max(1).to_string();
        let mut command = Command::new("sh");
        command.args(["-c", SCRIPT, "sh", &blocks, &self.memory_kib_max.to_string()]).args(arguments);
        let is_pinned = self.settings.iter().any(|(name, _)| *name == PIN);
        for name in CLEARED.iter().chain(is_pinned.then_some(&PROXIES).into_iter().flatten()) {
            command.env_remove(name);
        }
        command.env("GIT_CONFIG_COUNT", self.settings.len().to_string());
        for (index, (key, value)) in self.settings.iter().enumerate() {
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
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }
}

/// Takes what it says, and waits for its end.
async fn listen(child: &mut Child) -> io::Result<End> {
    let (mut output, mut said) = (String::new(), String::new());
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
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
    let status = child.wait().await?;
    if status.success() {
        return Ok(End::Done(output));
    }
    if status.code() == Some(NOT_FOUND) {
        return Ok(End::NoGit);
    }
    let said = if said.is_empty() { format!("nothing, and ended with {status}") } else { said };
    Ok(End::Failed { said })
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
