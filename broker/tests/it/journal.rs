//! The journal on real files: commits, crashes, damage, and the audit beside it.

mod audit;
mod commit;
mod damage;
pub(crate) mod model;
mod recover;
