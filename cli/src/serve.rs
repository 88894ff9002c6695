//! `gridsocket serve`: a broker until it is told to stop.

use std::io;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use broker::Broker;
use tokio::net::{TcpListener, TcpSocket};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::info;

use crate::args::serve::Settings;
use crate::progress::{print, say};

/// How long what was begun may take to end: a write and a goodbye to every socket.
pub(crate) const SHUTDOWN_MAX: Duration = Duration::from_secs(15);

/// Serves until SIGINT or SIGTERM.
pub(crate) async fn serve(settings: Settings) -> anyhow::Result<ExitCode> {
    let mut signals = Signals::new()?;
    let listener = listen(settings.listen, "--listen")?;
    let data = settings.broker.data.clone();
    let broker =
        Broker::start(settings.broker, listener).await.with_context(|| format!("cannot serve {}", data.display()))?;
    print(&format!("gridsocket broker at http://{}, data in {}", reachable(broker.addr()), data.display()))?;
    let stopped = tokio::select! {
        name = signals.next() => Ok(name),
        error = broker.failed() => Err(error),
    };
    if let Ok(name) = stopped {
        info!("{name}: stopping");
    }
    stop(broker).await;
    stopped.map(|_| ExitCode::SUCCESS).map_err(Into::into)
}

/// Ends the broker, but does not wait for ever.
pub(crate) async fn stop(broker: broker::BrokerHandle) {
    if tokio::time::timeout(SHUTDOWN_MAX, broker.shutdown()).await.is_err() {
        say("some connections did not end in time; what was acknowledged is on disk");
    }
}

/// How many connections may wait to be accepted: a thousand pages that come back at once must not be told to try again a second
/// later, which is what a full line does.
const WAITING_CONNECTIONS_MAX: u32 = 4096;

/// Takes the address; when that fails, says which flag chooses another.
pub(crate) fn listen(address: SocketAddr, flag: &str) -> anyhow::Result<TcpListener> {
    bind(address).with_context(|| format!("cannot listen on {address}; choose another address with {flag}"))
}

fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(WAITING_CONNECTIONS_MAX)
}

/// The address as one would type it into a browser on this machine.
pub(crate) fn reachable(address: SocketAddr) -> String {
    if address.ip().is_unspecified() || address.ip().is_loopback() {
        format!("localhost:{}", address.port())
    } else {
        address.to_string()
    }
}

/// The signals that end a long-running command.
pub(crate) struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Signals {
    /// Listens from now on, so that none is missed while things start.
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// Waits for the next one; answers its name.
    pub(crate) async fn next(&mut self) -> &'static str {
        loop {
            tokio::select! {
                _ = self.interrupt.recv() => return "SIGINT",
                _ = self.terminate.recv() => return "SIGTERM",
                // A terminal that is closed, or a habit of other services: no reason to end.
                _ = self.hangup.recv() => info!("SIGHUP: nothing is read anew; SIGTERM ends it"),
            }
        }
    }
}
