//! Asks gunicorn.

mod sock_diag;

use super::Planned;

crate::config_struct! {
    /// Asks gunicorn.
    pub struct GunicornConfig {
        /// Where.
        address: Option<String>,
    }
}

/// Builds the targets.
///
/// # Errors
/// Not built yet.
pub fn plan(_config: &GunicornConfig) -> Result<Vec<Planned>, String> {
    Err("not built yet".to_owned())
}
