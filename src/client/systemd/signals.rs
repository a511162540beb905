//! What systemd says of its own accord: jobs, and properties of units.
//!
//! Signals come in the order in which things happened (systemd sends a job before what the job does to the unit, and of a
//! unit the properties of its kind before those that all units have), so that whoever listens can tell a stop that was
//! ordered from one that was not.

use futures_util::StreamExt;
use zbus::message::Type;
use zbus::{Connection, MessageStream, OwnedObjectPath};

use super::unit::{Properties, UNITS, name_of};
use super::{BUS_NAME, MANAGER, PATH, PROPERTIES, SERVICE, UNIT};

/// Signals that may wait to be read; those of every unit are among them, of a few KiB each.
const MAX_SIGNALS: usize = 256;

/// Something that systemd said.
#[derive(Clone, Debug)]
pub enum Signal {
    /// A job was queued.
    JobNew {
        /// Its number.
        id: u32,
        /// For which unit.
        unit: String,
    },
    /// A job is over.
    JobRemoved {
        /// Its number.
        id: u32,
        /// Its object.
        path: String,
        /// For which unit.
        unit: String,
        /// `done`, `failed`, `canceled`, `timeout`, `dependency`, `skipped`.
        result: String,
    },
    /// A unit is no longer in systemd's memory.
    Forgotten(String),
    /// Properties of a unit changed.
    Unit {
        /// Which unit.
        name: String,
        /// How it is now, as far as was said.
        change: UnitChange,
    },
}

/// What a signal said of a unit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UnitChange {
    /// As in [`super::UnitState`], with the finer state.
    pub state: Option<(String, String)>,
    /// Differs for each start.
    pub invocation: Option<String>,
    /// How the service last ended.
    pub result: Option<String>,
    /// The exit code or signal of its last end.
    pub exit_status: Option<i32>,
    /// How often systemd restarted it by itself.
    pub restarts: Option<u32>,
}

/// The signals of systemd, over a connection of their own.
#[derive(Debug)]
pub struct Signals(MessageStream);

impl Signals {
    pub(super) async fn listen(mut connection: Connection) -> Result<Self, zbus::Error> {
        connection.set_max_queued(MAX_SIGNALS.try_into().unwrap_or(std::num::NonZeroUsize::MIN));
        let stream = MessageStream::from(&connection);
        let units = UNITS.trim_end_matches('/');
        for rule in [
            format!("type='signal',sender='{BUS_NAME}',path='{PATH}',interface='{MANAGER}'"),
            format!("type='signal',sender='{BUS_NAME}',path_namespace='{units}',interface='{PROPERTIES}'"),
        ] {
            let bus = "org.freedesktop.DBus";
            connection.call_method(Some(bus), "/org/freedesktop/DBus", Some(bus), "AddMatch", &rule).await?;
        }
        // systemd sends signals only while somebody has subscribed.
        connection.call_method(Some(BUS_NAME), PATH, Some(MANAGER), "Subscribe", &()).await?;
        Ok(Self(stream))
    }

    /// Returns the next one; nothing when the bus has gone.
    pub async fn next(&mut self) -> Option<Signal> {
        loop {
            let message = self.0.next().await?.ok()?;
            if message.message_type() == Type::Signal
                && let Some(signal) = read(&message)
            {
                return Some(signal);
            }
        }
    }
}

fn read(message: &zbus::Message) -> Option<Signal> {
    let header = message.header();
    let body = message.body();
    match header.member()?.as_str() {
        "JobNew" => {
            let (id, _, unit): (u32, OwnedObjectPath, String) = body.deserialize().ok()?;
            Some(Signal::JobNew { id, unit })
        }
        "JobRemoved" => {
            let (id, path, unit, result): (u32, OwnedObjectPath, String, String) = body.deserialize().ok()?;
            Some(Signal::JobRemoved { id, path: path.as_str().to_owned(), unit, result })
        }
        "UnitRemoved" => {
            let (unit, _): (String, OwnedObjectPath) = body.deserialize().ok()?;
            Some(Signal::Forgotten(unit))
        }
        "PropertiesChanged" => {
            let name = name_of(header.path()?.as_str())?;
            let (interface, all, _): (String, Properties, Vec<String>) = body.deserialize().ok()?;
            let change = match interface.as_str() {
                UNIT => {
                    let state = all.get::<&str>("ActiveState").map(|_| (all.text("ActiveState"), all.text("SubState")));
                    UnitChange { state, invocation: Some(all.invocation()).filter(|id| !id.is_empty()), ..UnitChange::default() }
                }
                SERVICE => UnitChange {
                    result: all.get::<&str>("Result").map(str::to_owned),
                    exit_status: all.get("ExecMainStatus"),
                    restarts: all.get("NRestarts"),
                    ..UnitChange::default()
                },
                _ => return None,
            };
            Some(Signal::Unit { name, change })
        }
        _ => None,
    }
}
