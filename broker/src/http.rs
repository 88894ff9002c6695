//! HTTP: routes, websocket upgrades, blobs and the page. Handlers hold no rules; they decode, ask the engine, and answer.
//!
//! Shapes are those that the original's clients know, so addresses and field names here are fixed. What differs is told in
//! errors: a request that cannot be done gets a 4xx with `{"error": text, "code": word}`, never a 200 or a 500.
//!
//! Ground floor first: `reply`, `error`, `params` (what every answer and address is made of), `app`, `find`, `shape` (what
//! handlers share), the handlers, `routes`; then what is around them: `cors`, `address`, `connection`, `socket`, `answer`, and
//! `serve` on top.

mod address;
mod answer;
mod app;
mod blobs;
mod cancel;
mod connection;
mod cors;
mod error;
mod files;
mod find;
mod jobs;
mod logs;
mod params;
mod reply;
mod routes;
mod serve;
mod shape;
mod socket;
mod status;
mod submit;

pub use app::AppState;
pub use serve::serve;
