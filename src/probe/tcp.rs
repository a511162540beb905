//! Asks a TCP port: connect, optionally send, optionally expect.

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::io::AsyncWriteExt;

use super::{Planned, Probe, Recorder, failure_at};
use crate::client::net::{self, Endpoint, Phases};
use crate::model::{Failure, Family, Reason};

/// The most bytes that are read while waiting for what is expected.
const MAX_ANSWER: usize = 16 * 1024;

static DURATION: Family = Family::gauge("probe_tcp_duration_seconds", "How long each phase of asking a TCP port took");

crate::config_struct! {
    /// Asks a TCP port: connect, optionally send, optionally expect.
    pub struct TcpConfig {
        /// Where: `host:port` or `unix:/path`.
        address: Endpoint,
        /// Text that is sent once connected.
        send: Option<String>,
        /// Regular expression that the answer must contain within 16 KiB.
        expect: Option<regex::Regex>,
    }
}

/// Builds the one target.
///
/// # Errors
/// None.
pub fn plan(config: &TcpConfig) -> Result<Vec<Planned>, String> {
    Ok(Planned::only(Tcp(config.clone())))
}

struct Tcp(TcpConfig);

impl Probe for Tcp {
    fn run<'a>(&'a self, rec: &'a mut Recorder) -> BoxFuture<'a, Result<(), Failure>> {
        async move {
            let TcpConfig { address, send, expect } = &self.0;
            let mut phases = Phases::default();
            let connected = rec.connect(address, &mut phases).await;
            for (phase, took) in [("resolve", phases.resolve), ("connect", phases.connect)] {
                if let Some(took) = took {
                    rec.set_with(&DURATION, &[("phase", phase)], took.as_secs_f64());
                }
            }
            let mut stream = connected?;
            if let Some(text) = send {
                stream.write_all(text.as_bytes()).await.map_err(|error| failure_at(address, &error.into()))?;
            }
            if let Some(pattern) = expect {
                let matches = |bytes: &[u8]| pattern.is_match(&String::from_utf8_lossy(bytes));
                let begin = tokio::time::Instant::now();
                let answer = net::read_until(&mut stream, MAX_ANSWER, matches).await;
                rec.set_with(&DURATION, &[("phase", "processing")], begin.elapsed().as_secs_f64());
                match answer {
                    Ok(_) => {}
                    Err(error @ (net::NetError::Eof { after: 1.. } | net::NetError::TooLarge { .. })) => {
                        return Err(Failure::new(Reason::Mismatch, format!("{address}: expected an answer that matches {pattern}, but {error}")));
                    }
                    Err(error) => return Err(failure_at(address, &error)),
                }
            }
            Ok(())
        }
        .boxed()
    }
}
