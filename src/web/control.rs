//! The control socket: what changes something comes in here, and is carried out as what `super::change` takes.
//!
//! HTTP over a socket in the file system, one JSON command per request. The socket is 0660 and belongs to the group
//! `proctor-operators` where there is one; who asked (the peer's uid) goes into the log of what was done.

use std::io;
use std::net::IpAddr;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{DefaultBodyLimit, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Extension, Json, Router};
use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};

use super::listen;
use crate::metrics::Metrics;
use crate::probe::heartbeat::Report;
use crate::tasks::Tasks;

/// The group whose members may change something.
pub const OPERATORS: &str = "proctor-operators";
/// The largest command.
const MAX_COMMAND: usize = 64 * 1024;
/// The longest that a command may take.
const COMMAND_WITHIN: Duration = Duration::from_secs(60);

crate::config_struct! {
    /// The socket for what changes something.
    pub struct ControlConfig {
        /// Its path; the default is `control.sock` in `$RUNTIME_DIRECTORY`, else in `/run/proctor` where that exists, else beside the state.
        socket: Option<PathBuf>,
    }
}

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peer {
    /// A user of this host, over the control socket.
    Local {
        /// The user id, as the kernel says.
        uid: u32,
    },
    /// Who has shown a password over HTTP.
    Remote {
        /// Which of `basic_auth_users`.
        user: String,
        /// From where.
        from: IpAddr,
    },
}

/// What can be asked for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Command {
    /// Say whether its loops come round.
    Health {},
    /// Load the configuration and the rules anew, all or nothing.
    Reload {},
    /// Say nothing of some alerts for a while.
    SilenceAdd {
        /// Alertmanager's matchers, all of which must match.
        matchers: Vec<String>,
        /// For how long, in milliseconds.
        for_ms: u64,
        /// Why.
        comment: String,
    },
    /// List the silences that are pending or active.
    SilenceList {},
    /// End a silence now.
    SilenceExpire {
        /// Which.
        id: String,
    },
    /// Say and do nothing for a while.
    Hold {
        /// For how long, in milliseconds.
        for_ms: u64,
        /// Why.
        reason: String,
    },
    /// Say and do nothing while a command runs; to be renewed, else it ends.
    HoldRun {
        /// The command, for people.
        command: String,
    },
    /// The command still runs.
    HoldRenew {
        /// Which hold.
        id: String,
    },
    /// The command has ended, or the hold is taken back.
    HoldEnd {
        /// Which hold; all where none is named.
        id: Option<String>,
    },
    /// List the holds.
    HoldList {},
    /// List what is pending and firing.
    AlertList {},
    /// Show all that is known of some alerts.
    AlertShow {
        /// Which: all of these must match.
        matchers: Vec<String>,
    },
    /// Somebody takes care of what fires: it is not said again while it lasts.
    AlertAck {
        /// Which: all of these must match.
        matchers: Vec<String>,
        /// What to say to it.
        comment: String,
    },
    /// Say why an alert was or was not mailed, and was or was not repaired.
    Explain {
        /// Its name.
        alert: String,
        /// Which of that name, where there are several.
        matchers: Vec<String>,
    },
    /// List the actions and what they did lately.
    ActionList {},
    /// Stop all actions.
    ActionPause {},
    /// Let actions run again.
    ActionResume {},
    /// What a job reports of itself.
    Heartbeat {
        /// The name of the heartbeat.
        name: String,
        /// What it reports.
        report: Report,
    },
}

/// Returns a duration as a command takes it.
pub fn millis(length: Duration) -> u64 {
    u64::try_from(length.as_millis()).unwrap_or(u64::MAX)
}

/// What came of a command.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Reply {
    /// The id of what was made, if something was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// What was done, for people; several lines for a list.
    pub text: String,
}

impl Reply {
    /// A text without an id.
    pub fn text(text: impl Into<String>) -> Self {
        Self { id: None, text: text.into() }
    }
}

