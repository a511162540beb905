//! memcached on a port of its own.

use std::path::Path;
use std::process::Command;

use super::process::{Process, program};

/// Starts memcached; its log goes to `folder`.
pub(crate) fn memcached(folder: &Path, port: u16) -> Option<Process> {
    let program = program("memcached")?;
    let mut command = Command::new(program);
    command.args(["-u", "nobody", "-l", "127.0.0.1", "-p"]).arg(port.to_string());
    Some(Process::start(&mut command, &folder.join("memcached.log")))
}
