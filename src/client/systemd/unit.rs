//! What is known of one unit, and how its name is written.

use std::collections::HashMap;
use std::fmt;

use serde::Deserialize;
use zbus::{OwnedVariant, Structure, Type, Variant};

use crate::model::{Problems, Timestamp, decode, yaml::Node};
use crate::tasks;

/// Where the units' objects lie.
pub(super) const UNITS: &str = "/org/freedesktop/systemd1/unit/";

/// Says whether a text may be the name of a unit, with its ending: systemd allows 255 of `[a-zA-Z0-9:_.\\@-]`.
pub fn is_unit(text: &str) -> bool {
    const ENDINGS: [&str; 6] = ["service", "socket", "timer", "path", "target", "mount"];
    let Some((name, ending)) = text.rsplit_once('.') else { return false };
    let inner = |c: char| c.is_ascii_alphanumeric() || matches!(c, ':' | '-' | '_' | '.' | '\\' | '@');
    // An option would begin with '-', a template without an instance is no unit.
    let whole = !name.is_empty() && !name.starts_with(['-', '.', '@']) && !name.ends_with('@');
    text.len() <= 255 && whole && name.chars().all(inner) && ENDINGS.contains(&ending)
}

/// The name of a unit, with its ending.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnitName(pub String);

impl decode::Decode for UnitName {
    const EXPECTED: &'static str = "the whole name of a unit, such as gunicorn.service or celery@batch.service";
    fn decode(node: &Node, problems: &mut Problems) -> Option<Self> {
        let name = String::decode(node, &mut Problems::default()).filter(|text| is_unit(text));
        if name.is_none() {
            decode::mismatch(node, Self::EXPECTED, problems);
        }
        name.map(Self)
    }
}

/// Returns the object path of a unit: what is neither letter nor digit is written as `_` and two digits (sd_bus_path_encode).
pub(super) fn path_of(name: &str) -> String {
    let mut path = UNITS.to_owned();
    for (at, byte) in name.bytes().enumerate() {
        let plain = byte.is_ascii_alphabetic() || (at > 0 && byte.is_ascii_digit());
        if plain { path.push(char::from(byte)) } else { path.push_str(&format!("_{byte:02x}")) }
    }
    path
}

/// Returns the name of the unit of an object path.
pub(super) fn name_of(path: &str) -> Option<String> {
    let mut parts = path.strip_prefix(UNITS)?.split('_');
    let mut name = parts.next()?.to_owned();
    for part in parts {
        let byte = u8::from_str_radix(part.get(..2)?, 16).ok().filter(u8::is_ascii)?;
        name.push(char::from(byte));
        name.push_str(part.get(2..)?);
    }
    Some(name)
}

/// What is known of a unit. Texts that systemd does not give are empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UnitState {
    /// Its own name: that asked for may be an alias.
    pub id: String,
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
    /// When systemd starts the service again by itself: `no`, `always`, `on-failure`, …
    pub restart: String,
    /// How often systemd restarted it by itself.
    pub restarts: u32,
    /// The exit code or signal of its last end.
    pub exit_status: i32,
    /// What the service says of itself.
    pub status_text: String,
    /// The folder that the service runs in.
    pub folder: String,
    /// Whether its file has changed since systemd read it.
    pub needs_reload: bool,
    /// When it last became active.
    pub active_since: Option<Timestamp>,
    /// When it last became inactive.
    pub inactive_since: Option<Timestamp>,
    /// When it last ceased to be inactive.
    pub started: Option<Timestamp>,
    /// Processes and threads of its control group, and the most that it may have.
    pub tasks: (Option<u64>, Option<u64>),
    /// Whether a job for it is waiting or running.
    pub has_job: bool,
    /// What a `.timer` says besides.
    pub timer: Option<Timer>,
    /// What a `.socket` says besides: connections accepted, refused, and open now.
    pub socket: Option<[u32; 3]>,
}

/// When a timer fires.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timer {
    /// What it starts.
    pub unit: String,
    /// When it last fired.
    pub last: Option<Timestamp>,
    /// When it will fire, as far as that is known now.
    pub next: Option<Timestamp>,
}

