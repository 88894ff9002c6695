//! The container engine: what runs need of it.
//!
//! Ground floor first: `names`, `request` (pure) and `follow` (output into logs); `engine` (the calls); `egress` (rules around a
//! network), `cache` (volumes), `disk` (what a container takes); `surroundings` and `watch` (what takes several calls).

mod cache;
mod disk;
mod egress;
mod engine;
mod follow;
mod names;
mod request;
mod surroundings;
mod watch;

pub(crate) use disk::DiskLimit;
pub(crate) use engine::{Engine, Facts, Standing, is_not_found, standing};
pub(crate) use follow::{Frames, Seen, pump, read_seen};
pub(crate) use names::{LABEL_GPUS, LABEL_ID, LABEL_RUN, NETWORK, cache_volume};
pub(crate) use request::{Plan, create_request};
pub(crate) use surroundings::{Surroundings, SurroundingsError};
pub(crate) use watch::{Deadline, stop_asked, watch};
