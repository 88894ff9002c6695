//! A queue's socket to the broker: connects, says who the worker is and what it holds, sends what is in the [`Outbox`], tells the
//! agent what comes in, and connects again when the line breaks. It knows nothing of containers.

mod backlog;
mod backoff;
mod event;
mod original;
mod outbox;
mod sleep;
mod socket;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use protocol::id::QueueKey;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tracing::{info, warn};

use crate::config::Dialect;
use crate::state_machine::QueueIndex;
use backoff::Backoff;
use event::Events;
pub(crate) use event::{Epoch, LinkConfig, LinkEvent};
use original::Counter;
pub(crate) use outbox::{Outbox, Report};
use socket::Ended;

/// How many events of all queues may wait for the agent before sockets are not read any more: grants are bounded by the
/// capacity on offer, so this is never full for long.
pub(crate) const EVENTS_MAX: usize = 256;

/// A line that stood for so long was a good one: the next try comes at once.
const STOOD: Duration = Duration::from_secs(5);

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
    let mut counter = None;
    while !outbox.is_closed() && !events.is_closed() {
        epoch += 1;
        let begun = Instant::now();
        let ended = tokio::select! {
            ended = serve(&config, &mut counter, &outbox, &events, epoch) => ended,
            slept = sleep::woke(config.asleep_ms) => Ended {
                was_welcomed: outbox.is_connected(),
                is_foreign: false,
                why: format!("the machine slept for {} s", slept.as_secs()),
            },
        };
        outbox.disconnected();
        if outbox.is_closed() {
            break;
        }
        if ended.was_welcomed {
            // One that welcomes and breaks off at once is as good as one that is down.
            if begun.elapsed() >= STOOD {
                backoff.reset();
            }
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
        tokio::select! {
            () = tokio::time::sleep(delay) => {}
            () = outbox.closed() => {}
            // Whoever opens a laptop does not want to wait.
            _ = sleep::woke(config.asleep_ms) => backoff.reset(),
        }
    }
}

/// One connection, in the dialect that the server speaks now. `counter` is what is kept while that is the original's.
async fn serve(
    config: &LinkConfig,
    counter: &mut Option<Counter>,
    outbox: &Arc<Outbox>,
    events: &Events,
    epoch: Epoch,
) -> Ended {
    if config.dialect == Dialect::Ask {
        let ended = socket::serve(config, outbox, events, epoch).await;
        if ended.was_welcomed {
            *counter = None;
        }
        if !ended.is_foreign {
            return ended;
        }
    }
    let counter = counter.get_or_insert_with(|| Counter::new(config));
    original::serve(config, counter, outbox, events, epoch).await
}

/// Jitter needs no secrecy, only that two workers differ.
fn rand_seed() -> u64 {
    let (high, low) = uuid::Uuid::new_v4().as_u64_pair();
    high ^ low
}
