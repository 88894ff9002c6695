//! The container engine: what runs need of it.
//!
//! Ground floor first: `names`, `request` (pure) and `follow` (output into logs); `engine` (the calls), `deaths` (ends as events tell them); `egress` (rules around a
//! network), `network` (the network itself), `cache` (volumes), `disk` (what a container takes), `shared` (whether its
//! paths are ours); `surroundings` and `watch` (what takes several calls).

mod cache;
mod deaths;
mod disk;
mod egress;
mod engine;
mod follow;
mod names;
mod network;
mod request;
mod shared;
mod surroundings;
mod watch;

pub(crate) use disk::{DiskLimit, below};
pub(crate) use egress::EgressError;
pub(crate) use engine::{Engine, Facts, Standing, is_ambiguous, is_away, is_not_found, standing};
pub(crate) use follow::{Frames, Seen, pump, read_seen};
pub(crate) use names::{LABEL_DATA, LABEL_GPUS, LABEL_ID, LABEL_QUEUE, LABEL_RUN, LABEL_WORKER, NETWORK, cache_volume};
pub(crate) use request::{Plan, create_request};
pub(crate) use shared::{SharedError, check as check_shared, ensure as ensure_shared};
pub(crate) use surroundings::{Surroundings, SurroundingsError};
pub(crate) use watch::{Deadline, stop_asked, watch};
