//! Definitions of many jobs, read part by part and sent as the socket takes them.

use protocol::native::{FromBroker, RequestId};

use crate::engine::outbox::Outbox;
use crate::engine::{Definitions, rejected};

/// Answers a request with as many messages as it takes. Each waits for room, so that a slow reader holds little in memory.
pub(super) async fn send_definitions(outbox: Outbox, req: RequestId, mut wanted: Definitions) {
    loop {
        let Some(room) = outbox.room().await else { return };
        let (definitions, is_final) = match wanted.next_part().await {
            Ok(part) => part,
            Err(refusal) => return outbox.must(rejected(Some(req), &refusal)),
        };
        outbox.large(FromBroker::Definitions { req, definitions, is_final }, &room);
        if is_final {
            return;
        }
    }
}
