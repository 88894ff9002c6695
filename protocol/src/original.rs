//! The original's dialect: what crosses a socket that asked for no subprotocol. Text frames: `PING`, or JSON `{"type", "payload"}`.
//!
//! Its spellings stay in here. [`from_peer`] reads what pages, command lines and workers send, [`to_peer`] writes what they are
//! sent; [`to_server`] and [`from_server`] are a worker's ends of the same. [`job`] is a job as they know it, [`preferred`] is their rule for two workers with one job, [`fitness`] says what
//! their workers survive. There is no error and no acknowledgement in it: a peer that is not understood hears nothing.

mod envelope;
pub mod fitness;
pub mod from_peer;
pub mod from_server;
pub mod job;
pub mod preferred;
pub mod to_peer;
pub mod to_server;

pub use self::from_peer::{FromPeer, ReadError};
pub use self::from_server::FromServer;
pub use self::job::JobEntry;
