//! The parts that grow: runs, ends and the log, as lines under a heading. Pure.

use ratatui::style::Style;
use ratatui::text::{Line, Span};
use worker::observe::{Outcome, Phase, ResultView, RunView, Snapshot};

use super::super::text::{bytes, cpus, cut, printable, short, time, with_short_ids};
use super::{Theme, outcome_words};

/// From how many columns on a job's needs have columns of their own, and from how many on its image and queue.
const WIDE: usize = 80;
const WIDEST: usize = 110;

/// Lines under a heading.
pub(super) struct Part {
    heading: Line<'static>,
    lines: Vec<Line<'static>>,
}

impl Part {
    /// How many lines it wants, an empty one below included.
    pub(super) const fn len(&self) -> usize {
        // What is empty says so in one line.
        2 + if self.lines.is_empty() { 1 } else { self.lines.len() }
    }

    /// Its first lines; how many are left out is said.
    pub(super) fn fit(mut self, room: usize) -> Vec<Line<'static>> {
        let Some(room) = room.checked_sub(1) else { return Vec::new() };
        if self.lines.len() > room && room > 0 {
            let left_out = self.lines.len() + 1 - room;
            self.lines.truncate(room - 1);
            self.lines.push(Line::styled(format!("… and {left_out} more"), Theme::quiet()));
        }
        self.under_heading(room)
    }

    /// Its last lines.
    pub(super) fn fit_end(mut self, room: usize) -> Vec<Line<'static>> {
        let Some(room) = room.checked_sub(1) else { return Vec::new() };
        let too_many = self.lines.len().saturating_sub(room);
        self.lines.drain(..too_many);
        self.under_heading(room)
    }

    fn under_heading(self, room: usize) -> Vec<Line<'static>> {
        let mut lines = vec![self.heading];
        lines.extend(self.lines.into_iter().take(room));
        if lines.len() == 1 && room > 0 {
            lines.push(Line::styled("none", Theme::quiet()));
        }
        if lines.len() <= room {
            lines.push(Line::default());
        }
        lines
    }
}

/// A column: its name, how wide it is, and what stands in it at a time.
type Column<T> = (&'static str, usize, fn(&T, u64) -> String);

/// One row, its cells cut to their columns; the last takes what is left.
fn row(cells: Vec<(String, usize, Style)>, columns: usize) -> Line<'static> {
    let mut spans = Vec::with_capacity(cells.len());
    let mut left = columns;
    let count = cells.len();
    for (index, (text, width, style)) in cells.into_iter().enumerate() {
        let width = if index + 1 == count { left } else { width.min(left) };
        let text = cut(&text, width.saturating_sub(usize::from(index + 1 < count)));
        let padding = width.saturating_sub(Span::raw(text.as_str()).width());
        left -= width;
        spans.push(Span::styled(text, style));
        spans.push(Span::raw(" ".repeat(padding)));
    }
    Line::from(spans)
}

fn heading<T>(first: String, table: &[Column<T>], columns: usize) -> Line<'static> {
    let names = table.iter().enumerate().map(|(index, (name, width, _))| {
        let name = if index == 0 { first.clone() } else { (*name).to_owned() };
        (name, *width, Style::new())
    });
    row(names.collect(), columns).style(Theme::heading())
}

/// The runs that are here.
pub(super) fn runs(snapshot: &Snapshot, theme: Theme, columns: usize) -> Part {
    let mut table: Vec<Column<RunView>> = vec![
        ("JOB", 10, |run, _| short(&run.job)),
        ("PHASE", 9, |run, _| run.phase.word().to_owned()),
        ("AGE", 7, |run, _| time(run.age_ms)),
    ];
    if columns >= WIDE {
        table.push(("CPUS", 6, |run, _| cpus(run.cpus_milli.into())));
        table.push(("MEM", 6, |run, _| if run.memory_bytes == 0 { "-".to_owned() } else { bytes(run.memory_bytes) }));
        table.push((
            "GPUS",
            8,
            |run, _| if run.gpus.is_empty() { "-".to_owned() } else { printable(&run.gpus.join(",")) },
        ));
    }
    if columns >= WIDEST {
        table.push(("QUEUE", 9, |run, _| printable(&run.queue)));
        table.push(("IMAGE", 28, |run, _| printable(&run.image)));
        table.push(("COMMAND", 0, |run, _| printable(&run.command)));
    } else {
        table.push(("WHAT", 0, |run, _| printable(&format!("{} {}", run.image, run.command))));
    }
    let line = |run: &RunView| {
        let cell = |(index, (_, width, text)): (usize, &Column<RunView>)| {
            let style = match (index, run.phase) {
                (1, Phase::Running) => theme.good(),
                (1, Phase::Pulling | Phase::Building | Phase::Inputs | Phase::Starting | Phase::Outputs) => {
                    theme.doubtful()
                }
                _ => Style::new(),
            };
            (text(run, snapshot.at_ms), *width, style)
        };
        row(table.iter().enumerate().map(cell).collect(), columns)
    };
    let heading = heading(format!("{} HERE", snapshot.runs.len()), &table, columns);
    Part { heading, lines: snapshot.runs.iter().map(line).collect() }
}

/// The last ends.
pub(super) fn results(snapshot: &Snapshot, theme: Theme, columns: usize) -> Part {
    let table: Vec<Column<ResultView>> = vec![
        ("LAST", 10, |result, _| short(&result.job)),
        ("END", 12, |result, _| outcome_words(result.outcome).to_owned()),
        ("CODE", 5, |result, _| result.exit_code.map_or_else(|| "-".to_owned(), |code| code.to_string())),
        ("TOOK", 7, |result, _| time(result.duration_ms)),
        ("AGO", 7, |result, at_ms| time(at_ms.saturating_sub(result.at_ms))),
        ("WHY", 0, |result, _| result.why.as_deref().map(printable).unwrap_or_default()),
    ];
    let line = |result: &ResultView| {
        let cell = |(index, (_, width, text)): (usize, &Column<ResultView>)| {
            let style = match (index, result.outcome) {
                (1, Outcome::Success) => theme.good(),
                (1, Outcome::Failed | Outcome::Error | Outcome::TimedOut) => theme.bad(),
                (1, Outcome::Stopped | Outcome::HandedBack) => theme.doubtful(),
                _ => Style::new(),
            };
            (text(result, snapshot.at_ms), *width, style)
        };
        row(table.iter().enumerate().map(cell).collect(), columns)
    };
    let heading = heading("LAST".to_owned(), &table, columns);
    Part { heading, lines: snapshot.results.iter().map(line).collect() }
}

/// What was logged of late.
pub(super) fn log(snapshot: &Snapshot, theme: Theme, columns: usize) -> Part {
    let line = |said: &worker::observe::Line| {
        let style = match said.level.as_str() {
            "ERROR" => theme.bad(),
            "WARN" => theme.doubtful(),
            _ => Theme::quiet(),
        };
        let ago = time(snapshot.at_ms.saturating_sub(said.at_ms));
        let cells = vec![
            (ago, 7, Style::new()),
            (printable(&said.level), 6, style),
            (printable(&with_short_ids(&said.text)), 0, Style::new()),
        ];
        row(cells, columns)
    };
    let names = vec![
        ("AGO".to_owned(), 7, Style::new()),
        ("LOG".to_owned(), 6, Style::new()),
        (String::new(), 0, Style::new()),
    ];
    Part { heading: row(names, columns).style(Theme::heading()), lines: snapshot.lines.iter().map(line).collect() }
}
