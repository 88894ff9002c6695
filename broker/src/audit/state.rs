//! The state of a queue at a point of its past: the fold of its records up to there.

use std::path::Path;

use protocol::id::{QueueKey, Seq, UnixMillis};
use protocol::queue::QueueState;
use protocol::record::Record;

use super::{AuditError, Reader, concerns};
use crate::journal::scan::{Step, Touched};

/// A point of a queue's past.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum At {
    /// After that record.
    Seq(Seq),
    /// After the last record that is not later.
    Time(UnixMillis),
}

/// Folds a queue's records up to `at`, the chain checked.
///
/// # Errors
///
/// [`AuditError::NoQueue`], [`AuditError::NotYet`], or [`AuditError::Broken`] when a record up to there cannot be had.
pub fn state_at(dir: &Path, queue: QueueKey, at: At) -> Result<QueueState, AuditError> {
    let mut reader = Reader::open(dir)?;
    let mut state = QueueState::new(queue);
    let mut seen = false;
    // What cannot be told to touch this queue does so when its next record does not follow.
    let mut doubt = None;
    while let Some((segment, step)) = reader.step()? {
        match step {
            Step::Record { offset, queue: of, seq, hash, bytes } if of == queue => {
                seen = true;
                let broken = |what: String| {
                    AuditError::Broken(format!("{what}, at byte {offset} of segment {}", segment.number))
                };
                match at {
                    At::Seq(last) if seq > last && state.head().seq == last => return Ok(state),
                    At::Time(until) => {
                        let record = Record::decode(&bytes).map_err(|error| broken(error.to_string()))?;
                        if record.at_ms > until && seq == state.head().seq + 1 {
                            return Ok(state);
                        }
                    }
                    At::Seq(_) => {}
                }
                state.apply_bytes(&bytes).map_err(|error| broken(error.to_string()))?;
                if state.head().hash != hash {
                    return Err(broken(format!("record {seq} does not continue the chain")));
                }
            }
            Step::Loss(loss) if concerns(&loss, Some(queue)) => {
                let reached = matches!(at, At::Seq(last) if last == state.head().seq);
                if loss.touched == Touched::Unknown {
                    doubt.get_or_insert(AuditError::Damaged(loss));
                } else if !reached {
                    return Err(AuditError::Damaged(loss));
                }
            }
            Step::Record { .. }
            | Step::Loss(_)
            | Step::Body { .. }
            | Step::GroupStart { .. }
            | Step::GroupEnd { .. }
            | Step::Sealed { .. } => {}
        }
    }
    match at {
        _ if !seen => Err(doubt.unwrap_or(AuditError::NoQueue(queue))),
        At::Seq(last) if state.head().seq < last => Err(doubt.unwrap_or(AuditError::NotYet { last: state.head().seq })),
        At::Seq(_) | At::Time(_) => Ok(state),
    }
}
