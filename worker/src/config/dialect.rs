//! Which dialect a worker speaks.

/// What a worker speaks to its server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Dialect {
    /// Ours if the server takes it, else the original's. Asked on each connection.
    #[default]
    Ask,
    /// The original's, also to a broker that speaks ours.
    Original,
}
