//! Connecting, from the name to the open virtual host.

use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::time::Instant;

use super::driver::{CHANNELS, Driver, Haste, unexpected};
use super::link::Link;
use super::wire::{self, Arguments, Frame, FrameError, Id, Method, Value};
use super::{AmqpError, FRAME_MAX, Settings, Told};
use crate::client::net::{self, Endpoint, NetError, Phases, Stream};
use crate::model::Reason;

/// The heartbeat we ask for, unless the broker wants a shorter one.
const HEARTBEAT: Duration = Duration::from_secs(30);
/// The most frames of a handshake: five are needed.
const MAX_HANDSHAKE: usize = 32;

/// What is known of a connection since it was opened.
#[derive(Clone, Debug, Default)]
pub struct Handshake {
    /// Resolving, connecting, TLS.
    pub phases: Phases,
    /// From there until `connection.start`: long while the broker boots or is overloaded.
    pub start: Duration,
    /// Until the connection was open.
    pub open: Duration,
    /// The broker's product, such as `RabbitMQ`; at most 100 characters, as the next two.
    pub product: String,
    /// Its version.
    pub version: String,
    /// The name of its cluster.
    pub cluster: String,
}

/// Reads frames off a connection.
pub(super) struct Reading {
    pub(super) stream: ReadHalf<Stream>,
    incoming: BytesMut,
    /// When something last came.
    pub(super) heard: Instant,
    pub(super) endpoint: Endpoint,
}

/// How much is read at once: whole frames, and several small messages.
const READ: usize = 2 * FRAME_MAX as usize;

impl Reading {
    /// Returns the next frame; nothing is lost if it is dropped meanwhile.
    pub(super) async fn frame(&mut self, during: &'static str) -> Result<Frame, AmqpError> {
        loop {
            if let Some(frame) = self.take()? {
                return Ok(frame);
            }
            self.fill(during).await?;
        }
    }

    /// Returns the next frame if it is here.
    pub(super) fn take(&mut self) -> Result<Option<Frame>, AmqpError> {
        wire::take_frame(&mut self.incoming).map_err(|error| match error {
            FrameError::TooLarge => NetError::TooLarge { limit: FRAME_MAX as usize }.into(),
            FrameError::Protocol(found) => AmqpError::Protocol(found),
        })
    }

    /// Waits for more; nothing is lost if it is dropped meanwhile.
    pub(super) async fn fill(&mut self, during: &'static str) -> Result<(), AmqpError> {
        self.incoming.reserve(READ);
        match self.stream.read_buf(&mut self.incoming).await {
            Ok(0) => return Err(AmqpError::Eof { during }),
            Ok(_) => self.heard = Instant::now(),
            Err(error) => return Err(NetError::Io(error).into()),
        }
        Ok(())
    }
}

