//! The broker, as a library: so far its journal, and reading one for audit.

pub mod audit;
pub mod journal;
