//! What BuildKit says, in lines, as its plain progress has them: numbered steps, their output and how each ended.

use std::collections::{HashMap, HashSet};

use bollard::moby::buildkit::v1::{StatusResponse, Vertex, VertexLog};
use bollard::models::{BuildInfo, BuildInfoAux};
use protocol::native::LogStep;

use super::super::log::BuildLog;
use crate::logs::Splitter;

/// The most steps that are told apart; a Dockerfile has some dozens.
const STEPS_MAX: usize = 10_000;
/// BuildKit's number for standard error.
const STDERR: i64 = 2;
const NANOS_PER_SECOND: f64 = 1e9;

/// Where a build stands.
#[derive(Default)]
pub(super) struct Progress {
    numbers: HashMap<String, usize>,
    ended: HashSet<String>,
    output: HashMap<(String, bool), Splitter>,
}

impl Progress {
    pub(super) fn event(&mut self, info: BuildInfo, log: &BuildLog) {
        if let Some(BuildInfoAux::BuildKit(status)) = info.aux {
            self.status(status, log);
        }
    }

    fn status(&mut self, status: StatusResponse, log: &BuildLog) {
        for vertex in &status.vertexes {
            self.begun(vertex, log);
        }
        for output in status.logs {
            self.output(&output, log);
        }
        for vertex in &status.vertexes {
            self.ended(vertex, log);
        }
        for warning in status.warnings {
            log.line(LogStep::Build, &String::from_utf8_lossy(&warning.short), true);
        }
    }

    fn number(&mut self, digest: &str) -> (usize, bool) {
        if let Some(number) = self.numbers.get(digest) {
            return (*number, false);
        }
        if self.numbers.len() >= STEPS_MAX {
            return (0, false);
        }
        let number = self.numbers.len() + 1;
        self.numbers.insert(digest.to_owned(), number);
        (number, true)
    }

    fn begun(&mut self, vertex: &Vertex, log: &BuildLog) {
        // Those that wait are told when their turn comes.
        if vertex.started.is_none() && !vertex.cached && vertex.error.is_empty() {
            return;
        }
        let (number, is_new) = self.number(&vertex.digest);
        if is_new {
            log.line(LogStep::Build, &format!("#{number} {}", vertex.name), false);
        }
    }

    fn ended(&mut self, vertex: &Vertex, log: &BuildLog) {
        if vertex.completed.is_none() || !self.ended.insert(vertex.digest.clone()) {
            return;
        }
        let (number, _) = self.number(&vertex.digest);
        for stderr in [false, true] {
            if let Some(mut rest) = self.output.remove(&(vertex.digest.clone(), stderr)) {
                let mut lines = Vec::new();
                rest.finish(&mut lines);
                lines.iter().for_each(|line| log.line(LogStep::Build, &format!("#{number} {line}"), stderr));
            }
        }
        let text = if !vertex.error.is_empty() {
            format!("#{number} ERROR: {}", vertex.error)
        } else if vertex.cached {
            format!("#{number} CACHED")
        } else {
            format!("#{number} DONE {:.1}s", seconds(vertex))
        };
        log.line(LogStep::Build, &text, !vertex.error.is_empty());
    }

    fn output(&mut self, output: &VertexLog, log: &BuildLog) {
        let (number, _) = self.number(&output.vertex);
        let stderr = output.stream == STDERR;
        if self.output.len() >= STEPS_MAX {
            return;
        }
        let mut lines = Vec::new();
        self.output.entry((output.vertex.clone(), stderr)).or_default().push(&output.msg, &mut lines);
        lines.iter().for_each(|line| log.line(LogStep::Build, &format!("#{number} {line}"), stderr));
    }
}

#[expect(clippy::cast_precision_loss, reason = "one digit is shown")]
fn seconds(vertex: &Vertex) -> f64 {
    let (Some(from), Some(to)) = (&vertex.started, &vertex.completed) else { return 0.0 };
    ((to.seconds - from.seconds) as f64 + f64::from(to.nanos - from.nanos) / NANOS_PER_SECOND).max(0.0)
}
