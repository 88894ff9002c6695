//! What the classic builder says, in lines, and which layers it made.

use bollard::models::{BuildInfo, CreateImageInfo};
use protocol::native::LogStep;

use super::super::log::BuildLog;
use crate::images::Progress as PullProgress;
use crate::logs::Splitter;

/// How the classic builder marks standard error: red, and back.
const RED: &str = "\u{1b}[91m";
const BACK: &str = "\u{1b}[0m";
/// Its own words around steps.
const STEP: &str = "Step ";
const RUNNING: &str = " ---> Running in ";
const LAYER: &str = " ---> ";
/// How long its short ids are.
const SHORT_ID_CHARS: usize = 12;

/// Where a build stands.
#[derive(Default)]
pub(super) struct Progress {
    text: Splitter,
    is_red: bool,
    pull: PullProgress,
    /// Whether this step made its layer, rather than finding it.
    makes: bool,
    left: Option<String>,
}

impl Progress {
    pub(super) fn event(&mut self, info: BuildInfo, log: &BuildLog) {
        if let Some(text) = &info.stream {
            // What is marked comes as a whole.
            let is_red = text.starts_with(RED);
            if is_red != self.is_red {
                self.flush(log);
                self.is_red = is_red;
            }
            let mut lines = Vec::new();
            self.text.push(text.replace(RED, "").replace(BACK, "").as_bytes(), &mut lines);
            lines.iter().for_each(|line| self.line(line, log));
        } else if info.status.is_some() {
            self.flush(log);
            let event = CreateImageInfo {
                id: info.id,
                status: info.status,
                progress_detail: info.progress_detail,
                ..CreateImageInfo::default()
            };
            if let Some(line) = self.pull.line(&event, tokio::time::Instant::now()) {
                log.line(LogStep::Pull, &line, false);
            }
        }
    }

    fn line(&mut self, line: &str, log: &BuildLog) {
        let line = line.trim_end();
        if line.starts_with(STEP) {
            self.makes = false;
        } else if line.starts_with(RUNNING) {
            self.makes = true;
        } else if let Some(id) = line.strip_prefix(LAYER)
            && self.makes
            && id.len() == SHORT_ID_CHARS
            && id.chars().all(|c| c.is_ascii_hexdigit())
        {
            self.left = Some(id.to_owned());
        }
        if !line.is_empty() {
            log.line(LogStep::Build, line, self.is_red);
        }
    }

    fn flush(&mut self, log: &BuildLog) {
        let mut lines = Vec::new();
        self.text.flush(&mut lines);
        lines.iter().for_each(|line| self.line(line, log));
    }

    pub(super) fn finish(&mut self, log: &BuildLog) {
        self.flush(log);
    }

    /// The newest layer that was made here. A base that was there before is never one.
    pub(super) fn into_left(self) -> Option<String> {
        self.left
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(said: &[&str]) -> (Vec<(String, bool)>, Option<String>) {
        let (mut progress, log) = (Progress::default(), BuildLog::new());
        for text in said {
            progress.event(BuildInfo { stream: Some((*text).to_owned()), ..BuildInfo::default() }, &log);
        }
        progress.finish(&log);
        let mut lines = log.result("end");
        lines.pop();
        (lines.into_iter().map(|line| (line.text, line.stderr)).collect(), progress.into_left())
    }

    #[test]
    fn lines_are_whole_and_standard_error_is_marked_as_such() {
        let (lines, _) = after(&[
            "Step 1/2 : FROM a",
            "\n",
            " ---> fdb6ff9379ed\n",
            "hi",
            " there\n",
            "\u{1b}[91merr\n\u{1b}[0m",
            "last",
        ]);
        let line = |text: &str, stderr| (format!("{text}\n"), stderr);
        assert_eq!(
            lines,
            [
                line("Step 1/2 : FROM a", false),
                line(" ---> fdb6ff9379ed", false),
                line("hi there", false),
                line("err", true),
                line("last", false),
            ]
        );
    }

    #[test]
    fn a_layer_that_was_made_is_remembered_and_never_a_base() {
        let base = [
            "Step 1/3 : FROM a\n",
            " ---> 000000000001\n",
            "Step 2/3 : RUN x\n",
            " ---> Using cache\n",
            " ---> 000000000002\n",
        ];
        assert_eq!(after(&base).1, None);
        let made =
            [&base[..], &["Step 3/3 : RUN y\n", " ---> Running in 00000000000a\n", " ---> 000000000003\n"]].concat();
        assert_eq!(after(&made).1.as_deref(), Some("000000000003"));
        // A program can say what it likes: an id of no layer is found nowhere.
        let next = [&made[..], &["Step 4/4 : FROM b\n", " ---> 000000000004\n"]].concat();
        assert_eq!(after(&next).1.as_deref(), Some("000000000003"));
    }
}
