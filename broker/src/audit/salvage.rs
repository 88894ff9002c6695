//! What can be had of a damaged journal.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use protocol::id::{Digest, QueueKey, Seq};
use protocol::record::chain;
use serde::Serialize;

use super::{AuditError, AuditRow, Reader, concerns, row};
use crate::journal::Loss;
use crate::journal::scan::Step;

/// What can be had of one queue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Salvaged {
    /// The queue.
    pub queue: QueueKey,
    /// Records that can be read: first and last of each unbroken stretch.
    pub stretches: Vec<(Seq, Seq)>,
    /// How many that is.
    pub records: u64,
    /// Bodies that can be read.
    pub bodies: u64,
    /// The last record that the chain proves from the start.
    pub proven_through: Seq,
}

impl Salvaged {
    /// The records between the stretches: first and last of each gap.
    #[must_use]
    pub fn gaps(&self) -> Vec<(Seq, Seq)> {
        let ends = std::iter::once(0).chain(self.stretches.iter().map(|stretch| stretch.1));
        let gaps = ends.zip(&self.stretches).map(|(end, stretch)| (end + 1, stretch.0.saturating_sub(1)));
        gaps.filter(|gap| gap.0 <= gap.1).collect()
    }
}

/// What can be had, and what not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SalvageReport {
    /// Each queue, by its key.
    pub queues: Vec<Salvaged>,
    /// What is broken.
    pub losses: Vec<Loss>,
}

/// A record of the export.
#[derive(Serialize)]
struct Exported<'a> {
    #[serde(flatten)]
    row: &'a AuditRow,
    /// Whether the chain from the queue's first record proves it.
    proven: bool,
}

struct Progress {
    salvaged: Salvaged,
    hash: Digest,
}

/// Reads what can be read, of one queue or of all; every readable record goes to `export` as one line of JSON.
///
/// # Errors
///
/// [`AuditError`] when the files cannot be read at all, or the export cannot be written.
pub fn salvage(
    dir: &Path,
    queue: Option<QueueKey>,
    mut export: Option<&mut dyn Write>,
) -> Result<SalvageReport, AuditError> {
    let mut reader = Reader::open(dir)?;
    let mut queues = BTreeMap::<QueueKey, Progress>::new();
    let mut losses = Vec::new();
    let mut progress = |of: QueueKey, visit: &mut dyn FnMut(&mut Progress)| {
        visit(queues.entry(of).or_insert_with(|| Progress {
            salvaged: Salvaged { queue: of, stretches: Vec::new(), records: 0, bodies: 0, proven_through: 0 },
            hash: of.genesis(),
        }));
    };
    while let Some((segment, step)) = reader.step()? {
        match step {
            Step::Record { offset, queue: of, seq, hash, bytes } if queue.is_none_or(|wanted| wanted == of) => {
                let mut proven = false;
                progress(of, &mut |progress| proven = progress.add(seq, hash, &bytes));
                match row(segment.number, offset, of, hash, &bytes) {
                    Ok(row) => {
                        if let Some(export) = export.as_mut() {
                            let line =
                                serde_json::to_string(&Exported { row: &row, proven }).map_err(std::io::Error::from)?;
                            writeln!(export, "{line}")?;
                        }
                    }
                    Err(error) => tracing::warn!("passed over: {error}"),
                }
            }
            Step::Body { queue: of, digest, bytes, .. } if queue.is_none_or(|wanted| wanted == of) => {
                if Digest::of(&bytes) == digest {
                    progress(of, &mut |progress| progress.salvaged.bodies += 1);
                }
            }
            Step::Loss(loss) if concerns(&loss, queue) => losses.push(loss),
            Step::Record { .. }
            | Step::Body { .. }
            | Step::Loss(_)
            | Step::GroupStart { .. }
            | Step::GroupEnd { .. }
            | Step::Sealed { .. } => {}
        }
    }
    Ok(SalvageReport { queues: queues.into_values().map(|progress| progress.salvaged).collect(), losses })
}

impl Progress {
    fn add(&mut self, seq: Seq, hash: Digest, bytes: &[u8]) -> bool {
        let salvaged = &mut self.salvaged;
        salvaged.records += 1;
        match salvaged.stretches.last_mut() {
            Some(stretch) if stretch.1 + 1 == seq => stretch.1 = seq,
            Some(_) | None => salvaged.stretches.push((seq, seq)),
        }
        let proven = seq == salvaged.proven_through + 1 && chain(&self.hash, bytes) == hash;
        if proven {
            salvaged.proven_through = seq;
            self.hash = hash;
        }
        proven
    }
}