/// Carries a command out; an error is for the one who asked.
pub type Carry = Arc<dyn Fn(Command, Peer) -> BoxFuture<'static, Result<Reply, String>> + Send + Sync>;

/// Listens on the socket until the tasks are stopped.
///
/// # Errors
/// The folder or socket cannot be made, or another process listens on it.
pub async fn start(path: &Path, carry: Carry, metrics: Arc<Metrics>, tasks: &Tasks) -> io::Result<()> {
    remove_stale(path).await?;
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let listener = tokio::net::UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))?;
    // In a folder with setgid it has the folder's group already, and a hardened unit may change none.
    let given = path.parent().and_then(|folder| std::fs::metadata(folder).ok()).is_some_and(|folder| folder.mode() & 0o2000 != 0);
    if !given
        && let Some(gid) = group_id(OPERATORS)
        && let Err(error) = std::os::unix::fs::chown(path, None, Some(gid))
    {
        tracing::info!(%error, group = OPERATORS, "the control socket is for its owner alone: Proctor is not a member of the group");
    }
    let router = Router::new().route("/command", post(command)).layer(DefaultBodyLimit::max(MAX_COMMAND)).with_state(carry);
    let owned = path.to_owned();
    let served = listen::serve(listen::Unix(listener), router, metrics, tasks.clone());
    tasks.spawn("control socket", async move {
        served.await;
        if let Err(error) = std::fs::remove_file(&owned) {
            tracing::debug!(%error, "the control socket was gone already");
        }
    });
    Ok(())
}

/// Removes a socket that a killed process left behind; one that somebody listens on stays.
async fn remove_stale(path: &Path) -> io::Result<()> {
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(found) if !found.file_type().is_socket() => {
            Err(io::Error::new(io::ErrorKind::AlreadyExists, "there is a file that is no socket"))
        }
        Ok(_) if tokio::net::UnixStream::connect(path).await.is_ok() => {
            Err(io::Error::new(io::ErrorKind::AddrInUse, "another Proctor listens there"))
        }
        Ok(_) => std::fs::remove_file(path),
    }
}

/// Looks a group up in `/etc/group`; a group of a directory service is not seen.
fn group_id(name: &str) -> Option<u32> {
    let groups = std::fs::read_to_string("/etc/group").ok()?;
    groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(name)).then(|| fields.nth(1)?.parse().ok()).flatten()
    })
}

async fn command(State(carry): State<Carry>, Extension(peer): Extension<Peer>, Json(command): Json<Command>) -> Response {
    match carry_out(&carry, command, peer).await {
        Ok(reply) => Json(reply).into_response(),
        Err((status, why)) => (status, Json(Reply::text(why))).into_response(),
    }
}

/// Notes who asks for what in the log, and carries it out.
pub(super) async fn carry_out(carry: &Carry, command: Command, peer: Peer) -> Result<Reply, (StatusCode, String)> {
    match (&peer, &command) {
        // Every few seconds while a command runs.
        (Peer::Local { uid }, Command::HoldRenew { .. }) => tracing::debug!(uid, ?command, "asked over the control socket"),
        // What a job prints is not for the log.
        (Peer::Local { uid }, Command::Heartbeat { name, .. }) => tracing::debug!(uid, name, "a job reports over the control socket"),
        (Peer::Local { uid }, _) => tracing::info!(uid, ?command, "asked over the control socket"),
        (Peer::Remote { user, from }, _) => tracing::info!(user, %from, ?command, "asked over HTTP"),
    }
    match tokio::time::timeout(COMMAND_WITHIN, carry(command, peer)).await {
        Ok(Ok(reply)) => Ok(reply),
        Ok(Err(why)) => Err((StatusCode::UNPROCESSABLE_ENTITY, why)),
        Err(_) => Err((StatusCode::GATEWAY_TIMEOUT, "Proctor did not manage it within a minute".to_owned())),
    }
}
