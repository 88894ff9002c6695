//! The words all ends of Gridsocket share: ids, job definitions, stored events and their fold, and the native dialect.
//!
//! No IO, no clock, no async runtime: everything here builds for `wasm32-unknown-unknown`, so that the page folds the same
//! records with the same code as the broker and as `audit`.
//!
//! Ground floor first: [`id`] and [`json`]; [`canonical`] (job ids), [`mod@array`], [`definition`], [`shell`], [`duration`], [`size`], [`reach`],
//! [`link`] (links to jobs); then [`event`], [`record`] and [`queue`] (the stored facts and their fold); on top [`explain`], [`native`] and [`codec`] (what crosses
//! a socket), and [`exposition`] (numbers for whoever watches).

pub mod array;
pub mod canonical;
pub mod codec;
pub mod definition;
pub mod duration;
pub mod event;
pub mod explain;
pub mod exposition;
pub mod id;
pub mod json;
pub mod link;
pub mod native;
pub mod original;
pub mod queue;
pub mod raw;
pub mod reach;
pub mod record;
pub mod shell;
pub mod size;

/// The version of the native dialect that this build speaks; a peer with another one is answered with a clear refusal.
pub const PROTOCOL_VERSION: u16 = 1;
