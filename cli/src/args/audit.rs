//! `gridsocket audit …`: the options of reading an event log.

use std::path::PathBuf;

use clap::Subcommand;
use protocol::id::{QueueName, Seq, UnixMillis};

use super::job::api_address;
use super::setting::{Env, UsageError, flag_only};

/// Options of `gridsocket audit`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) command: Command,
}

const EXAMPLES: &str = "\
Examples:
  gridsocket audit log my-queue --data ~/.local/share/gridsocket/broker
  gridsocket audit verify --data ~/.local/share/gridsocket/broker
  gridsocket audit state my-queue --data DIR --at 2026-11-04T12:00:00Z
  gridsocket audit state my-queue --api http://localhost:8000

With --data the log is read from disk, also while the broker runs. It names
queues by a key, since a queue's name is its secret; give either the name or the
key.";

/// The audit commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Print what happened, one line a change
    Log(Log),
    /// Check the chain of hashes and every stored body; ends with 1 at the first bad record
    Verify(Source),
    /// Print the state as canonical JSON, and its hash
    State(State),
    /// Say what can still be had from a damaged log
    Salvage(Salvage),
}

/// Where the log is.
#[derive(Debug, clap::Args)]
pub(crate) struct Source {
    /// The queue's name, or its key; all queues when it is left out (with --data)
    queue: Option<String>,
    /// The broker's data folder
    #[arg(long, value_name = "DIR", conflicts_with = "api")]
    data: Option<PathBuf>,
    /// A running broker's address [env: GRIDSOCKET_API] [default: http://localhost:8000]
    #[arg(long, value_name = "URL")]
    api: Option<String>,
}

/// Options of `audit log`.
#[derive(Debug, clap::Args)]
pub(crate) struct Log {
    #[command(flatten)]
    pub(crate) source: Source,
    /// JSON, one record a line, instead of a table
    #[arg(long)]
    pub(crate) json: bool,
}

/// Options of `audit state`.
#[derive(Debug, clap::Args)]
pub(crate) struct State {
    #[command(flatten)]
    pub(crate) source: Source,
    /// The moment: a seq, a time (2026-11-04T12:00:00Z), or milliseconds since 1970 [default: now]
    #[arg(long, value_name = "SEQ|TIME")]
    at: Option<String>,
}

/// Options of `audit salvage`.
#[derive(Debug, clap::Args)]
pub(crate) struct Salvage {
    /// The queue's name, or its key; all queues when it is left out
    queue: Option<String>,
    /// The broker's data folder
    #[arg(long, value_name = "DIR")]
    pub(crate) data: PathBuf,
    /// Write every readable record to this file, as JSON, one a line
    #[arg(long, value_name = "FILE")]
    pub(crate) export: Option<PathBuf>,
}

impl Salvage {
    /// Which queue, when one is named.
    pub(crate) fn queue(&self) -> Result<Option<QueueName>, UsageError> {
        flag_only("queue", self.queue.as_deref()).find(&|_| None, str::parse)
    }
}

/// Where to read from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum From {
    /// A data folder.
    Data(PathBuf),
    /// A running broker.
    Api(String),
}

/// Which queue; the text may be a name or a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// Where to read from.
    pub(crate) from: From,
    /// The queue, by name; one that is 32 hex digits is tried as a key first.
    pub(crate) queue: Option<QueueName>,
}

/// A moment in a queue's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Moment {
    /// After the last record.
    Now,
    /// After this record.
    Seq(Seq),
    /// After the last record that is not later.
    Time(UnixMillis),
}

impl Source {
    /// Applies flag > variable > default.
    pub(crate) fn settings(&self, env: Env<'_>) -> Result<Wanted, UsageError> {
        let queue = flag_only("queue", self.queue.as_deref()).find(env, str::parse)?;
        let from = match &self.data {
            Some(data) => From::Data(data.clone()),
            None => From::Api(api_address(self.api.as_deref(), env)?),
        };
        if queue.is_none() && matches!(from, From::Api(_)) {
            return Err(UsageError::new(
                "queue",
                "a running broker is asked about one queue: name it, or read all from disk with --data DIR",
            ));
        }
        Ok(Wanted { from, queue })
    }
}

impl State {
    /// The moment that is asked for.
    pub(crate) fn moment(&self) -> Result<Moment, UsageError> {
        let read = flag_only("--at", self.at.as_deref()).find(&|_| None, moment)?;
        Ok(read.unwrap_or(Moment::Now))
    }
}

/// The smallest number that is taken as milliseconds, not as a seq: 2001-09-09, before any log; no queue has 10^12 records.
const MILLIS_MIN: u64 = 1_000_000_000_000;

fn moment(text: &str) -> Result<Moment, &'static str> {
    const RULE: &str =
        "write a seq (17), a time in UTC (2026-11-04T12:00:00Z), or milliseconds since 1970 (1793793600000)";
    if let Ok(number) = text.parse::<u64>() {
        return Ok(if number < MILLIS_MIN { Moment::Seq(number) } else { Moment::Time(UnixMillis(number)) });
    }
    let time: jiff::Timestamp = text.parse().map_err(|_| RULE)?;
    u64::try_from(time.as_millisecond()).map(|ms| Moment::Time(UnixMillis(ms))).map_err(|_| RULE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_a_seq_a_time_or_milliseconds() {
        assert_eq!(moment("0"), Ok(Moment::Seq(0)));
        assert_eq!(moment("17"), Ok(Moment::Seq(17)));
        assert_eq!(moment("1793793600000"), Ok(Moment::Time(UnixMillis(1_793_793_600_000))));
        assert_eq!(moment("2026-11-04T12:00:00Z"), Ok(Moment::Time(UnixMillis(1_793_793_600_000))));
        assert_eq!(moment("2026-11-04T13:00:00.5+01:00"), Ok(Moment::Time(UnixMillis(1_793_793_600_500))));
        for bad in ["", "yesterday", "-1", "2026-11-04", "1960-01-01T00:00:00Z"] {
            assert!(moment(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_running_broker_is_asked_about_one_queue() {
        let source = |queue: Option<&str>, data: Option<&str>| Source {
            queue: queue.map(str::to_owned),
            data: data.map(PathBuf::from),
            api: None,
        };
        assert!(source(None, Some("/d")).settings(&|_| None).is_ok());
        assert_eq!(source(None, None).settings(&|_| None).unwrap_err().place, "queue");
        let api =
            source(Some("q"), None).settings(&|name| (name == "GRIDSOCKET_API").then(|| "http://e".into())).unwrap();
        assert_eq!(api.from, From::Api("http://e".into()));
    }
}
