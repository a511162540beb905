//! `proctor serve`: runs until it is told to stop; SIGHUP loads the configuration anew.

use std::error::Error;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

use super::{Exit, supervised};
use crate::app::{App, Loaded, Source};
use crate::remediate::Mode;

/// As many file descriptors are plenty: one per target, and some for the rest.
const MAX_DESCRIPTORS: u64 = 65_536;

pub(super) fn run(source: Source) -> Result<Exit, Box<dyn Error + Send + Sync>> {
    let filter = EnvFilter::try_from_env("PROCTOR_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let ansi = std::io::IsTerminal::is_terminal(&std::io::stderr());
    // A log that cannot be written (its disk is full, its reader gone) must not end what it is about: by default the line
    // about that would go to the same place, and panic.
    tracing_subscriber::fmt()
        .log_internal_errors(false)
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(ansi)
        .with_target(false)
        .init();
    raise_descriptors();
    super::block_on(serve(source))?
}

/// Takes as many file descriptors as are allowed: the soft limit is 1024 on most hosts, for the sake of old programs.
fn raise_descriptors() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum.map(|most| most.min(MAX_DESCRIPTORS)), ..limit };
    if raised.current > limit.current
        && let Err(error) = setrlimit(Resource::Nofile, raised)
    {
        tracing::debug!(%error, "the limit of file descriptors stays as it is");
    }
}

async fn serve(source: Source) -> Result<Exit, Box<dyn Error + Send + Sync>> {
    // Before anything is started: a signal that comes meanwhile is not lost.
    let (mut term, mut int, mut hup) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?, signal(SignalKind::hangup())?);
    let app = App::start(source).await?;
    say_what_is_watched(&app.loaded());
    if let Some(address) = app.web_address() {
        let scheme = if app.loaded().gate.speaks_tls() { "https" } else { "http" };
        tracing::info!("serving {scheme}://{address}/ and {scheme}://{address}/metrics");
    }
    supervised::tell_ready(&app);
    let telling = crate::tasks::Tasks::new();
    telling.spawn_until_stopped("systemd", supervised::keep_telling(app.clone()));
    loop {
        tokio::select! {
            _ = term.recv() => break,
            _ = int.recv() => break,
            _ = hup.recv() => {
                supervised::tell_reloading();
                // What is wrong with it was logged; the old configuration stays in force. A stop does not wait for it.
                let reloaded = tokio::select! {
                    reloaded = app.reload() => reloaded,
                    _ = term.recv() => break,
                    _ = int.recv() => break,
                };
                if reloaded.is_ok() {
                    say_what_is_watched(&app.loaded());
                }
                supervised::tell_ready(&app);
            }
        }
    }
    tracing::info!("stopping");
    // The watchdog is fed to the end: a stop may take as long as the watchdog waits.
    supervised::tell(&[NotifyState::Stopping]);
    let stuck = tokio::select! {
        stuck = app.stop() => stuck,
        _ = term.recv() => return Ok(told_twice()),
        _ = int.recv() => return Ok(told_twice()),
    };
    for task in &stuck {
        tracing::error!(task, "did not stop in time");
    }
    tracing::info!("stopped");
    Ok(if stuck.is_empty() { Exit::Well } else { Exit::Failed })
}

fn told_twice() -> Exit {
    tracing::warn!("told to stop a second time: nothing is waited for; what was under way is done again at the next start");
    Exit::Failed
}

fn say_what_is_watched(loaded: &Loaded) {
    if loaded.config.heartbeat_out.is_none() {
        tracing::warn!(
            "nobody will notice if this host dies: name a URL under heartbeat_out that raises the alarm when Proctor no longer calls it (healthchecks.io, Uptime Kuma and others give you one)"
        );
    }
    let Some(found) = &loaded.found else {
        let acting = loaded.config.actions.0.iter().filter(|(_, action)| action.mode == Mode::Act).count();
        let observing = loaded.config.actions.0.len() - acting;
        tracing::info!("watching {} probes; {acting} actions act, {observing} only say what they would do", loaded.config.probes.0.len());
        return;
    };
    tracing::info!("no configuration: looked at this host; it is watched by looking only, and nobody is mailed");
    for line in &found.watched {
        tracing::info!("watching {line}");
    }
    for line in found.left_out() {
        tracing::info!("not watched: {line}");
    }
    if found.watched.is_empty() {
        tracing::warn!(
            "nothing was found that is known here. Try: start memcached or a tunnel (ssh -L) and look again, or write /etc/proctor/proctor.yml (see deploy/proctor.example.yml) and name what to ask"
        );
    }
}
