//! Asks a tunnel.

use super::Planned;

crate::config_struct! {
    /// Asks a tunnel.
    pub struct TunnelConfig {
        /// Where.
        address: Option<String>,
    }
}

/// Builds the targets.
///
/// # Errors
/// Not built yet.
pub fn plan(_config: &TunnelConfig) -> Result<Vec<Planned>, String> {
    Err("not built yet".to_owned())
}
