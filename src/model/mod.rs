//! Plain types that every room shares: no I/O, no clock, nothing that waits.

pub mod alert;
pub mod attempt;
pub mod decode;
pub mod duration;
pub mod labels;
pub mod problem;
pub mod result;
pub mod sample;
pub mod secret;
pub mod target;
pub mod text;
pub mod time;
pub mod yaml;

pub use alert::{Alert, AlertState};
pub use attempt::{Attempt, Outcome};
pub use labels::{Fingerprint, Labels, MatchOp, Matcher};
pub use problem::{Position, Problem, Problems};
pub use result::{Failure, ProbeResult, Reason, Sight};
pub use sample::{Family, Histogram, Kind, Observed, Sample};
pub use secret::Secret;
pub use target::Target;
pub use text::one_line;
pub use time::Timestamp;
