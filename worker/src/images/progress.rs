//! A pull's progress in lines, one per layer and second at most.

use std::collections::HashMap;
use std::fmt::Write;
use std::time::Duration;

use bollard::models::CreateImageInfo;
use tokio::time::Instant;

/// The shortest time between two lines of one layer in one phase.
const LINE_EVERY: Duration = Duration::from_secs(1);
/// How many layers are told apart; images have at most 127.
const LAYERS_MAX: usize = 1024;
/// The width of the bar.
const BAR_CHARS: usize = 50;

/// Remembers what was last said of each layer.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    layers: HashMap<String, (String, Instant)>,
}

impl Progress {
    /// The line for `event`, unless one of its kind was just written.
    pub(crate) fn line(&mut self, event: &CreateImageInfo, now: Instant) -> Option<String> {
        let status = event.status.as_deref()?;
        let layer = event.id.clone().unwrap_or_default();
        if !layer.is_empty() {
            match self.layers.get(&layer) {
                Some((last, at)) if last == status && now.duration_since(*at) < LINE_EVERY => return None,
                Some(_) | None => {}
            }
            if self.layers.len() >= LAYERS_MAX {
                self.layers.clear();
            }
            self.layers.insert(layer.clone(), (status.to_owned(), now));
        }
        let mut line = String::new();
        if !layer.is_empty() {
            let _ = write!(line, "{layer}: ");
        }
        line.push_str(status);
        if let Some(detail) = &event.progress_detail
            && let (Some(current), Some(total)) = (detail.current, detail.total)
            && let (Ok(current), Ok(total)) = (u64::try_from(current), u64::try_from(total))
            && total > 0
        {
            let _ = write!(line, " {} {}/{}", bar(current, total), size(current), size(total));
        }
        Some(line)
    }
}

fn bar(current: u64, total: u64) -> String {
    let full = u128::from(current.min(total)) * BAR_CHARS as u128 / u128::from(total);
    let full = usize::try_from(full).unwrap_or(BAR_CHARS);
    let arrow = if full == BAR_CHARS { "=".repeat(BAR_CHARS) } else { format!("{}>", "=".repeat(full)) };
    format!("[{arrow:<BAR_CHARS$}]")
}

/// As the engine's own client writes sizes: decimal, four digits.
fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "kB", "MB", "GB", "TB"];
    #[expect(clippy::cast_precision_loss, reason = "four digits are shown")]
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    let digits = if unit == 0 || value >= 1000.0 {
        0
    } else if value >= 100.0 {
        1
    } else if value >= 10.0 {
        2
    } else {
        3
    };
    format!("{value:.digits$}{}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use bollard::models::ProgressDetail;

    use super::*;

    fn event(status: &str, current: Option<i64>) -> CreateImageInfo {
        CreateImageInfo {
            id: Some("4abcf2066143".to_owned()),
            status: Some(status.to_owned()),
            progress_detail: current.map(|current| ProgressDetail { current: Some(current), total: Some(3_400_000) }),
            ..CreateImageInfo::default()
        }
    }

    #[tokio::test]
    async fn a_line_names_layer_status_and_progress() {
        let line = Progress::default().line(&event("Downloading", Some(1_200_000)), Instant::now()).unwrap();
        assert_eq!(line, format!("4abcf2066143: Downloading [{:<50}] 1.200MB/3.400MB", format!("{}>", "=".repeat(17))));
    }

    #[tokio::test]
    async fn one_line_per_layer_and_second_but_each_new_phase_at_once() {
        let (mut progress, start) = (Progress::default(), Instant::now());
        assert!(progress.line(&event("Downloading", Some(1)), start).is_some());
        assert!(progress.line(&event("Downloading", Some(2)), start + Duration::from_millis(999)).is_none());
        assert!(progress.line(&event("Downloading", Some(3)), start + Duration::from_millis(1000)).is_some());
        assert!(progress.line(&event("Extracting", Some(1)), start + Duration::from_millis(1001)).is_some());
    }
}
