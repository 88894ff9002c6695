//! HTTP: routes, websocket upgrades, blobs and the page. Handlers hold no rules; they decode, ask the engine, and answer.
//!
//! Shapes are those that the original's clients know, so addresses and field names here are fixed. What differs is told in
//! errors: a request that cannot be done gets a 4xx with `{"error": text, "code": word}`, never a 200 or a 500.
//!
//! Ground floor first: `reply`, `error`, `client`, `room`, `params` (what every answer and request is made of), `app`, `find`,
//! `shape`, `elsewhere` (what handlers share), the handlers; `routes`, the one table that the router, `openapi` and parts of `documents` are made
//! of; then what is around them: `cors`, `rates`, `address`, `connection`, `patient`, `metered`, `socket`, `answer`, and `serve` on top.

mod address;
mod answer;
mod app;
mod blobs;
mod bulk;
mod cancel;
mod client;
mod connection;
mod cors;
mod documents;
mod elsewhere;
mod error;
mod explain;
mod files;
mod find;
mod history;
mod jobs;
mod logs;
mod metered;
mod metrics;
mod openapi;
mod page;
mod params;
mod patient;
mod rates;
mod reply;
mod room;
mod routes;
mod serve;
mod shape;
mod socket;
mod status;
mod stream;
mod submit;
mod transfer;
mod webhooks;

pub use app::AppState;
pub use serve::serve;
