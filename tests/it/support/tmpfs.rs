//! A small file system, to be filled or made read-only.

use std::path::Path;
use std::process::Command;

/// A small file system in memory, unmounted with the test; nothing where this user may not mount.
pub(crate) struct Tmpfs(tempfile::TempDir);

impl Tmpfs {
    /// Mounts one of a size such as `2m`.
    pub(crate) fn mount(size: &str) -> Option<Self> {
        let folder = tempfile::tempdir().expect("a folder");
        let done = Command::new("mount").args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"]).arg(folder.path()).status();
        if done.is_ok_and(|status| status.success()) {
            return Some(Self(folder));
        }
        assert!(std::env::var_os("REQUIRE_SERVICES").is_none(), "a tmpfs can be mounted");
        eprintln!("skipped: this user may not mount a tmpfs");
        None
    }

    /// Returns where it is mounted.
    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    /// Remounts it with `ro`, `rw` or `size=…`.
    pub(crate) fn remount(&self, how: &str) {
        let done = Command::new("mount").args(["-o", &format!("remount,{how}")]).arg(self.0.path()).status();
        assert!(done.is_ok_and(|status| status.success()), "remount,{how}");
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}
