//! A snapshot onto a screen of any size. Pure: no clock, no terminal.
//!
//! Colours are the sixteen that every terminal has its own idea of, and only on words that say the same without: light and dark
//! backgrounds, and none at all, read alike.

mod rows;
mod words;

use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::Paragraph;
use worker::observe::{Snapshot, Standing};

use super::text::{cpus, cut, printable, short, time};

pub(super) use words::{engine_words, memory_words, outcome_words, queue_words, standing_words};

/// What is shown.
pub(super) struct View<'a> {
    /// The worker, as it was seen last.
    pub(super) snapshot: Option<&'a Snapshot>,
    /// Why it is not seen now.
    pub(super) trouble: Option<&'a str>,
    /// The last line.
    pub(super) footer: &'a str,
    /// Whether the last line is a question.
    pub(super) is_asking: bool,
    /// Whether there may be colours.
    pub(super) has_colour: bool,
}

/// How many queues have a line of their own; of more, those that are not connected come first.
const QUEUES_MAX: usize = 4;
/// How many GPUs have a mark each; more are a bar.
const GPU_MARKS_MAX: usize = 16;
/// The widest that a bar gets.
const BAR_COLUMNS_MAX: usize = 30;

/// Which colours mean what.
#[derive(Clone, Copy)]
struct Theme {
    has_colour: bool,
}

impl Theme {
    fn of(self, colour: Color) -> Style {
        if self.has_colour { Style::new().fg(colour) } else { Style::new() }
    }

    fn good(self) -> Style {
        self.of(Color::Green)
    }

    fn doubtful(self) -> Style {
        self.of(Color::Yellow)
    }

    fn bad(self) -> Style {
        self.of(Color::Red).add_modifier(Modifier::BOLD)
    }

    fn heading() -> Style {
        Style::new().add_modifier(Modifier::BOLD | Modifier::UNDERLINED)
    }

    fn quiet() -> Style {
        Style::new().add_modifier(Modifier::DIM)
    }
}

/// Draws all of it.
pub(super) fn draw(frame: &mut Frame<'_>, view: &View<'_>) {
    let area = frame.area();
    let theme = Theme { has_colour: view.has_colour };
    let columns = usize::from(area.width);
    let body = area.height.saturating_sub(1);
    let lines = match view.snapshot {
        Some(snapshot) => lines(snapshot, view.trouble, theme, columns, usize::from(body)),
        None => {
            let text =
                view.trouble.map_or_else(|| "looking for the worker …".to_owned(), |why| format!("no worker: {why}"));
            vec![Line::raw(cut(&printable(&text), columns))]
        }
    };
    frame.render_widget(Paragraph::new(lines), Rect { height: body, ..area });
    let style = if view.is_asking { Style::new().add_modifier(Modifier::REVERSED) } else { Theme::quiet() };
    let footer = Paragraph::new(Line::styled(cut(&printable(view.footer), columns), style));
    frame.render_widget(footer, Rect { y: area.y + body, height: area.height.min(1), ..area });
}

/// The lines above the last one.
fn lines(
    snapshot: &Snapshot,
    trouble: Option<&str>,
    theme: Theme,
    columns: usize,
    height: usize,
) -> Vec<Line<'static>> {
    let mut lines = head(snapshot, trouble, theme, columns);
    lines.extend(bars(snapshot, theme, columns));
    let runs = rows::runs(snapshot, theme, columns);
    let results = rows::results(snapshot, theme, columns);
    let log = rows::log(snapshot, theme, columns);
    let rooms = share(height.saturating_sub(lines.len()), [runs.len(), results.len(), log.len()]);
    lines.extend(runs.fit(rooms[0]));
    lines.extend(results.fit(rooms[1]));
    lines.extend(log.fit_end(rooms[2]));
    lines
}

