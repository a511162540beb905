//! Asks nginx.

use super::Planned;

crate::config_struct! {
    /// Asks nginx.
    pub struct NginxConfig {
        /// Where.
        address: Option<String>,
    }
}

/// Builds the targets.
///
/// # Errors
/// Not built yet.
pub fn plan(_config: &NginxConfig) -> Result<Vec<Planned>, String> {
    Err("not built yet".to_owned())
}
