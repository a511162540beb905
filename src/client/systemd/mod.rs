//! The few calls to systemd that Proctor makes, over the system bus.
//!
//! Connects when first needed and again after the bus was restarted; every call has a deadline (zbus has none of its
//! own). Nobody is ever asked for a password: the flag for interactive authorisation is not set. Source:
//! org.freedesktop.systemd1(5).

mod signals;
mod unit;

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use futures_util::StreamExt;
use tokio::sync::Mutex;
use tokio::time::timeout;
use zbus::{Connection, DynamicType, Message, OwnedObjectPath, OwnedVariant, connection};

pub use self::signals::{Signal, Signals, UnitChange};
use self::unit::{Properties, moment, path_of};
pub use self::unit::{Timer, UnitName, UnitState, is_unit};
use crate::model::duration::print;
use crate::model::{Reason, Timestamp, decode, problem::Problems, yaml::Node};

/// The limit of one call.
pub const CALL: Duration = Duration::from_secs(30);
/// The limit of a new connection. zbus reads the bus's first lines without a bound: the bus belongs to root.
const CONNECT: Duration = Duration::from_secs(5);
/// The most units whose start is looked at, and the most failed ones that are told.
const MAX_UNITS: usize = 300;
/// The most files of units that are looked at.
const MAX_FILES: usize = 1_000;
/// The most processes of a unit that are looked at, and the longest command line, in bytes.
const MAX_PROCESSES: (usize, usize) = (5_000, 4_096);

const BUS_NAME: &str = "org.freedesktop.systemd1";
const PATH: &str = "/org/freedesktop/systemd1";
const MANAGER: &str = "org.freedesktop.systemd1.Manager";
const UNIT: &str = "org.freedesktop.systemd1.Unit";
const SERVICE: &str = "org.freedesktop.systemd1.Service";
const PROPERTIES: &str = "org.freedesktop.DBus.Properties";

/// What went wrong between us and systemd.
#[derive(Debug, thiserror::Error)]
pub enum SystemdError {
    /// There is no bus, or it does not let us in.
    #[error("cannot connect to the system bus at {address}: is dbus running, and does systemd run this host?")]
    Connect {
        /// Where.
        address: String,
        /// Why.
        source: Box<zbus::Error>,
    },
    /// No answer.
    #[error("systemd did not answer {what} within {}", print(*limit))]
    Timeout {
        /// What was asked.
        what: String,
        /// The limit.
        limit: Duration,
    },
    /// polkit, or the bus itself, says no.
    #[error(
        "not allowed to {verb} {unit}: polkit has no rule that lets this user {verb} exactly this unit; \
         `proctor render polkit` writes it (docs/repair.md; action org.freedesktop.systemd1.manage-units, unit {unit}, verb {verb})"
    )]
    Denied {
        /// What was to be done.
        verb: Verb,
        /// To which unit.
        unit: String,
    },
    /// There is no such unit.
    #[error("systemd knows no unit {0}: `systemctl list-unit-files` shows which there are")]
    Missing(String),
    /// The unit is masked.
    #[error("{0} is masked: somebody has forbidden to start it; `systemctl unmask {0}` allows it again")]
    Masked(String),
    /// Anything else that a call failed at.
    #[error("systemd refused {what}")]
    Call {
        /// What was asked.
        what: String,
        /// What was said.
        source: Box<zbus::Error>,
    },
    /// The bus went away while a job was waited for: its outcome is not known.
    #[error("the system bus closed while {0} was waited for")]
    Closed(String),
}

impl SystemdError {
    /// Says whether it means: not allowed.
    pub fn is_denied(&self) -> bool {
        let Self::Call { source, .. } = self else { return matches!(self, Self::Denied { .. }) };
        name_of(source).is_some_and(|name| DENIED.contains(&name.as_str()))
    }
}

