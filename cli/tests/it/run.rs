//! Runs the binary, with nothing of this machine's settings in its environment.

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

/// How long a command may take before the test counts it as hung.
const DEADLINE: Duration = Duration::from_secs(60);

/// What a command said and how it ended.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl From<Output> for Said {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code(),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

/// The binary, to be given words.
pub(crate) fn gridsocket(words: &[&str]) -> tokio::process::Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gridsocket"));
    command.args(words).env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default()).stdin(Stdio::null());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut command = tokio::process::Command::from(command);
    command.kill_on_drop(true);
    command
}

/// Runs the binary to its end.
pub(crate) async fn run(words: &[&str]) -> Said {
    finish(gridsocket(words)).await
}

/// Runs the binary in a folder.
pub(crate) async fn run_in(folder: &Path, words: &[&str]) -> Said {
    let mut command = gridsocket(words);
    command.current_dir(folder);
    finish(command).await
}

/// Runs a prepared command to its end.
pub(crate) async fn finish(mut command: tokio::process::Command) -> Said {
    let output = tokio::time::timeout(DEADLINE, command.output()).await;
    output.expect("the command hangs").expect("the command starts").into()
}
