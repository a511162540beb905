//! map to come

pub mod alerts;
pub mod app;
pub mod cli;
pub mod client;
pub mod config;
pub mod discover;
pub mod metrics;
pub mod model;
pub mod mute;
pub mod notify;
pub mod probe;
pub mod promql;
pub mod remediate;
pub mod rules;
pub mod snapshot;
pub mod store;
pub mod tasks;
pub mod web;
pub mod window;