/// Who it is, and what it depends on.
fn head(snapshot: &Snapshot, trouble: Option<&str>, theme: Theme, columns: usize) -> Vec<Line<'static>> {
    let mut lines = Vec::new();
    let up = time(snapshot.at_ms.saturating_sub(snapshot.started_ms));
    let standing = match (trouble, snapshot.standing) {
        (Some(why), _) => Span::styled(format!("gone: {}", printable(why)), theme.bad()),
        (None, Standing::Working) if snapshot.obstacle.is_none() => {
            Span::styled(standing_words(snapshot), theme.good())
        }
        (None, _) => Span::styled(standing_words(snapshot), theme.doubtful()),
    };
    let who = format!("gridsocket {}  worker {}  up {up}  ", printable(&snapshot.version), short(&snapshot.worker));
    lines.push(line(vec![Span::styled(who, Style::new().add_modifier(Modifier::BOLD)), standing], columns));
    let mut queues: Vec<_> = snapshot.queues.iter().collect();
    queues.sort_by_key(|queue| queue.connected_since_ms.is_some());
    let shown = if queues.len() > QUEUES_MAX { QUEUES_MAX - 1 } else { queues.len() };
    for queue in &queues[..shown] {
        let style = if queue.connected_since_ms.is_some() { theme.good() } else { theme.bad() };
        let text = queue_words(queue, snapshot.at_ms);
        lines.push(line(vec![Span::raw("queue   "), Span::styled(text, style)], columns));
    }
    if shown < queues.len() {
        let connected = queues.iter().filter(|queue| queue.connected_since_ms.is_some()).count();
        let text = format!("        and {} more; {connected} of {} connected", queues.len() - shown, queues.len());
        lines.push(line(vec![Span::raw(text)], columns));
    }
    let style = if snapshot.engine.is_reachable { theme.good() } else { theme.bad() };
    lines.push(line(vec![Span::raw("engine  "), Span::styled(engine_words(&snapshot.engine), style)], columns));
    lines.push(words::keeping(snapshot, theme, columns));
    lines
}

/// How much is taken of what is offered.
fn bars(snapshot: &Snapshot, theme: Theme, columns: usize) -> Vec<Line<'static>> {
    let (offered, taken) = (snapshot.offered, snapshot.taken);
    let mut lines = Vec::new();
    let text = format!("{} of {}", cpus(taken.cpus_milli), cpus(offered.cpus_milli));
    lines.push(bar("CPUs", taken.cpus_milli, offered.cpus_milli, &text, theme, columns));
    if let (Some(all), Some(held), Some(text)) = (offered.memory_bytes, taken.memory_bytes, memory_words(snapshot)) {
        lines.push(bar("memory", held, all, &text, theme, columns));
    }
    if snapshot.gpus.is_empty() {
        return lines;
    }
    let held = snapshot.gpus.iter().filter(|gpu| gpu.job.is_some()).count();
    let text = format!("{held} of {}", snapshot.gpus.len());
    if snapshot.gpus.len() > GPU_MARKS_MAX {
        lines.push(bar("GPUs", held as u64, snapshot.gpus.len() as u64, &text, theme, columns));
        return lines;
    }
    let mut spans = vec![Span::raw("GPUs    ")];
    spans.extend(snapshot.gpus.iter().map(|gpu| match gpu.job {
        Some(_) => Span::styled("■ ", theme.good()),
        None => Span::styled("□ ", Theme::quiet()),
    }));
    spans.push(Span::raw(format!(" {text}")));
    lines.push(line(spans, columns));
    lines
}

fn bar(name: &str, part: u64, whole: u64, text: &str, theme: Theme, columns: usize) -> Line<'static> {
    let room = columns.saturating_sub(8 + 2 + text.len()).min(BAR_COLUMNS_MAX);
    let full = u64::try_from(room).unwrap_or(0).saturating_mul(part.min(whole)).div_ceil(whole.max(1));
    let full = usize::try_from(full).unwrap_or(room).min(room);
    let spans = vec![
        Span::raw(format!("{name:<8}")),
        Span::styled("█".repeat(full), theme.good()),
        Span::styled("░".repeat(room - full), Theme::quiet()),
        Span::raw(format!("  {text}")),
    ];
    line(spans, columns)
}

/// Spans as a line that ends where the screen does, with a mark if it goes on.
fn line(spans: Vec<Span<'static>>, columns: usize) -> Line<'static> {
    let mut left = columns;
    let mut kept = Vec::with_capacity(spans.len());
    for span in spans {
        let width = span.width();
        kept.push(if width <= left { span } else { Span::styled(cut(&span.content, left), span.style) });
        left = left.saturating_sub(width);
        if left == 0 {
            break;
        }
    }
    Line::from(kept)
}

/// Divides the lines that there are: none gets more than it wants, each a fair part, the earlier ones first.
fn share(room: usize, wants: [usize; 3]) -> [usize; 3] {
    let fair = room / 3;
    let mut given = wants.map(|want| want.min(fair));
    let mut left = room - given.iter().sum::<usize>();
    for (given, want) in given.iter_mut().zip(wants) {
        let more = left.min(want - *given);
        *given += more;
        left -= more;
    }
    given
}

#[cfg(test)]
mod tests;
