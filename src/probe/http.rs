//! Asks a web page.

use super::Planned;

crate::config_struct! {
    /// Asks a web page.
    pub struct HttpConfig {
        /// Where.
        address: Option<String>,
    }
}

/// Builds the targets.
///
/// # Errors
/// Not built yet.
pub fn plan(_config: &HttpConfig) -> Result<Vec<Planned>, String> {
    Err("not built yet".to_owned())
}
