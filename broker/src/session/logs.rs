//! Following one job's log: what is written and what comes, from a cursor on, until the job is over.

use protocol::id::JobId;
use protocol::native::{FromBroker, LogKind};

use crate::engine::QueueHandle;
use crate::engine::outbox::Outbox;
use crate::logs::LogStore;

/// Lines per message: a screenful or two, so that the first of a million arrive at once.
const LINES_PER_MESSAGE: usize = 500;

/// Sends the lines of one log as they come. Waits for room, so that a slow reader slows only itself and holds little in memory.
pub(super) async fn follow(logs: LogStore, queue: QueueHandle, outbox: Outbox, job: JobId, kind: LogKind, since: u64) {
    let mut cursor = since;
    let mut watch = logs.watch(queue.key(), job, kind);
    loop {
        // Asked before reading: lines that were stored before the job ended are then seen by the read.
        let is_over = match queue.job(job).await {
            Ok(found) => found.is_some_and(|found| !found.job.is_live()),
            Err(_) => return,
        };
        loop {
            let Some(room) = outbox.room().await else { return };
            let Ok(page) = logs.read(queue.key(), job, kind, cursor, LINES_PER_MESSAGE).await else { return };
            let is_all = page.next == cursor || page.lines.is_empty();
            if is_all {
                break;
            }
            cursor = page.next;
            let lines = FromBroker::Logs { job, kind, from: page.from, lines: page.lines, is_final: false };
            outbox.large(lines, &room);
        }
        if is_over {
            let end = FromBroker::Logs { job, kind, from: cursor, lines: Vec::new(), is_final: true };
            if let Some(room) = outbox.room().await {
                outbox.large(end, &room);
            }
            return;
        }
        watch.changed().await;
    }
}
