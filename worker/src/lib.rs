//! The worker: takes runs from a broker, runs them in containers on this machine, and reports how they ended.
//!
//! Ground floor first: [`config`] (checked values), `state_machine` (pure: which runs fit, how a run ends) and `outcome` (pure:
//! endings into results); `link` (the socket to the broker), `logs` (output into lines for it); `container`, `images` and
//! `files` (the engine and the disk); `gpus` (which devices there are); `context` (what all runs share of these); `adopt` and `agent` (the one task that owns
//! the slots) on top.
//!
//! The crate reads neither flags nor environment and never names a broker's code: what it knows of the other end is
//! `protocol::native`.

mod adopt;
mod agent;
mod brief;
mod builds;
mod clock;
pub mod config;
mod container;
mod context;
pub mod doctor;
mod error;
mod files;
mod gpus;
mod identity;
mod images;
mod link;
mod logs;
pub mod observe;
mod original;
mod outcome;
mod quarantine;
mod shutdown;
mod state_machine;
mod sync;
mod tls;
mod unacknowledged;
pub mod upgrade;

pub use agent::{ExitSummary, run};
pub use config::Config;
pub use error::WorkerError;
pub use shutdown::{Shutdown, ShutdownHandle, ShutdownMode, shutdown_pair};
pub use tls::install_tls;
