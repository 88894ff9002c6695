//! Removing blobs that are old and that no job names: mark and sweep, in bounded memory.
//!
//! Why no job loses a blob. A blob goes only if (1) it was stored, or found to be there by someone who wanted to store it, longer
//! ago than blobs are kept; (2) no definition or result names it of any job that is in a queue or kept; (3) it is not noted as
//! in use. A job that names it is either on disk when its queue is looked at, and then (2) holds the blob; or it is submitted
//! later, and then the blob was noted before the submission was acknowledged, as it was when its submitter was told that it is
//! there. Notes stand until the sweep is over, and (3) is looked at last: from that look on whoever asks for this very blob
//! waits until it is gone. After a start nothing is noted, so that the first blobs go only when every note would be old.
//! When some queue's jobs cannot be read, or a body that they name is missing, or more was in use than could be noted, nothing
//! goes.

use std::collections::HashMap;

use protocol::id::{Digest, QueueKey, UnixMillis};

use super::named::Names;
use super::pace::{ask, pause};
use super::{SweepError, Swept};
use crate::blob_names;
use crate::blobs::{BlobKey, Blobs};
use crate::engine::Engine;

/// Blobs looked for together: about 10 MiB. Each such part is one pass over all that jobs name.
const OLD_MAX: usize = 65_536;
/// Bodies read at once, in bytes; a larger one is read alone.
const READ_BYTES_MAX: usize = 1024 * 1024;
/// Bodies read at once.
const READ_MAX: usize = 64;

/// Removes blobs that were last used before `used_before` and that nothing names.
pub(super) async fn sweep(
    engine: &Engine,
    blobs: &Blobs,
    used_before: UnixMillis,
    swept: &mut Swept,
) -> Result<(), SweepError> {
    let _sweeping = blobs.uses().sweep();
    if !blobs.uses().is_complete() {
        return Err(SweepError::Unknown("more of them were in use lately than can be noted"));
    }
    let mut after: Option<BlobKey> = None;
    loop {
        let old = blobs.older(used_before, after.as_ref().map(BlobKey::as_str), OLD_MAX).await?;
        let is_last = old.len() < OLD_MAX;
        after = old.last().cloned();
        let mut unnamed = old.into_iter().map(|key| (key.as_str().to_owned(), key)).collect();
        mark(engine, &mut unnamed).await?;
        for key in unnamed.values() {
            swept.blobs += u64::from(blobs.remove_unused(key, used_before).await?);
            pause().await;
        }
        if is_last {
            break;
        }
    }
    Ok(blobs.remove_stray_marks(used_before).await?)
}

/// Takes out those that a job names.
async fn mark(engine: &Engine, unnamed: &mut HashMap<String, BlobKey>) -> Result<(), SweepError> {
    if unnamed.is_empty() {
        return Ok(());
    }
    for (queue, _) in ask(engine, |journal| journal.queues()).await? {
        let mut names = Names::of(engine, queue).await?;
        while let Some(page) = names.next().await? {
            let mut bodies: Vec<Digest> = page.iter().flat_map(super::named::Named::bodies).collect();
            bodies.sort_unstable();
            bodies.dedup();
            for part in bodies.chunks(READ_MAX) {
                mark_bodies(engine, queue, part, unnamed).await?;
            }
            pause().await;
        }
    }
    if !ask(engine, |journal| Ok(journal.quarantined())).await?.is_empty() {
        return Err(SweepError::Unknown("a queue is quarantined, and what its jobs name cannot be known"));
    }
    Ok(())
}

/// Reads and looks through them on a thread that may block: a result can be many megabytes.
async fn mark_bodies(
    engine: &Engine,
    queue: QueueKey,
    bodies: &[Digest],
    unnamed: &mut HashMap<String, BlobKey>,
) -> Result<(), SweepError> {
    let mut bodies = bodies.to_vec();
    while !bodies.is_empty() {
        let mut left = std::mem::take(unnamed);
        (bodies, *unnamed) = ask(engine, move |journal| {
            let texts = journal.bodies(queue, &bodies, READ_BYTES_MAX)?;
            let rest = bodies.split_off(texts.len().clamp(1, bodies.len()));
            let is_whole = texts.iter().all(Option::is_some);
            for text in texts.into_iter().flatten() {
                blob_names::each(&text, &mut |key| drop(left.remove(key)));
            }
            Ok(is_whole.then_some((rest, left)))
        })
        .await?
        .ok_or(SweepError::Unknown("a definition or result is missing, and what it names cannot be known"))?;
        pause().await;
    }
    Ok(())
}
