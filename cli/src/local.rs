//! `gridsocket local`: broker and worker in one process. They talk over a real socket on the loopback, so that there is one
//! code path, and neither knows that the other is near.

use std::net::{IpAddr, SocketAddr};
use std::process::ExitCode;

use anyhow::Context;
use broker::Broker;
use broker::config::LOCAL_QUEUE;
use worker::{ShutdownMode, shutdown_pair};

use crate::args::local::{Settings, own_address};
use crate::progress::{print, say};
use crate::run::{intention, jobs};
use crate::serve::{Signals, listen, stop};
use crate::top::Asks;

/// Serves and works until SIGINT or SIGTERM, or until one of the two cannot go on.
pub(crate) async fn local(settings: Settings) -> anyhow::Result<ExitCode> {
    let Settings { listen: address, port, broker: config, data, mut worker, on_exit, debug: _, console } = settings;
    let signals = Signals::new()?;
    let listener = listen(SocketAddr::new(address, port), "--port")?;
    let folder = config.data.display().to_string();
    let broker = Broker::start(config, listener).await.with_context(|| format!("cannot serve {folder}"))?;
    let at = broker.addr();
    worker.api = own_api(at);
    greet(at, worker.cpus, &data.display().to_string())?;

    let mut signals = Asks::with(signals, console, &worker.data_directory, &intention(on_exit))?;
    let (handle, shutdown) = shutdown_pair();
    let mut working = std::pin::pin!(worker::run(worker, shutdown));
    let ended: anyhow::Result<()> = tokio::select! {
        ended = &mut working => ended.map(drop).map_err(Into::into),
        error = broker.failed() => Err(error.into()),
        name = signals.next() => {
            signals.say(&format!("{name}: {}", intention(on_exit)));
            handle.request(on_exit);
            tokio::select! {
                ended = &mut working => ended.map(drop).map_err(Into::into),
                name = signals.next() => {
                    signals.say(&format!("{name}: {}", intention(ShutdownMode::Leave)));
                    handle.request(ShutdownMode::Leave);
                    working.await.map(drop).map_err(Into::into)
                }
            }
        }
    };
    // The broker goes last, so that what the worker still reports is stored.
    stop(broker).await;
    ended.map(|()| ExitCode::SUCCESS)
}

/// How the worker reaches its broker, and what stands in the addresses of outputs: the loopback by name where that works.
fn own_api(at: SocketAddr) -> worker::config::ApiAddress {
    match at.ip() {
        ip if ip.is_unspecified() || ip == IpAddr::from([127, 0, 0, 1]) => own_address(at.port()),
        _ => format!("http://{at}").parse().unwrap_or_else(|_| own_address(at.port())),
    }
}

fn greet(at: SocketAddr, cpus: u32, data: &str) -> std::io::Result<()> {
    let page = own_api(at);
    let api = if at.port() == crate::args::local::PORT_DEFAULT { String::new() } else { format!(" --api {page}") };
    print(&format!("gridsocket at {page}/, queue `{LOCAL_QUEUE}`, {} at a time, data in {data}", jobs(cpus)))?;
    say(&format!("try, in another terminal:  gridsocket job add {LOCAL_QUEUE} -c 'echo hello' --wait{api}"));
    Ok(())
}
