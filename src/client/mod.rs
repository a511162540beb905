//! Thin bounded clients that several rooms share. Each has limits on what it reads; deadlines are the caller's.

pub mod amqp;
pub mod docker;
pub mod http;
pub mod net;
pub mod process;
pub mod program;
pub mod reach;
pub mod secret;
pub mod smtp;
pub mod sock_diag;
pub mod sql;
pub mod systemd;
