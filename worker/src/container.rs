//! The container engine: what runs need of it.
//!
//! Ground floor first: `names`, `request` (pure) and `follow` (output into logs); `engine` (the calls); `surroundings` and
//! `watch` (what takes several calls).

mod engine;
mod follow;
mod names;
mod request;
mod surroundings;
mod watch;

pub(crate) use engine::{Engine, Standing, is_not_found, standing};
pub(crate) use follow::{Frames, Seen, pump, read_seen};
pub(crate) use names::{LABEL_GPUS, LABEL_ID, LABEL_RUN, cache_volume};
pub(crate) use request::{Plan, create_request};
pub(crate) use surroundings::Surroundings;
pub(crate) use watch::{Deadline, stop_asked, watch};
