//! The few calls to systemd that Proctor makes, over the system bus.
//!
//! Connects when first needed and again after the bus was restarted; every call has a deadline (zbus has none of its
//! own). Nobody is ever asked for a password: the flag for interactive authorisation is not set. Source:
//! org.freedesktop.systemd1(5).

use std::collections::HashMap;
use std::fmt;
use std::num::NonZeroUsize;
use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt};
use tokio::sync::Mutex;
use tokio::time::timeout;
use zbus::{Connection, DynamicType, MatchRule, Message, MessageStream, OwnedObjectPath, OwnedVariant, Structure, Variant, connection};

use crate::model::duration::print;
use crate::model::{Timestamp, decode, problem::Problems, yaml::Node};

/// The limit of one call.
pub const CALL: Duration = Duration::from_secs(30);
/// Signals that may wait to be read: every unit's jobs are among them.
const MAX_SIGNALS: usize = 1024;
/// The most units whose start is looked at.
const MAX_UNITS: usize = 300;

const BUS_NAME: &str = "org.freedesktop.systemd1";
const PATH: &str = "/org/freedesktop/systemd1";
const MANAGER: &str = "org.freedesktop.systemd1.Manager";
const UNIT: &str = "org.freedesktop.systemd1.Unit";
const SERVICE: &str = "org.freedesktop.systemd1.Service";

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

/// Says whether a text may be the name of a unit, with its ending: systemd allows 255 of `[a-zA-Z0-9:_.\\@-]`.
pub fn is_unit(text: &str) -> bool {
    const ENDINGS: [&str; 6] = ["service", "socket", "timer", "path", "target", "mount"];
    let Some((name, ending)) = text.rsplit_once('.') else { return false };
    let inner = |c: char| c.is_ascii_alphanumeric() || matches!(c, ':' | '-' | '_' | '.' | '\\' | '@');
    // An option would begin with '-', a template without an instance is no unit.
    let whole = !name.is_empty() && !name.starts_with(['-', '.', '@']) && !name.ends_with('@');
    text.len() <= 255 && whole && name.chars().all(inner) && ENDINGS.contains(&ending)
}

/// What is known of a unit. Texts that systemd does not give are empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UnitState {
    /// `active`, `inactive`, `failed`, `activating`, `deactivating`, `reloading`.
    pub active: String,
    /// The finer state, such as `running`, `exited`, `auto-restart`.
    pub sub: String,
    /// `loaded`, `not-found`, `masked`, `error`, …
    pub load: String,
    /// Differs for each start; empty where it never was.
    pub invocation: String,
    /// How the service last ended: `success`, `exit-code`, `signal`, `oom-kill`, `start-limit-hit`, …
    pub result: String,
    /// `simple`, `notify`, `oneshot`, …
    pub kind: String,
    /// How often systemd restarted it by itself.
    pub restarts: u32,
    /// The exit code or signal of its last end.
    pub exit_status: i32,
    /// When it last became active.
    pub active_since: Option<Timestamp>,
    /// When it last became inactive.
    pub inactive_since: Option<Timestamp>,
    /// Whether a job for it is waiting or running.
    pub has_job: bool,
}

