//! Rules in Prometheus' own files: read as strictly, evaluated over the window, their alerts moved as Prometheus does,
//! and tested by promtool's own test files.

mod format;
pub mod group;
pub mod load;
pub mod running;
pub mod state;
pub mod template;
pub mod unit;

use std::time::Duration;

crate::config_struct! {
    /// Which rules decide what is wrong.
    pub struct RulesConfig {
        /// Rule files, with `*` where several are meant; the default is what Proctor brings with it (`alerts/`).
        files: Option<Vec<String>>,
        /// Time between two evaluations of a group that names none of its own.
        interval: Duration = "15s",
    }
}
