//! A queue's socket to the broker: connects, says who the worker is and what it holds, sends what is in the [`Outbox`], tells the
//! agent what comes in, and connects again when the line breaks. It knows nothing of containers.

mod backlog;
mod backoff;
mod event;
mod outbox;
mod socket;

use std::sync::Arc;
use std::time::Duration;

use protocol::id::QueueKey;
use tokio::sync::mpsc;
use tracing::{info, warn};

use crate::state_machine::QueueIndex;
use backoff::Backoff;
use event::Events;
pub(crate) use event::{Epoch, LinkConfig, LinkEvent};
pub(crate) use outbox::{Outbox, Report};

/// How many events of all queues may wait for the agent before sockets are not read any more: grants are bounded by the
/// capacity on offer, so this is never full for long.
pub(crate) const EVENTS_MAX: usize = 256;

/// Keeps a queue connected. It ends when the outbox is closed and empty, or the receiver of `events` is dropped.
pub(crate) async fn keep_connected(
    config: LinkConfig,
    outbox: Arc<Outbox>,
    events: mpsc::Sender<(QueueIndex, LinkEvent)>,
) {
    let events = Events::new(config.index, events);
    let key = QueueKey::of(&config.queue).short();
    let mut backoff = Backoff::new(rand_seed());
    let mut epoch: Epoch = 0;
    while !outbox.is_closed() && !events.is_closed() {
        epoch += 1;
        let ended = socket::serve(&config, &outbox, &events, epoch).await;
        outbox.disconnected();
        if outbox.is_closed() {
            break;
        }
        if ended.was_welcomed {
            backoff.reset();
            if !events.tell(LinkEvent::Lost { epoch }).await {
                break;
            }
        }
        let delay = backoff.next_delay();
        if ended.was_welcomed {
            info!(queue.key = key, "lost the broker: {}; trying again in {} ms", ended.why, delay.as_millis());
        } else {
            warn!(
                queue.key = key,
                "cannot reach the broker at {}: {}; trying again in {} ms",
                config.api,
                ended.why,
                delay.as_millis()
            );
        }
        wait_unless_closed(delay, &outbox).await;
    }
}

async fn wait_unless_closed(delay: Duration, outbox: &Outbox) {
    tokio::select! {
        () = tokio::time::sleep(delay) => {}
        () = outbox.closed() => {}
    }
}

/// Jitter needs no secrecy, only that two workers differ.
fn rand_seed() -> u64 {
    let (high, low) = uuid::Uuid::new_v4().as_u64_pair();
    high ^ low
}
