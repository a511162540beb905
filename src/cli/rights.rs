//! What Proctor's user may look at, probe by probe, by the rights of files, sockets and `/proc` alone: nothing is
//! connected to. Inside the sandbox of the unit it says what the probes will see there.
//!
//! Paths are found by walking over all texts of a probe, so that a new kind cannot be forgotten here. What is not there at
//! all is no question of rights: the probe says that. Secrets that cannot be read are mistakes of the configuration.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, access};
use rustix::io::Errno;

use super::render::{SEE_PROCESSES, walk};
use crate::client::docker::SOCKET;
use crate::client::process::{own_user, remedy};
use crate::config::Config;
use crate::model::Sight;
use crate::model::yaml::{Node, Value};

/// The most files that one pattern is followed to.
const MAX_FILES: usize = 1000;
/// The bus of this host.
const BUS: &str = "/run/dbus/system_bus_socket";
/// Keys whose texts begin with a slash and are not looked at: a path of a URL, mount points of which only the size is asked.
const NO_FILE: [&str; 3] = ["path", "disks", "mounts"];

/// What a probe may not look at.
struct Denied {
    missing: String,
    remedy: String,
    /// Whether nothing of the probe is left without it.
    all: bool,
}

/// Says what each probe may look at, a line for each that may not see all; `text` is the file of the configuration.
pub(super) fn describe(config: &Config, text: &Node) -> Vec<String> {
    if rustix::process::geteuid().is_root() {
        return vec!["As root everything may be looked at; as Proctor's own user: runuser -u proctor -- proctor config check".to_owned()];
    }
    let (mut full, mut others) = (Vec::new(), Vec::new());
    for (name, probe) in &config.probes.0 {
        let entry = below(text, "probes").and_then(|probes| below(probes, &name.value));
        match probe.kinds().first().zip(entry).map_or(Sight::Full, |(kind, entry)| sight(kind, entry)) {
            Sight::Full => full.push(name.value.as_str()),
            Sight::Partial { missing, remedy } => others.push(format!("partial: {} (missing: {missing}, run: {remedy})", name.value)),
            Sight::Blind { missing, remedy } => others.push(format!("blind: {} (missing: {missing}, run: {remedy})", name.value)),
        }
    }
    if !full.is_empty() {
        others.insert(0, format!("full: {}", full.join(", ")));
    }
    if !others.is_empty() {
        others.insert(0, format!("What {} may look at (nothing was connected to):", own_user()));
    }
    others
}

fn below<'a>(node: &'a Node, key: &str) -> Option<&'a Node> {
    match &node.value {
        Value::Mapping(entries) => entries.iter().find(|(name, _)| name.text == key).map(|(_, node)| node),
        _ => None,
    }
}

/// Looks at what one probe names, and at what its kind needs besides.
fn sight(kind: &str, entry: &Node) -> Sight {
    let mut denied = Vec::new();
    let mut readable = 0;
    walk(entry, "", &mut |key, text| {
        let socket = text.strip_prefix("unix:").map(|rest| rest.trim_start_matches("path=").trim_start_matches("//"));
        let path = socket.unwrap_or(text);
        if !path.starts_with('/') || key.ends_with("_file") && key != "pid_file" || NO_FILE.contains(&key) {
            return;
        }
        match (socket, key) {
            (Some(path), _) => denied.extend(to_open(Path::new(path), "let its group have Proctor's user")),
            // The first word is the program, the others are its own.
            (None, "argv") => denied.extend(program(Path::new(path))),
            (None, _) => {
                let (found, closed) = files(path, kind);
                readable += found;
                denied.extend(closed);
            }
        }
    });
    match kind {
        "docker"
            if below(entry, kind).is_none_or(|docker| below(docker, "engine").is_none()) && std::env::var_os("DOCKER_HOST").is_none() =>
        {
            denied.extend(to_open(
                Path::new(SOCKET),
                &format!("usermod -aG docker {} (as good as root), or see docs/probes/docker.md", own_user()),
            ));
        }
        "systemd" if below(entry, kind).is_none_or(|systemd| below(systemd, "bus").is_none()) => {
            denied.extend(to_open(Path::new(BUS), "chmod 666"));
        }
        _ => {}
    }
    if SEE_PROCESSES.contains(&kind) && others_hidden() {
        let remedy = "proctor render systemd (it sets ProtectProc=default), and mount /proc without hidepid".to_owned();
        denied.push(Denied { missing: "processes of other users".to_owned(), remedy, all: kind == "code" });
    }
    if denied.is_empty() {
        return Sight::Full;
    }
    // A probe of files alone is blind where none of them is left.
    let all = denied.iter().any(|of| of.all) || matches!(kind, "file" | "beat") && readable == 0;
    let join = |of: fn(&Denied) -> &str| {
        let mut parts: Vec<&str> = denied.iter().map(of).collect();
        parts.dedup();
        parts.join("; ")
    };
    let (missing, remedy) = (join(|of| &of.missing), join(|of| &of.remedy));
    if all { Sight::Blind { missing, remedy } } else { Sight::Partial { missing, remedy } }
}

/// Returns what stands in the way of connecting to a socket.
fn to_open(path: &Path, remedy: &str) -> Option<Denied> {
    let missing = || format!("{}: may not be opened", path.display());
    (access(path, Access::WRITE_OK) == Err(Errno::ACCESS)).then(|| Denied { missing: missing(), remedy: remedy.to_owned(), all: true })
}

/// Returns what stands in the way of running a program.
fn program(path: &Path) -> Option<Denied> {
    let missing = || format!("{}: may not be run", path.display());
    let remedy = || format!("chmod a+rx {}", path.display());
    (access(path, Access::EXEC_OK) == Err(Errno::ACCESS)).then(|| Denied { missing: missing(), remedy: remedy(), all: true })
}

/// Returns how many files of a pattern may be read, and those that may not.
fn files(pattern: &str, kind: &str) -> (usize, Vec<Denied>) {
    let closed =
        |path: &Path| Denied { missing: format!("{}: may not be read", path.display()), remedy: remedy(path), all: kind == "code" };
    let (mut readable, mut denied) = (0, Vec::new());
    let found: Vec<Result<PathBuf, PathBuf>> = match glob::glob(pattern).ok().filter(|_| pattern.contains(['*', '?', '['])) {
        Some(paths) => paths
            .take(MAX_FILES)
            .filter_map(|path| match path {
                Ok(path) => Some(Ok(path)),
                Err(error) => (error.error().kind() == ErrorKind::PermissionDenied).then(|| Err(error.path().to_owned())),
            })
            .collect(),
        None => vec![Ok(PathBuf::from(pattern))],
    };
    for path in found {
        match path {
            Ok(path) => {
                let wanted = match kind {
                    // Of these only names, times and sizes are asked.
                    "file" => Access::EXISTS,
                    _ if path.is_dir() => Access::READ_OK | Access::EXEC_OK,
                    _ => Access::READ_OK,
                };
                match access(&path, wanted) {
                    Err(Errno::ACCESS) => denied.push(closed(&path)),
                    Ok(()) => readable += 1,
                    Err(_) => {}
                }
            }
            Err(folder) => denied.push(closed(&folder)),
        }
    }
    denied.truncate(3);
    (readable, denied)
}

/// Returns whether `/proc` hides processes of others: the first one, which is there as long as the host is.
fn others_hidden() -> bool {
    std::fs::read("/proc/1/stat").is_err()
}