/// Connects and opens the virtual host.
pub(super) async fn connect(settings: &Settings, name: &str, told: Told<'_>) -> Result<(Link, Driver), AmqpError> {
    let endpoint = &settings.endpoint;
    let password = settings.password()?;
    let mut phases = Phases::default();
    told(Reason::Resolve, format!("looking up the name of {endpoint}"));
    let addresses = net::lookup(endpoint, &mut phases).await?;
    told(Reason::ConnectTimeout, format!("connecting to {endpoint}"));
    let mut stream = net::connect_to(endpoint, &addresses, &mut phases).await?;
    if let (Some(trust), Endpoint::Tcp { host, .. }) = (&settings.tls, endpoint) {
        told(Reason::Tls, format!("{endpoint}: {phases}, waiting for the TLS handshake"));
        stream = net::tls(stream, host, trust, &mut phases).await?.0;
    }
    let begin = Instant::now();
    let (stream, mut writer) = tokio::io::split(stream);
    let mut reading = Reading { stream, incoming: BytesMut::new(), heard: begin, endpoint: endpoint.clone() };
    let mut waiting = |what: &str, hint: &str| told(Reason::AnswerTimeout, format!("{endpoint}: {phases}, waiting for {what}{hint}"));
    waiting("connection.start", ": the broker is still starting, overloaded or frozen");
    let mut handshake = Handshake { phases, ..Handshake::default() };
    let write = |error| AmqpError::from(NetError::Io(error));
    writer.write_all(b"AMQP\0\0\x09\x01").await.map_err(write)?;
    let Method::Start { properties, mechanisms } = reading.expect(&mut writer, "connection.start", wire::START).await? else {
        return Err(unexpected("no connection.start"));
    };
    handshake.start = begin.elapsed();
    if !mechanisms.split(' ').any(|mechanism| mechanism == "PLAIN") {
        return Err(AmqpError::Closed { during: "connection.start", code: 403, text: "the broker does not offer PLAIN".to_owned() });
    }
    let text = |key: &str| match properties.iter().find(|(name, _)| name == key) {
        Some((_, Value::Text(text))) => text.chars().filter(|c| !c.is_control()).take(100).collect(),
        _ => String::new(),
    };
    (handshake.product, handshake.version, handshake.cluster) = (text("product"), text("version"), text("cluster_name"));
    waiting("connection.tune", "");
    let login = [b"\0", settings.username.as_bytes(), b"\0", password.expose().as_bytes()].concat();
    let start_ok = Arguments::of((10, 11)).table(&client_properties(name)).short("PLAIN").long(&login).short("en_US");
    writer.write_all(&start_ok.frame(0)).await.map_err(write)?;
    let Method::Tune { channel_max, frame_max, heartbeat } = reading.expect(&mut writer, "connection.tune", wire::TUNE).await? else {
        return Err(unexpected("no connection.tune"));
    };
    if frame_max != 0 && frame_max < FRAME_MAX {
        // The least that the specification allows is 4096; no broker offers less than we send.
        return Err(AmqpError::Protocol(format!(
            "expected a broker that takes frames of {FRAME_MAX} bytes, found one that takes {frame_max}"
        )));
    }
    let channel_max = if channel_max == 0 { CHANNELS } else { channel_max.min(CHANNELS) };
    let beat = match heartbeat {
        0 => HEARTBEAT,
        seconds => HEARTBEAT.min(Duration::from_secs(seconds.into())),
    };
    let tune_ok = Arguments::of((10, 31)).u16(channel_max).u32(FRAME_MAX).u16(u16::try_from(beat.as_secs()).unwrap_or(0));
    let open = Arguments::of((10, 40)).short(&settings.vhost).short("").u8(0);
    waiting("connection.open-ok", "");
    writer.write_all(&[tune_ok.frame(0), open.frame(0)].concat()).await.map_err(write)?;
    reading.expect(&mut writer, "connection.open", wire::OPEN_OK).await?;
    handshake.open = begin.elapsed();
    let haste = Arc::<Haste>::default();
    let (driver, commands, state) = Driver::new(reading, writer, channel_max, beat, haste.clone());
    Ok((Link::over(commands, state, haste, handshake), driver))
}

fn client_properties(name: &str) -> wire::Table {
    let abilities = ["authentication_failure_close", "connection.blocked", "consumer_cancel_notify", "publisher_confirms"];
    let abilities = abilities.iter().map(|name| ((*name).to_owned(), Value::Bool(true))).collect();
    vec![
        ("product".to_owned(), Value::from("Proctor")),
        ("version".to_owned(), Value::from(env!("CARGO_PKG_VERSION"))),
        ("connection_name".to_owned(), Value::from(name)),
        ("capabilities".to_owned(), Value::Table(abilities)),
    ]
}

impl Reading {
    /// Reads the next method of a handshake.
    async fn expect(&mut self, writer: &mut WriteHalf<Stream>, during: &'static str, wanted: Id) -> Result<Method, AmqpError> {
        for _ in 0..MAX_HANDSHAKE {
            match self.frame(during).await? {
                Frame::Method(0, _, Method::Close { code, text }) => {
                    // Without it, the broker warns of a client that just went. It is no loss if it does not come through.
                    drop(writer.write_all(&Arguments::of(wire::CLOSE_OK).frame(0)).await);
                    return Err(AmqpError::Closed { during, code, text });
                }
                Frame::Method(0, id, method) if id == wanted => return Ok(method),
                Frame::Heartbeat => {}
                _ => break,
            }
        }
        Err(AmqpError::Protocol(format!("expected the broker's answer at {during}, found another")))
    }
}
