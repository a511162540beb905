//! What one run of one probe found out.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::{Sample, Target, Timestamp};

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $variant:ident = $text:literal),+ $(,)?) => {
        /// Why a probe failed: the closed set of `probe_failure_info{reason}`.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Reason { $($(#[doc = $doc])+ $variant),+ }

        impl Reason {
            /// Every reason, in the order of the documentation.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// Returns the label value.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text),+ }
            }

            /// Returns what it means, for people.
            pub const fn meaning(self) -> &'static str {
                match self { $(Self::$variant => concat!($($doc),+)),+ }
            }
        }
    };
}

reasons! {
    /// The name does not resolve.
    Resolve = "resolve",
    /// The port is closed.
    Refused = "refused",
    /// The connection is not accepted in time, or there is no way to the host.
    ConnectTimeout = "connect_timeout",
    /// Connected, but the answer does not come in time.
    AnswerTimeout = "answer_timeout",
    /// The other side closed before it had answered.
    Eof = "eof",
    /// The other side broke the connection off.
    Reset = "reset",
    /// The TLS handshake failed.
    Tls = "tls",
    /// The certificate is not valid for this name and now.
    Certificate = "certificate",
    /// The credentials are refused.
    Auth = "auth",
    /// Logged in or connected, but not allowed to do this.
    Forbidden = "forbidden",
    /// What is asked for does not exist.
    Missing = "missing",
    /// The answer is not of the expected protocol.
    Protocol = "protocol",
    /// The answer is well formed, but not the expected one.
    Mismatch = "mismatch",
    /// The answer is larger than its limit.
    TooLarge = "too_large",
    /// The service takes no writes now.
    Blocked = "blocked",
    /// The service is still starting.
    Starting = "starting",
    /// Nobody consumes the queue.
    NoConsumer = "no_consumer",
    /// The service answers, but its work makes no progress.
    Stalled = "stalled",
    /// Work waits longer than it should.
    Backlog = "backlog",
    /// The local end of the tunnel is closed.
    LocalRefused = "local_refused",
    /// The tunnel is up, but its far end is closed.
    RemoteRefused = "remote_refused",
    /// The tunnel is up, but its far end is silent.
    RemoteSilent = "remote_silent",
    /// The ssh process that holds the tunnel does not move.
    SshHung = "ssh_hung",
    /// Another process owns the port.
    WrongOwner = "wrong_owner",
    /// The service says that it cannot serve now.
    Unavailable = "unavailable",
    /// What should have happened by now did not.
    Overdue = "overdue",
    /// All of the service's capacity is in use.
    Saturated = "saturated",
    /// A defect of Proctor itself.
    Internal = "internal",
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A failed run: the reason is a label, the detail is for people and never a label.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Which of the closed set.
    pub reason: Reason,
    /// Where, what was expected, what was found: one line of at most [`Failure::MAX_DETAIL`] characters.
    pub detail: String,
}

impl Failure {
    /// The bound on a detail, in characters.
    pub const MAX_DETAIL: usize = 500;

    /// Builds a failure; control characters of the detail become spaces and a long one is cut, since it may hold what
    /// a hostile service said.
    pub fn new(reason: Reason, detail: impl AsRef<str>) -> Self {
        let clean = |c: char| {
            if c.is_control() || matches!(c, '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}') { ' ' } else { c }
        };
        let mut detail: String = detail.as_ref().chars().map(clean).take(Self::MAX_DETAIL + 1).collect();
        if detail.chars().count() > Self::MAX_DETAIL {
            detail = detail.chars().take(Self::MAX_DETAIL - 1).chain(['…']).collect();
        }
        Self { reason, detail }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.detail)
    }
}

/// How much of the service the probe was allowed to see (invariant 7).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Sight {
    /// All that the probe asks for.
    #[default]
    Full,
    /// Some is missing; the rest is judged.
    Partial {
        /// What could not be seen.
        missing: String,
        /// The one command or setting that opens it.
        remedy: String,
    },
    /// Nothing could be seen: neither red nor green.
    Blind {
        /// What could not be seen.
        missing: String,
        /// The one command or setting that opens it.
        remedy: String,
    },
}

/// What one run of one target found out.
#[derive(Clone, Debug)]
pub struct ProbeResult {
    /// Who was asked.
    pub target: Arc<Target>,
    /// When the run began.
    pub at: Timestamp,
    /// How long it took.
    pub duration: Duration,
    /// Whether the service works.
    pub outcome: Result<(), Failure>,
    /// What was measured, before a failure too.
    pub samples: Vec<Sample>,
    /// How much could be seen.
    pub sight: Sight,
    /// Lines worth keeping for the mail, such as a health check's last output; at most 20 of at most 200 characters.
    pub evidence: Vec<String>,
}

impl ProbeResult {
    /// Says whether the service works.
    pub fn is_success(&self) -> bool {
        self.outcome.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_detail_is_one_bounded_line_whatever_a_service_said() {
        let failure = Failure::new(Reason::Protocol, format!("a\r\nBcc: x\0\u{202e}{}", "y".repeat(2000)));
        assert!(!failure.detail.contains(['\r', '\n', '\0', '\u{202e}']));
        assert_eq!(failure.detail.chars().count(), Failure::MAX_DETAIL);
        assert!(failure.detail.ends_with('…'));
    }
}
