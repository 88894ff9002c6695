//! The original's pages and workers, driven only through sockets as those drive them.

mod clients;
mod peers;
mod workers;
