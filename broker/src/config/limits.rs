//! Bounds on everything that a peer can make large, and their names for whoever configures a broker.

use std::time::Duration;

use protocol::duration::limit_ms;
use protocol::size::parse_size_bytes;

use crate::logs::LogLimits;
use crate::retention::Keep;
use crate::rules::limits::Limits as QueueLimits;
use crate::webhooks::Limits as WebhookLimits;

/// Bounds on everything that a peer can make large. Going over one is answered with an error that says the limit.
#[derive(Clone, Debug)]
pub struct Limits {
    /// The largest JSON body of a request, in bytes. Default: 10 MiB, which holds any definition seen in the wild.
    pub body_bytes_max: usize,
    /// The largest blob, in bytes. Default: 50 GiB; a model with its weights fits.
    pub blob_bytes_max: u64,
    /// The most connections at once, sockets included. Default: 50,000; one more is answered 503.
    pub connections_max: usize,
    /// The most websockets from one address, loopback exempt. Default: 10,000; one more is answered 429.
    pub sockets_per_address_max: u32,
    /// The most requests from one address, each second in the long run and five times as many at once, loopback exempt.
    /// Default: 1,000, which is some submitting programs at full speed; one more is answered 429.
    pub requests_per_address_max: u32,
    /// The most bytes of requests' bodies in memory at once, over all connections. Default: 512 MiB; what does not fit is
    /// answered 503.
    pub bodies_bytes_max: u64,
    /// The most bytes of answers in memory that their askers have not read yet, over all connections, counting those larger than
    /// 64 KiB. Default: 512 MiB; one that does not fit is answered 503.
    pub answers_bytes_max: u64,
    /// How long a peer may take nothing of what it is sent. Default: 60 s; its connection is then cut.
    pub unread_timeout: Duration,
    /// How long a request's headers may take, and how long a connection may idle between requests. Default: 30 s.
    pub header_timeout: Duration,
    /// How long a request's body may pause. Default: 60 s; a stalled upload then frees its connection.
    pub body_idle_timeout: Duration,
    /// Bounds on stored logs.
    pub logs: LogLimits,
    /// What the rules of a queue go by.
    pub queue: QueueLimits,
    /// What is kept how long.
    pub keep: Keep,
    /// Bounds on webhooks.
    pub webhooks: WebhookLimits,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            body_bytes_max: 10 * 1024 * 1024,
            blob_bytes_max: 50 * 1024 * 1024 * 1024,
            connections_max: 50_000,
            sockets_per_address_max: 10_000,
            requests_per_address_max: 1_000,
            bodies_bytes_max: 512 * 1024 * 1024,
            answers_bytes_max: 512 * 1024 * 1024,
            unread_timeout: Duration::from_secs(60),
            header_timeout: Duration::from_secs(30),
            body_idle_timeout: Duration::from_secs(60),
            logs: LogLimits::default(),
            queue: QueueLimits::default(),
            keep: Keep::default(),
            webhooks: WebhookLimits::default(),
        }
    }
}

