//! Small results of jobs that ended a moment ago. Pages are sent them with the news, as they would otherwise fetch each.

use std::collections::{HashMap, VecDeque};

use protocol::id::Digest;
use serde_json::value::RawValue;

/// The largest result that travels with the news, in bytes; others are fetched by those who look at them.
pub(super) const RESULT_BYTES_MAX: usize = 16 * 1024;

/// The most bytes of results kept per queue: all of them are in each whole state that a page is sent.
const KEPT_BYTES_MAX: usize = 1024 * 1024;

/// A queue's newest small results; the oldest make room.
#[derive(Debug, Default)]
pub(super) struct Results {
    by_digest: HashMap<Digest, Box<RawValue>>,
    order: VecDeque<Digest>,
    bytes: usize,
}

impl Results {
    pub(super) fn get(&self, digest: Digest) -> Option<&RawValue> {
        self.by_digest.get(&digest).map(|result| &**result)
    }

    pub(super) fn has(&self, digest: Digest) -> bool {
        self.by_digest.contains_key(&digest)
    }

    pub(super) fn put(&mut self, digest: Digest, result: Box<RawValue>) {
        let bytes = result.get().len();
        if bytes > RESULT_BYTES_MAX || self.has(digest) {
            return;
        }
        self.bytes += bytes;
        self.by_digest.insert(digest, result);
        self.order.push_back(digest);
        while self.bytes > KEPT_BYTES_MAX {
            let Some(oldest) = self.order.pop_front() else { break };
            self.bytes -= self.by_digest.remove(&oldest).map_or(0, |result| result.get().len());
        }
    }
}

/// A result's text as what can be put into a message as it is.
pub(super) fn parse(text: &[u8]) -> Option<Box<RawValue>> {
    if text.len() > RESULT_BYTES_MAX {
        return None;
    }
    serde_json::from_slice(text).ok()
}
