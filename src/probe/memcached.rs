//! Asks memcached.

use super::Planned;

crate::config_struct! {
    /// Asks memcached.
    pub struct MemcachedConfig {
        /// Where.
        address: Option<String>,
    }
}

/// Builds the targets.
///
/// # Errors
/// Not built yet.
pub fn plan(_config: &MemcachedConfig) -> Result<Vec<Planned>, String> {
    Err("not built yet".to_owned())
}
