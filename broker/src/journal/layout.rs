//! What the segment files look like from their names and headers.

use std::path::Path;

use super::error::JournalError;
use super::scan::{Loss, Touched};
use super::segment::{self, Segment, SegmentHeader};

/// The segments that can be read, and what is wrong with them as a row.
#[derive(Debug, Default)]
pub(crate) struct Layout {
    pub(crate) segments: Vec<Segment>,
    pub(crate) losses: Vec<Loss>,
}

/// Reads names and headers: which segments there are, where each begins, what is missing.
pub(crate) fn layout(data: &Path) -> Result<Layout, JournalError> {
    let mut layout = Layout::default();
    let files = segment::list(data).map_err(|error| JournalError::io("listing the segments", error))?;
    let mut headers = Vec::new();
    for (number, path) in files {
        let header =
            segment::read_header(&path).map_err(|error| JournalError::io("reading a segment's header", error))?;
        let len =
            std::fs::metadata(&path).map_err(|error| JournalError::io("reading a segment's length", error))?.len();
        let base = match header {
            SegmentHeader::Good { number: named, base } if named == number => Some(base),
            SegmentHeader::Newer(version) => {
                return Err(JournalError::Newer { path: path.display().to_string(), version });
            }
            SegmentHeader::Good { .. } | SegmentHeader::Bad => None,
        };
        headers.push((number, path, base, len));
    }
    let mut loss = |segment: u64, offset: u64, what: String, touched: Touched| {
        layout.losses.push(Loss { segment, offset, what, touched });
    };
    let (mut next_number, mut next_base) = (1, Some(0));
    for (index, (number, path, base, len)) in headers.iter().enumerate() {
        if *number != next_number {
            loss(next_number, 0, format!("segments {next_number} to {} are missing", number - 1), Touched::Unknown);
            next_base = None;
        }
        let from_next = || headers.get(index + 1).filter(|next| next.0 == number + 1)?.2?.checked_sub(*len);
        if base.is_none() {
            loss(*number, 0, "the first bytes of the segment are damaged".to_owned(), Touched::Queues(Vec::new()));
        }
        let Some(base) = base.or(next_base).or_else(from_next) else {
            loss(*number, 0, "the segment's place in the log cannot be told".to_owned(), Touched::Unknown);
            next_number = number + 1;
            next_base = None;
            continue;
        };
        if let Some(expected) = next_base
            && expected != base
        {
            let what = format!("the segment has {expected} bytes of log before it, and should have {base}");
            loss(*number, 0, what, Touched::Unknown);
        }
        layout.segments.push(Segment { number: *number, base, path: path.as_path().into() });
        next_number = number + 1;
        next_base = Some(base + len);
    }
    Ok(layout)
}