/// A limit that can be set, with how its value is written.
enum Named<'a> {
    Count(&'a mut usize),
    Count32(&'a mut u32),
    Bytes(&'a mut u64),
    BytesInMemory(&'a mut usize),
    Ms(&'a mut u64),
    Time(&'a mut Duration),
    Keep(&'a mut Option<u64>),
}

/// Why a limit cannot be set.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LimitError {
    /// Not of the form `NAME=VALUE`.
    #[error("write NAME=VALUE, such as live-jobs=200000")]
    NoValue,
    /// No such limit.
    #[error("there is no limit {name:?}; there are: {}", NAMES.join(", "))]
    Unknown {
        /// What was written.
        name: String,
    },
    /// A value that cannot be read.
    #[error("{name} takes {expected}")]
    Value {
        /// The limit.
        name: String,
        /// What would do.
        expected: &'static str,
    },
}

/// The limits that can be set, by name.
pub const NAMES: [&str; 33] = [
    "body",
    "blob",
    "connections",
    "sockets-per-address",
    "requests-per-address",
    "bodies",
    "answers",
    "unread-timeout",
    "header-timeout",
    "body-timeout",
    "log",
    "log-line",
    "lease",
    "lost-runs",
    "overtaken",
    "live-jobs",
    "namespaces",
    "success-stays",
    "failure-stays",
    "keep-jobs",
    "keep-logs",
    "keep-blobs",
    "webhooks",
    "webhooks-per-queue",
    "webhook-bytes",
    "webhook-payload",
    "webhook-tries",
    "webhook-timeout",
    "webhook-wait",
    "webhooks-at-once",
    "webhooks-per-host",
    "dead-letters",
    "keep-dead-letters",
];

/// How to write that something is kept without end.
const FOREVER: &str = "forever";
const KEPT_EXPECTED: &str = "a time above zero with its unit, such as 28d, or forever";

impl Limits {
    fn named(&mut self, name: &str) -> Option<Named<'_>> {
        Some(match name {
            "body" => Named::BytesInMemory(&mut self.body_bytes_max),
            "blob" => Named::Bytes(&mut self.blob_bytes_max),
            "connections" => Named::Count(&mut self.connections_max),
            "sockets-per-address" => Named::Count32(&mut self.sockets_per_address_max),
            "requests-per-address" => Named::Count32(&mut self.requests_per_address_max),
            "bodies" => Named::Bytes(&mut self.bodies_bytes_max),
            "answers" => Named::Bytes(&mut self.answers_bytes_max),
            "unread-timeout" => Named::Time(&mut self.unread_timeout),
            "header-timeout" => Named::Time(&mut self.header_timeout),
            "body-timeout" => Named::Time(&mut self.body_idle_timeout),
            "log" => Named::Bytes(&mut self.logs.job_bytes_max),
            "log-line" => Named::BytesInMemory(&mut self.logs.line_bytes_max),
            "lease" => Named::Ms(&mut self.queue.lease_ms),
            "lost-runs" => Named::Count32(&mut self.queue.lost_runs_max),
            "overtaken" => Named::Ms(&mut self.queue.overtaken_ms),
            "live-jobs" => Named::Count(&mut self.queue.live_jobs_max),
            "namespaces" => Named::Count(&mut self.queue.namespaces_max),
            "success-stays" => Named::Ms(&mut self.queue.success_stays_ms),
            "failure-stays" => Named::Ms(&mut self.queue.failure_stays_ms),
            "keep-jobs" => Named::Keep(&mut self.keep.jobs_ms),
            "keep-logs" => Named::Keep(&mut self.keep.logs_ms),
            "keep-blobs" => Named::Keep(&mut self.keep.blobs_ms),
            "webhooks" => Named::Count(&mut self.webhooks.count_max),
            "webhooks-per-queue" => Named::Count(&mut self.webhooks.per_queue_max),
            "webhook-bytes" => Named::Bytes(&mut self.webhooks.bytes_max),
            "webhook-payload" => Named::BytesInMemory(&mut self.webhooks.payload_bytes_max),
            "webhook-tries" => Named::Count32(&mut self.webhooks.tries_max),
            "webhook-timeout" => Named::Time(&mut self.webhooks.timeout),
            "webhook-wait" => Named::Time(&mut self.webhooks.wait),
            "webhooks-at-once" => Named::Count(&mut self.webhooks.at_once_max),
            "webhooks-per-host" => Named::Count(&mut self.webhooks.per_host_max),
            "dead-letters" => Named::Count(&mut self.webhooks.dead_per_queue_max),
            "keep-dead-letters" => Named::Time(&mut self.webhooks.dead_stays),
            _ => return None,
        })
    }

    /// Sets limits from `NAME=VALUE`, several apart by commas.
    ///
    /// # Errors
    ///
    /// [`LimitError`] for the first that cannot be set; those before it are set.
    pub fn set(&mut self, text: &str) -> Result<(), LimitError> {
        text.split(',').map(str::trim).filter(|part| !part.is_empty()).try_for_each(|part| {
            let (name, value) = part.split_once('=').ok_or(LimitError::NoValue)?;
            self.set_one(name.trim(), value.trim())
        })
    }

    fn set_one(&mut self, name: &str, value: &str) -> Result<(), LimitError> {
        let wrong = |expected| move || LimitError::Value { name: name.to_owned(), expected };
        let (count, bytes, time) = (
            wrong("a whole number above zero"),
            wrong("a size above zero, such as 10MiB"),
            wrong("a time above zero with its unit, such as 30s"),
        );
        // A number alone would be milliseconds, and `keep-jobs=28` would forget every job at once.
        let ms = || limit_ms(value).filter(|_| value.contains(char::is_alphabetic));
        let size = || parse_size_bytes(value).ok().filter(|size| *size > 0);
        match self.named(name).ok_or_else(|| LimitError::Unknown { name: name.to_owned() })? {
            Named::Count(limit) => *limit = value.parse().ok().filter(|limit| *limit > 0).ok_or_else(count)?,
            Named::Count32(limit) => *limit = value.parse().ok().filter(|limit| *limit > 0).ok_or_else(count)?,
            Named::Bytes(limit) => *limit = size().ok_or_else(bytes)?,
            Named::BytesInMemory(limit) => *limit = size().and_then(|size| size.try_into().ok()).ok_or_else(bytes)?,
            Named::Ms(limit) => *limit = ms().ok_or_else(time)?,
            Named::Time(limit) => *limit = Duration::from_millis(ms().ok_or_else(time)?),
            Named::Keep(limit) if value == FOREVER => *limit = None,
            Named::Keep(limit) => *limit = Some(ms().ok_or_else(wrong(KEPT_EXPECTED))?),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_limit_that_has_a_name_can_be_set() {
        for name in NAMES {
            let mut limits = Limits::default();
            let value = ["7", "7MiB", "7s"].into_iter().find(|value| limits.set(&format!("{name}={value}")).is_ok());
            assert!(value.is_some(), "{name}");
            assert_ne!(format!("{limits:?}"), format!("{:?}", Limits::default()), "{name}");
        }
    }

    #[test]
    fn limits_are_read_as_sizes_counts_and_times() {
        let mut limits = Limits::default();
        limits.set("live-jobs=200000, body=1MiB,lease=5s").unwrap();
        let found = (limits.queue.live_jobs_max, limits.body_bytes_max, limits.queue.lease_ms);
        assert_eq!(found, (200_000, 1024 * 1024, 5_000));
    }

    #[test]
    fn what_is_kept_is_kept_for_a_time_or_for_ever() {
        let mut limits = Limits::default();
        limits.set("keep-jobs=forever,keep-logs=3d").unwrap();
        assert_eq!((limits.keep.jobs_ms, limits.keep.logs_ms), (None, Some(3 * 24 * 60 * 60 * 1000)));
    }

    #[test]
    fn what_cannot_be_set_is_refused_with_what_would_do() {
        let error = |text: &str| Limits::default().set(text).unwrap_err().to_string();
        assert!(error("jobs=1").contains("live-jobs"), "{}", error("jobs=1"));
        assert!(error("live-jobs").contains("live-jobs=200000"));
        assert_eq!(error("live-jobs=0"), "live-jobs takes a whole number above zero");
        assert_eq!(error("body=many"), "body takes a size above zero, such as 10MiB");
        for value in ["-1s", "0s", "30", "soon"] {
            let lease = error(&format!("webhooks=1,lease={value}"));
            assert_eq!(lease, "lease takes a time above zero with its unit, such as 30s");
            let kept = error(&format!("keep-jobs={value}"));
            assert_eq!(kept, "keep-jobs takes a time above zero with its unit, such as 28d, or forever");
        }
    }
}