impl SystemdError {
    /// Returns which of the closed set of reasons it is.
    pub fn reason(&self) -> Reason {
        let source = match self {
            Self::Connect { source, .. } | Self::Call { source, .. } => source,
            Self::Timeout { .. } => return Reason::AnswerTimeout,
            Self::Denied { .. } => return Reason::Forbidden,
            Self::Missing(_) => return Reason::Missing,
            Self::Masked(_) => return Reason::Unavailable,
            Self::Closed(_) => return Reason::Eof,
        };
        match &**source {
            zbus::Error::InputOutput(error) | zbus::Error::Connection(error, _) => match error.kind() {
                std::io::ErrorKind::PermissionDenied => Reason::Forbidden,
                std::io::ErrorKind::NotFound | std::io::ErrorKind::ConnectionRefused => Reason::Refused,
                std::io::ErrorKind::UnexpectedEof | std::io::ErrorKind::BrokenPipe => Reason::Eof,
                std::io::ErrorKind::ConnectionReset => Reason::Reset,
                _ => Reason::Protocol,
            },
            zbus::Error::Handshake(text) if text.contains("EOF") => Reason::Eof,
            // The bus lets users in by their numbers.
            zbus::Error::Handshake(text) if text.contains("ejected") => Reason::Forbidden,
            zbus::Error::MethodError(..) | zbus::Error::FDO(_) if self.is_denied() => Reason::Forbidden,
            zbus::Error::MethodError(..) | zbus::Error::FDO(_) => Reason::Unavailable,
            _ => Reason::Protocol,
        }
    }
}

/// What can be done to a unit, in the words that polkit rules use too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// Stops it if it runs, and starts it.
    Restart,
    /// Starts it.
    Start,
    /// Asks it to read its configuration again.
    Reload,
    /// Forgets that it failed, and how often it was started.
    ResetFailed,
}

impl Verb {
    /// Returns the word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Restart => "restart",
            Self::Start => "start",
            Self::Reload => "reload",
            Self::ResetFailed => "reset-failed",
        }
    }

    const fn method(self) -> &'static str {
        match self {
            Self::Restart => "RestartUnit",
            Self::Start => "StartUnit",
            Self::Reload => "ReloadUnit",
            Self::ResetFailed => "ResetFailedUnit",
        }
    }
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl decode::Decode for Verb {
    const EXPECTED: &'static str = "restart, start, reload or reset-failed";
    fn decode(node: &Node, problems: &mut Problems) -> Option<Self> {
        let text = String::decode(node, &mut Problems::default());
        let verb =
            [Self::Restart, Self::Start, Self::Reload, Self::ResetFailed].into_iter().find(|verb| text.as_deref() == Some(verb.as_str()));
        if verb.is_none() {
            decode::mismatch(node, Self::EXPECTED, problems);
        }
        verb
    }
}

/// A unit as `ListUnits` gives it: the name first, its object path seventh.
type Listed = (String, String, String, String, String, String, OwnedObjectPath, u32, String, OwnedObjectPath);

/// systemd on the system bus.
#[derive(Debug)]
pub struct Systemd {
    address: Option<String>,
    connection: Mutex<Option<Connection>>,
}

impl Systemd {
    /// That of this host: `DBUS_SYSTEM_BUS_ADDRESS`, else `/run/dbus/system_bus_socket`.
    pub fn of_this_host() -> Self {
        Self { address: None, connection: Mutex::default() }
    }

    /// That behind an address such as `unix:path=/run/dbus/system_bus_socket`.
    pub fn at(address: impl Into<String>) -> Self {
        Self { address: Some(address.into()), connection: Mutex::default() }
    }

    async fn connect(&self) -> Result<Connection, SystemdError> {
        let mut kept = self.connection.lock().await;
        if let Some(connection) = kept.as_ref().filter(|connection| !connection.is_closed()) {
            return Ok(connection.clone());
        }
        let connection = self.connect_anew().await?;
        *kept = Some(connection.clone());
        Ok(connection)
    }

    async fn connect_anew(&self) -> Result<Connection, SystemdError> {
        let builder = self.address.as_deref().map_or_else(connection::Builder::system, connection::Builder::address);
        let build = timeout(CONNECT, builder.build())
            .await
            .map_err(|_| SystemdError::Timeout { what: "a new connection".into(), limit: CONNECT })?;
        build.map_err(|source| SystemdError::Connect {
            address: self
                .address
                .clone()
                .or_else(|| std::env::var("DBUS_SYSTEM_BUS_ADDRESS").ok())
                .unwrap_or_else(|| "its usual place".to_owned()),
            source: Box::new(source),
        })
    }

    async fn call<B>(&self, path: &str, interface: &str, method: &str, body: &B, what: &str) -> Result<Message, SystemdError>
    where
        B: serde::Serialize + DynamicType + Sync,
    {
        let connection = self.connect().await?;
        let call = connection.call_method(Some(BUS_NAME), path, Some(interface), method, body);
        let reply = timeout(CALL, call).await.map_err(|_| SystemdError::Timeout { what: what.to_owned(), limit: CALL })?;
        reply.map_err(|source| SystemdError::Call { what: what.to_owned(), source: Box::new(source) })
    }

