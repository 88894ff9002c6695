//! What the process ends with: exit codes, and the one place that turns an error into words on standard error.

use std::io;
use std::process::ExitCode;

use crate::args::UsageError;

/// Everything went as asked.
pub(crate) const OK: u8 = 0;
/// It did not; standard error says why.
pub(crate) const FAILED: u8 = 1;
/// The arguments cannot be used as they are.
pub(crate) const USAGE: u8 = 2;
/// Ended by Ctrl-C, as shells count it: 128 + SIGINT.
pub(crate) const INTERRUPTED: u8 = 130;

/// Says what went wrong, unless there is nobody to say it to, and picks the code.
pub(crate) fn report(error: &anyhow::Error) -> ExitCode {
    if is_broken_pipe(error) {
        // The reader has what it wanted (`… | head`): not a failure of ours.
        return ExitCode::from(OK);
    }
    let code = if error.chain().any(|cause| cause.is::<UsageError>()) { USAGE } else { FAILED };
    tell(&sentence(error));
    ExitCode::from(code)
}

/// The error and its causes in one line; a cause that its parent already quotes is not said twice.
pub(crate) fn sentence(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain() {
        let cause = cause.to_string();
        if text.contains(&cause) {
            continue;
        }
        if !text.is_empty() {
            text.push_str(": ");
        }
        text.push_str(&cause);
    }
    text
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<io::Error>())
        .any(|cause| cause.kind() == io::ErrorKind::BrokenPipe)
}

/// Standard error may be closed; then there is nobody left to tell.
fn tell(text: &str) {
    use io::Write;
    let _ = writeln!(io::stderr(), "error: {text}");
}

/// The code of a container as the code of this process: codes that a process cannot have become 1.
pub(crate) fn of_container(code: i64) -> u8 {
    u8::try_from(code).unwrap_or(FAILED)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_containers_code_is_ours_and_an_impossible_one_is_a_failure() {
        assert_eq!(of_container(0), 0);
        assert_eq!(of_container(7), 7);
        assert_eq!(of_container(255), 255);
        assert_eq!(of_container(256), FAILED);
        assert_eq!(of_container(-1), FAILED);
    }

    #[test]
    fn a_cause_is_said_once() {
        let error = anyhow::anyhow!("no such file").context("cannot read a.txt: no such file").context("job add");
        assert_eq!(sentence(&error), "job add: cannot read a.txt: no such file");
    }
}
