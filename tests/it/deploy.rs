//! What lies in `deploy/` for other tools is taken by those tools, and the demo runs.

use std::path::Path;
use std::process::{Command, Output};

use crate::support::gunicorn::venv;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
#[ignore = "starts a whole site: make test-slow"]
fn the_demo_shows_two_mails_and_a_repair_and_leaves_nothing_behind() {
    if venv().is_none() {
        return;
    }
    let tmp = tempfile::tempdir().expect("a folder");
    std::fs::set_permissions(tmp.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("it is ours");
    let mut command = Command::new("python3");
    command.arg(root().join("deploy/demo")).args(["--proctor", env!("CARGO_BIN_EXE_proctor"), "--only", "memcached"]);
    let output = command.env("TMPDIR", tmp.path()).output().expect("it runs");
    let text = said(&output);
    assert!(output.status.success(), "{text}");
    for told in [
        "All 14 targets are well.",
        "FIRST LOOK: watching 14, 14 well, 0 not",
        "FIRING: MemcachedDown on cache",
        "REPAIRED and RESOLVED: MemcachedDown on cache",
        "memcached died",
    ] {
        assert!(text.contains(told), "{told}:\n{text}");
    }
    assert_eq!(std::fs::read_dir(tmp.path()).expect("is there").count(), 0, "its folder is gone");
    let left = Command::new("pgrep").arg("-f").arg(tmp.path()).output().expect("pgrep runs");
    assert_eq!(said(&left), "", "no process is left");
}