/// One line for people.
impl fmt::Display for UnitState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.active, self.sub)?;
        if !self.result.is_empty() && self.result != "success" {
            write!(f, ", result {}, exit status {}", self.result, self.exit_status)?;
        }
        match self.restarts {
            0 => Ok(()),
            n => write!(f, ", restarted {n} times by systemd"),
        }
    }
}

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
        let builder = self.address.as_deref().map_or_else(connection::Builder::system, connection::Builder::address);
        let build =
            timeout(CALL, builder.build()).await.map_err(|_| SystemdError::Timeout { what: "a new connection".into(), limit: CALL })?;
        let connection = build.map_err(|source| SystemdError::Connect {
            address: self
                .address
                .clone()
                .or_else(|| std::env::var("DBUS_SYSTEM_BUS_ADDRESS").ok())
                .unwrap_or_else(|| "its usual place".to_owned()),
            source: Box::new(source),
        })?;
        *kept = Some(connection.clone());
        Ok(connection)
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

    async fn properties(&self, path: &OwnedObjectPath, interface: &str) -> Result<Properties, SystemdError> {
        let what = format!("the properties of {}", path.as_str());
        let reply = self.call(path.as_str(), "org.freedesktop.DBus.Properties", "GetAll", &interface, &what).await?;
        let body = reply.body();
        body.deserialize().map(Properties).map_err(|source| SystemdError::Call { what, source: Box::new(source) })
    }

    /// Returns what is known of a unit; one that does not exist has the load state `not-found`.
    ///
    /// # Errors
    /// [`SystemdError`].
    pub async fn unit(&self, name: &str) -> Result<UnitState, SystemdError> {
        let what = format!("for the state of {name}");
        let reply = self.call(PATH, MANAGER, "LoadUnit", &name, &what).await?;
        let body = reply.body();
        let path: OwnedObjectPath = body.deserialize().map_err(|source| SystemdError::Call { what, source: Box::new(source) })?;
        let unit = self.properties(&path, UNIT).await?;
        // Only a .service has these.
        let service = self.properties(&path, SERVICE).await.unwrap_or_default();
        Ok(UnitState {
            active: unit.text("ActiveState"),
            sub: unit.text("SubState"),
            load: unit.text("LoadState"),
            invocation: unit.bytes("InvocationID").iter().map(|byte| format!("{byte:02x}")).collect(),
            result: service.text("Result"),
            kind: service.text("Type"),
            restarts: service.get("NRestarts").unwrap_or(0),
            exit_status: service.get("ExecMainStatus").unwrap_or(0),
            active_since: unit.moment("ActiveEnterTimestamp"),
            inactive_since: unit.moment("InactiveEnterTimestamp"),
            has_job: unit
                .get::<Structure<'_>>("Job")
                .is_some_and(|job| job.fields().first().and_then(|id| u32::try_from(id).ok()).is_some_and(|id| id != 0)),
        })
    }

    /// Returns how far the host is: `initializing`, `starting`, `running`, `degraded`, `maintenance`, `stopping`.
    ///
    /// # Errors
    /// [`SystemdError`].
    pub async fn system_state(&self) -> Result<String, SystemdError> {
        let what = "for the state of the host";
        let reply = self.call(PATH, "org.freedesktop.DBus.Properties", "Get", &(MANAGER, "SystemState"), what).await?;
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
            SystemdError::Call { source, .. } if name_of(&source).is_some_and(|name| DENIED.contains(&name.as_str())) => {
                SystemdError::Denied { verb, unit: unit.to_owned() }
            }
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
        let connection = self.connect().await?;
        let rule =
            MatchRule::builder().msg_type(zbus::message::Type::Signal).interface(MANAGER).member("JobRemoved").build().map_err(wrong)?;
        let listen = MessageStream::for_match_rule(rule, &connection, NonZeroUsize::new(MAX_SIGNALS));
        let mut removed =
            timeout(CALL, listen).await.map_err(|_| SystemdError::Timeout { what: what.clone(), limit: CALL })?.map_err(wrong)?;
        // systemd sends signals only while somebody has subscribed; doing so twice is an error that means nothing.
        if let Err(error @ (SystemdError::Timeout { .. } | SystemdError::Connect { .. })) =
            self.call(PATH, MANAGER, "Subscribe", &(), "for its signals").await
        {
            return Err(error);
        }
        let reply = self.call(PATH, MANAGER, verb.method(), &(unit, "replace"), &what).await.map_err(refused)?;
        let body = reply.body();
        let job: OwnedObjectPath = body.deserialize().map_err(wrong)?;
        let ended = async {
            while let Some(signal) = removed.try_next().await.map_err(wrong)? {
                let body = signal.body();
                match body.deserialize::<(u32, OwnedObjectPath, String, String)>() {
                    Ok((_, path, _, result)) if path == job => return Ok(result),
                    _ => {}
                }
            }
            Err(SystemdError::Closed(format!("the job to {verb} {unit}")))
        };
        timeout(limit, ended).await.map_err(|_| SystemdError::Timeout { what: what.clone(), limit })?
    }

    /// Returns, of all active services, name and moment of the start. Those of user sessions are left out: a login
    /// starts two.
    ///
    /// # Errors
    /// [`SystemdError`].
    pub async fn recent_starts(&self) -> Result<Vec<(String, Timestamp)>, SystemdError> {
        type Listed = (String, String, String, String, String, String, OwnedObjectPath, u32, String, OwnedObjectPath);
        let what = "for the active services";
        let reply = self.call(PATH, MANAGER, "ListUnitsByPatterns", &(["active"].as_slice(), ["*.service"].as_slice()), what).await?;
        let body = reply.body();
        let units: Vec<Listed> = body.deserialize().map_err(|source| SystemdError::Call { what: what.into(), source: Box::new(source) })?;
        let of_session = |name: &str| name.starts_with("user@") || name.starts_with("user-runtime-dir@");
        let asked = units.into_iter().filter(|unit| !of_session(&unit.0)).take(MAX_UNITS).map(|unit| async move {
            let body = (UNIT, "ActiveEnterTimestamp");
            let reply =
                self.call(unit.6.as_str(), "org.freedesktop.DBus.Properties", "Get", &body, "for the start of a unit").await.ok()?;
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

/// Converts systemd's microseconds since the epoch, of which 0 means never.
fn moment(micros: u64) -> Option<Timestamp> {
    i64::try_from(micros / 1000).ok().filter(|ms| *ms > 0).map(Timestamp)
}

/// Properties by name. One that is absent or of another type is as if it were empty: it differs between versions.
#[derive(Default)]
struct Properties(HashMap<String, OwnedVariant>);

impl Properties {
    fn get<'a, T: TryFrom<&'a Variant<'a>>>(&'a self, name: &str) -> Option<T> {
        let value: &Variant<'a> = self.0.get(name)?;
        T::try_from(value).ok()
    }

    fn text(&self, name: &str) -> String {
        self.get::<&str>(name).unwrap_or("").chars().take(100).collect()
    }

    fn bytes(&self, name: &str) -> Vec<u8> {
        self.0.get(name).and_then(|value| Vec::<u8>::try_from(value.clone()).ok()).unwrap_or_default()
    }

    fn moment(&self, name: &str) -> Option<Timestamp> {
        moment(self.get(name)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unit_has_its_whole_name() {
        for name in ["nginx.service", "celery@batch.service", "a-b_c:d.timer", "dev-disk\\x2d1.mount"] {
            assert!(is_unit(name), "{name}");
        }
        for name in
            ["nginx", "", ".service", "-H.service", "celery@.service", "a b.service", "a/b.service", "x.slice", "*.service", "a\n.service"]
        {
            assert!(!is_unit(name), "{name:?}");
        }
    }
}
