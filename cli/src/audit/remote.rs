//! A queue's log as a running broker sends it: the records verbatim, so that the chain is checked here and not believed.

use protocol::PROTOCOL_VERSION;
use protocol::id::{Digest, Head, QueueKey, QueueName};
use protocol::native::{FromBroker, Hello, ToBroker};
use protocol::queue::QueueState;
use protocol::record::Record;

use anyhow::{Context, bail, ensure};

use crate::args::audit::Moment;
use crate::job::api::Api;
use crate::socket::Socket;

/// What to do with each record; its chain hash comes with it.
pub(crate) type Each<'a> = &'a mut dyn FnMut(&Record, Digest) -> anyhow::Result<()>;

/// The state as it is now.
pub(crate) async fn state_now(api: &Api, queue: &QueueName) -> anyhow::Result<QueueState> {
    let (mut socket, _) = open(api, queue, None).await?;
    let state = loop {
        if let FromBroker::Snapshot { head, state } = socket.receive().await? {
            let state = QueueState::decode(&state.0).context("the broker sent a state that cannot be read")?;
            ensure!(state.head() == head, "the broker sent a state of another position than it says");
            break state;
        }
    };
    socket.close().await;
    Ok(state)
}

/// Reads the log from its first record up to `until`, checking the chain; answers the folded state.
pub(crate) async fn replay(api: &Api, queue: &QueueName, until: Moment, each: Each<'_>) -> anyhow::Result<QueueState> {
    let key = QueueKey::of(queue);
    let genesis = Head { seq: 0, hash: key.genesis() };
    let (mut socket, said) = open(api, queue, Some(genesis)).await?;
    let mut state = QueueState::new(key);
    let mut is_cut = until == Moment::Seq(0);
    while !is_cut && state.head().seq < said.seq {
        match socket.receive().await? {
            FromBroker::Snapshot { .. } => bail!(
                "this broker does not send old records over its socket; read them beside it with --data DIR, \
                 or ask for the present state with `audit state` without --at"
            ),
            FromBroker::Events { from_seq, records } => {
                for (seq, bytes) in (from_seq..).zip(&records) {
                    let record = Record::decode(&bytes.0).with_context(|| format!("record {seq} cannot be read"))?;
                    is_cut = match until {
                        Moment::Now => state.head().seq == said.seq,
                        Moment::Seq(last) => state.head().seq == last,
                        Moment::Time(last) => record.at_ms > last,
                    };
                    if is_cut {
                        break;
                    }
                    state.apply_bytes(&bytes.0).with_context(|| format!("record {seq} does not continue the log"))?;
                    each(&record, state.head().hash)?;
                }
            }
            FromBroker::Welcome { .. }
            | FromBroker::Presence { .. }
            | FromBroker::Ok { .. }
            | FromBroker::Rejected { .. }
            | FromBroker::Granted { .. }
            | FromBroker::Stop { .. }
            | FromBroker::Claimed { .. }
            | FromBroker::Definitions { .. }
            | FromBroker::Explained { .. }
            | FromBroker::Logs { .. } => {}
        }
    }
    socket.close().await;
    match until {
        Moment::Seq(last) if state.head().seq < last => bail!("the queue's last record is {}", state.head().seq),
        Moment::Now | Moment::Seq(_) | Moment::Time(_) => {}
    }
    check_end(state.head(), said)?;
    Ok(state)
}

/// The records came one by one; together they must come to the hash that the broker said before it sent them.
fn check_end(folded: Head, said: Head) -> anyhow::Result<()> {
    ensure!(
        folded.seq != said.seq || folded == said,
        "the chain does not come to what the broker says: {} there, {} here, at record {}",
        said.hash,
        folded.hash,
        said.seq
    );
    Ok(())
}

async fn open(api: &Api, queue: &QueueName, resume: Option<Head>) -> anyhow::Result<(Socket, Head)> {
    let mut socket = Socket::open(api, &api.socket_url(queue)).await?;
    let hello = Hello { version: PROTOCOL_VERSION, version_min: None, watch: true, resume, worker: None };
    socket.send(&[ToBroker::Hello(hello)]).await?;
    match socket.receive().await? {
        FromBroker::Welcome { version: PROTOCOL_VERSION, head, .. } => Ok((socket, head)),
        FromBroker::Welcome { version, .. } => {
            bail!("the broker speaks version {version} of the dialect, this program {PROTOCOL_VERSION}")
        }
        FromBroker::Rejected { message, .. } => bail!("the broker refuses: {message}"),
        other @ (FromBroker::Snapshot { .. }
        | FromBroker::Events { .. }
        | FromBroker::Presence { .. }
        | FromBroker::Ok { .. }
        | FromBroker::Granted { .. }
        | FromBroker::Stop { .. }
        | FromBroker::Claimed { .. }
        | FromBroker::Definitions { .. }
        | FromBroker::Explained { .. }
        | FromBroker::Logs { .. }) => bail!("the broker did not begin with a welcome: {other:.100?}"),
    }
}
