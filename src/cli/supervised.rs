//! What systemd is told of `serve`: ready, reloading, stopping, one sentence, and that the process is alive.
//!
//! Source: sd_notify(3). Outside systemd `NOTIFY_SOCKET` is not set and nothing is sent.

use std::sync::Arc;
use std::time::Duration;

use sd_notify::NotifyState;

use crate::app::App;

/// How often the sentence is looked at; it is sent when it changed.
const STATUS_EVERY: Duration = Duration::from_secs(5);

/// Tells systemd, where it listens.
pub(super) fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "systemd was not told");
    }
}

/// Tells it that Proctor is ready, the first time or again.
pub(super) fn tell_ready(app: &App) {
    tell(&[NotifyState::Ready, NotifyState::Status(&app.status_line())]);
}

/// Tells it that a reload begins; `Type=notify-reload` wants the moment with it.
pub(super) fn tell_reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(moment) => tell(&[NotifyState::Reloading, moment]),
        Err(_) => tell(&[NotifyState::Reloading]),
    }
}

/// Feeds the watchdog twice within its time while Proctor is alive, and keeps the sentence true. Where Proctor is not
/// alive the watchdog is not fed: systemd then starts it anew.
pub(super) async fn keep_telling(app: Arc<App>) {
    let watchdog = sd_notify::watchdog_enabled().filter(|limit| !limit.is_zero());
    let mut tick = tokio::time::interval(watchdog.map_or(STATUS_EVERY, |limit| (limit / 2).min(STATUS_EVERY)));
    let (mut told, mut starving) = (String::new(), false);
    loop {
        tick.tick().await;
        let alive = app.alive();
        if alive.is_ok() && watchdog.is_some() {
            tell(&[NotifyState::Watchdog]);
        }
        match &alive {
            Ok(()) if starving => tracing::info!("Proctor does its work again"),
            Err(why) if !starving => {
                let then = watchdog.map_or("", |_| "; its watchdog is no longer fed: systemd starts it anew");
                tracing::error!("Proctor does not do its work: {why}{then}");
            }
            _ => {}
        }
        starving = alive.is_err();
        let line = alive.map_or_else(|why| format!("Does not do its work: {why}"), |()| app.status_line());
        if line != told {
            tell(&[NotifyState::Status(&line)]);
            told = line;
        }
    }
}