impl UnitState {
    pub(super) fn of(all: &Properties) -> Self {
        let count = |name: &str| all.get::<u64>(name).filter(|count| *count != u64::MAX);
        Self {
            id: all.get::<&str>("Id").unwrap_or_default().to_owned(),
            active: all.text("ActiveState"),
            sub: all.text("SubState"),
            load: all.text("LoadState"),
            invocation: all.invocation(),
            result: all.text("Result"),
            kind: all.text("Type"),
            restart: all.text("Restart"),
            restarts: all.get("NRestarts").unwrap_or(0),
            exit_status: all.get("ExecMainStatus").unwrap_or(0),
            status_text: all.text("StatusText"),
            folder: all.text("WorkingDirectory"),
            needs_reload: all.get("NeedDaemonReload").unwrap_or(false),
            active_since: all.moment("ActiveEnterTimestamp"),
            inactive_since: all.moment("InactiveEnterTimestamp"),
            started: all.moment("InactiveExitTimestamp"),
            tasks: (count("TasksCurrent"), count("TasksMax")),
            has_job: all
                .get::<Structure<'_>>("Job")
                .is_some_and(|job| job.fields().first().and_then(|id| u32::try_from(id).ok()).is_some_and(|id| id != 0)),
            timer: all.get::<u64>("NextElapseUSecRealtime").map(|at| Timer {
                unit: all.text("Unit"),
                last: all.moment("LastTriggerUSec"),
                next: [moment(at), all.get("NextElapseUSecMonotonic").and_then(since_boot)].into_iter().flatten().min(),
            }),
            socket: all.get("NAccepted").map(|accepted| {
                let count = |name: &str| all.get(name).unwrap_or(0);
                [accepted, count("NRefused"), count("NConnections")]
            }),
        }
    }
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

/// Converts systemd's microseconds since the epoch, of which 0 and the greatest number mean never.
pub(super) fn moment(micros: u64) -> Option<Timestamp> {
    i64::try_from(micros / 1000).ok().filter(|ms| *ms > 0 && micros != u64::MAX).map(Timestamp)
}

/// Converts microseconds since the boot.
fn since_boot(micros: u64) -> Option<Timestamp> {
    let after = moment(micros)?;
    #[expect(clippy::cast_possible_truncation, reason = "milliseconds since the boot")]
    let up = (procfs::Current::current().ok().map(|up: procfs::Uptime| up.uptime)? * 1000.0) as i64;
    Some(Timestamp(tasks::wall_now().0 - up + after.0))
}

/// Properties by name. One that is absent or of another type is as if it were empty: it differs between versions.
#[derive(Default, Deserialize, Type)]
pub(super) struct Properties(pub(super) HashMap<String, OwnedVariant>);

impl Properties {
    pub(super) fn get<'a, T: TryFrom<&'a Variant<'a>>>(&'a self, name: &str) -> Option<T> {
        let value: &Variant<'a> = self.0.get(name)?;
        T::try_from(value).ok()
    }

    /// Returns at most 200 characters.
    pub(super) fn text(&self, name: &str) -> String {
        self.get::<&str>(name).unwrap_or("").chars().take(200).collect()
    }

    pub(super) fn invocation(&self) -> String {
        let bytes = self.0.get("InvocationID").and_then(|value| Vec::<u8>::try_from(value.clone()).ok()).unwrap_or_default();
        bytes.iter().take(16).map(|byte| format!("{byte:02x}")).collect()
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

    #[test]
    fn a_path_leads_back_to_the_name_of_its_unit() {
        assert_eq!(path_of("2d@a_b-c.service"), "/org/freedesktop/systemd1/unit/_32d_40a_5fb_2dc_2eservice");
        for name in ["nginx.service", "celery@batch.service", "dev-disk\\x2d1.mount", "9.timer", "a_b.service"] {
            assert_eq!(name_of(&path_of(name)).as_deref(), Some(name));
        }
        for path in
            ["/org/freedesktop/systemd1/unit/a_", "/org/freedesktop/systemd1/unit/a_zz", "/org/freedesktop/systemd1/unit/a_ff", "/x"]
        {
            assert_eq!(name_of(path), None, "{path}");
        }
    }
}
