//! The container images in a real Engine, by the commands that people have: only the image's name, the network and the socket's
//! place are this test's own.

mod local;
mod running;
mod support;
