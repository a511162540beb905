//! Asks certificates.

use super::Planned;

crate::config_struct! {
    /// Asks certificates.
    pub struct CertificateConfig {
        /// Where.
        address: Option<String>,
    }
}

/// Builds the targets.
///
/// # Errors
/// Not built yet.
pub fn plan(_config: &CertificateConfig) -> Result<Vec<Planned>, String> {
    Err("not built yet".to_owned())
}
