//! Where things lie when the configuration does not say.

use std::path::PathBuf;

use crate::config::Config;

/// The configuration that is used where none is named and this one exists.
pub const DEFAULT_CONFIG: &str = "/etc/proctor/proctor.yml";

/// Returns where the state lies: as configured, else in `$STATE_DIRECTORY` (systemd's), else in
/// `$XDG_STATE_HOME/proctor`, else in `~/.local/state/proctor`. Nothing where none of them is known.
pub fn state_path(config: &Config) -> Option<PathBuf> {
    let folder = || {
        let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        set("STATE_DIRECTORY")
            .or_else(|| set("XDG_STATE_HOME").map(|home| home.join("proctor")))
            .or_else(|| set("HOME").map(|home| home.join(".local/state/proctor")))
    };
    config.state.path.clone().or_else(|| folder().map(|folder| folder.join("state.db")))
}

/// Where the package has the control socket (deploy/proctor.tmpfiles).
const RUNTIME: &str = "/run/proctor";

/// Returns where the control socket lies: as configured, else in `$RUNTIME_DIRECTORY`, else where the package has it,
/// else beside the state.
pub fn control_socket(config: &Config) -> PathBuf {
    let named = || std::env::var_os("RUNTIME_DIRECTORY").filter(|value| !value.is_empty()).map(PathBuf::from);
    let installed = || Some(PathBuf::from(RUNTIME)).filter(|folder| folder.is_dir());
    let runtime = || named().or_else(installed);
    let beside = || state_path(config).and_then(|path| path.parent().map(PathBuf::from));
    let folder = || runtime().or_else(beside).unwrap_or_else(std::env::temp_dir);
    config.control.socket.clone().unwrap_or_else(|| folder().join("control.sock"))
}
