//! The broker: journal, rules, engine, sessions and HTTP, as a library.
//!
//! Floors, arrows down only: [`rules`] (pure) and [`journal`]; [`engine`] on both; [`session`] and [`http`] on the engine.

pub mod audit;
mod blob_names;
pub mod blob_uses;
pub mod blobs;
mod broker;
pub mod clock;
pub mod config;
pub mod engine;
pub mod histogram;
pub mod http;
pub mod journal;
pub mod logs;
mod open_files;
pub mod original;
pub mod refusal;
pub mod retention;
pub mod rules;
pub mod session;
pub mod submission;
pub mod webhooks;

pub use self::broker::{Broker, BrokerError, BrokerHandle};