    /// Returns what is known of a unit, by one call; one that does not exist has the load state `not-found`.
    ///
    /// # Errors
    /// [`SystemdError`].
    pub async fn unit(&self, name: &str) -> Result<UnitState, SystemdError> {
        let what = format!("for the state of {name}");
        // An empty interface stands for all of them, and systemd loads the unit that a path names.
        let reply = self.call(&path_of(name), PROPERTIES, "GetAll", &"", &what).await?;
        let body = reply.body();
        let all: Properties = body.deserialize().map_err(|source| SystemdError::Call { what, source: Box::new(source) })?;
        Ok(UnitState::of(&all))
    }

    /// Returns the command lines of the processes of a unit's control group, by process id. systemd reads them, so that
    /// other users' are seen too.
    ///
    /// # Errors
    /// [`SystemdError`].
    pub async fn processes(&self, name: &str) -> Result<Vec<(u32, String)>, SystemdError> {
        let what = format!("for the processes of {name}");
        let reply = self.call(PATH, MANAGER, "GetUnitProcesses", &name, &what).await?;
        let body = reply.body();
        let all: Vec<(String, u32, String)> = body.deserialize().map_err(|source| SystemdError::Call { what, source: Box::new(source) })?;
        let cut = |line: String| line.chars().take(MAX_PROCESSES.1).collect();
        Ok(all.into_iter().take(MAX_PROCESSES.0).map(|(_, pid, line)| (pid, cut(line))).collect())
    }

    /// Returns the names of the units that have failed.
    ///
    /// # Errors
    /// [`SystemdError`].
    pub async fn failed_units(&self) -> Result<Vec<String>, SystemdError> {
        let none: &[&str] = &[];
        let units = self.list(&["failed"], none, "for the failed units").await?;
        Ok(units.into_iter().map(|unit| unit.0).collect())
    }

    /// Returns the names of the services that are up.
    ///
    /// # Errors
    /// [`SystemdError`].
    pub async fn active_services(&self) -> Result<Vec<String>, SystemdError> {
        let units = self.list(&["active", "reloading"], &["*.service"], "for the active services").await?;
        Ok(units.into_iter().map(|unit| unit.0).collect())
    }

    /// Returns the files of the services and timers that are to be started with the host.
    ///
    /// # Errors
    /// [`SystemdError`].
    pub async fn enabled(&self) -> Result<Vec<PathBuf>, SystemdError> {
        let what = "for the units that are enabled";
        let states = ["enabled", "enabled-runtime"];
        let reply = self.call(PATH, MANAGER, "ListUnitFilesByPatterns", &(&states[..], &["*.service", "*.timer"][..]), what).await?;
        let body = reply.body();
        let files: Vec<(String, String)> =
            body.deserialize().map_err(|source| SystemdError::Call { what: what.into(), source: Box::new(source) })?;
        Ok(files.into_iter().take(MAX_FILES).map(|(path, _)| path.into()).collect())
    }

    /// Returns what a job does: `start`, `stop`, `restart`, `reload`, …
    ///
    /// # Errors
    /// [`SystemdError`]: a job that is over is not known any more.
    pub async fn job_type(&self, id: u32) -> Result<String, SystemdError> {
        let path = format!("{PATH}/job/{id}");
        self.text(&path, "org.freedesktop.systemd1.Job", "JobType", "for the type of a job").await
    }

    /// Begins to listen to what systemd says of its own accord, over a connection of its own.
    ///
    /// # Errors
    /// [`SystemdError`].
    pub async fn signals(&self) -> Result<Signals, SystemdError> {
        let connection = self.connect_anew().await?;
        let listen = timeout(CALL, Signals::listen(connection));
        let listening = listen.await.map_err(|_| SystemdError::Timeout { what: "for its signals".into(), limit: CALL })?;
        listening.map_err(|source| SystemdError::Call { what: "to send its signals".into(), source: Box::new(source) })
    }

    /// Returns how far the host is: `initializing`, `starting`, `running`, `degraded`, `maintenance`, `stopping`.
    ///
    /// # Errors
    /// [`SystemdError`].
    pub async fn system_state(&self) -> Result<String, SystemdError> {
        self.text(PATH, MANAGER, "SystemState", "for the state of the host").await
    }

