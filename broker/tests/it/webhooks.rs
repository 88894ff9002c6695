//! Webhooks, against receivers on this machine: what they are told, how often, and what they can do to the broker.

mod delivery;
mod reach;
mod receiver;
mod restart;
mod told;