    async fn text(&self, path: &str, interface: &str, property: &str, what: &str) -> Result<String, SystemdError> {
        let reply = self.call(path, PROPERTIES, "Get", &(interface, property), what).await?;
        let body = reply.body();
        let wrong = |source: zbus::Error| SystemdError::Call { what: what.into(), source: Box::new(source) };
        let value: OwnedVariant = body.deserialize().map_err(wrong)?;
        String::try_from(value).map_err(wrong)
    }

    /// Does something to a unit and waits for the end of the job, at most `limit`. Returns systemd's word for it: `done`,
    /// `failed`, `canceled`, `timeout`, `dependency`, `skipped`; `done` at once where there is no job.
    ///
    /// # Errors
    /// [`SystemdError`]; after a timeout systemd may still do it.
    pub async fn act(&self, verb: Verb, unit: &str, limit: Duration) -> Result<String, SystemdError> {
        let what = format!("to {verb} {unit}");
        let refused = |error: SystemdError| match error {
            error if error.is_denied() => SystemdError::Denied { verb, unit: unit.to_owned() },
            SystemdError::Call { source, what } => match name_of(&source).as_deref() {
                Some("org.freedesktop.systemd1.NoSuchUnit") => SystemdError::Missing(unit.to_owned()),
                Some("org.freedesktop.systemd1.UnitMasked") => SystemdError::Masked(unit.to_owned()),
                _ => SystemdError::Call { source, what },
            },
            error => error,
        };
        if verb == Verb::ResetFailed {
            self.call(PATH, MANAGER, verb.method(), &unit, &what).await.map_err(refused)?;
            return Ok("done".to_owned());
        }
        let wrong = |source: zbus::Error| SystemdError::Call { what: what.clone(), source: Box::new(source) };
        // Listening begins before the call: a job may be over before its reply is here.
        let mut signals = self.signals().await?;
        let reply = self.call(PATH, MANAGER, verb.method(), &(unit, "replace"), &what).await.map_err(refused)?;
        let body = reply.body();
        let job: OwnedObjectPath = body.deserialize().map_err(wrong)?;
        let ended = async {
            while let Some(signal) = signals.next().await {
                match signal {
                    Signal::JobRemoved { path, result, .. } if path == job.as_str() => return Ok(result),
                    _ => {}
                }
            }
            Err(SystemdError::Closed(format!("the job to {verb} {unit}")))
        };
        timeout(limit, ended).await.map_err(|_| SystemdError::Timeout { what: what.clone(), limit })?
    }

    async fn list(&self, states: &[&str], patterns: &[&str], what: &str) -> Result<Vec<Listed>, SystemdError> {
        let reply = self.call(PATH, MANAGER, "ListUnitsByPatterns", &(states, patterns), what).await?;
        let body = reply.body();
        body.deserialize().map_err(|source| SystemdError::Call { what: what.into(), source: Box::new(source) })
    }

    /// Returns, of all active services, name and moment of the start. Those of user sessions are left out: a login
    /// starts two.
    ///
    /// # Errors
    /// [`SystemdError`].
    pub async fn recent_starts(&self) -> Result<Vec<(String, Timestamp)>, SystemdError> {
        let units = self.list(&["active"], &["*.service"], "for the active services").await?;
        let of_session = |name: &str| name.starts_with("user@") || name.starts_with("user-runtime-dir@");
        let asked = units.into_iter().filter(|unit| !of_session(&unit.0)).take(MAX_UNITS).map(|unit| async move {
            let body = (UNIT, "ActiveEnterTimestamp");
            let reply = self.call(unit.6.as_str(), PROPERTIES, "Get", &body, "for the start of a unit").await.ok()?;
            let body = reply.body();
            let value: OwnedVariant = body.deserialize().ok()?;
            Some((unit.0, moment(u64::try_from(value).ok()?)?))
        });
        Ok(futures_util::stream::iter(asked).buffer_unordered(16).filter_map(std::future::ready).collect().await)
    }
}

/// The names of the errors that mean: not allowed.
const DENIED: [&str; 3] = [
    "org.freedesktop.DBus.Error.AccessDenied",
    "org.freedesktop.DBus.Error.InteractiveAuthorizationRequired",
    "org.freedesktop.DBus.Error.AuthFailed",
];

/// Returns the D-Bus name of an error that systemd answered with.
fn name_of(error: &zbus::Error) -> Option<String> {
    match error {
        zbus::Error::MethodError(name, ..) => Some(name.as_str().to_owned()),
        zbus::Error::FDO(error) => Some(zbus::DBusError::name(error.as_ref()).as_str().to_owned()),
        _ => None,
    }
}
