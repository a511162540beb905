//! The task that moves a connection: it takes questions, writes them, and hands out what comes.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::Poll;
use std::time::Duration;

use bytes::BytesMut;
use futures_util::FutureExt;
use tokio::io::{AsyncWriteExt, WriteHalf};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::AmqpError;
use super::handshake::Reading;
use super::link::{Declared, Message, Routed};
use super::wire::{self, Arguments, Frame, Id, Method, Properties};
use crate::client::net::{NetError, Stream};

/// The largest message that is taken, in bytes.
pub const MAX_BODY: usize = 1 << 20;
/// The most messages that wait for one consumer.
pub const MAX_MESSAGES: usize = 1000;
/// The most bytes of messages that wait for one consumer.
pub const MAX_QUEUED: usize = 8 << 20;
/// The most channels of one connection.
pub const CHANNELS: u16 = 64;
/// The most questions that wait for the answers of one connection.
pub const QUESTIONS: usize = 64;
/// No question waits longer, whatever its caller does.
pub const RPC_LIMIT: Duration = Duration::from_secs(60);

/// After messages that nobody waits for in haste ([`super::Consumer::several`]), the next are read together, as much
/// later: being woken for each costs far more than taking it.
pub const REST: Duration = Duration::from_millis(500);

/// How long who consumes may take to catch up, before more is read.
const CATCH_UP: Duration = Duration::from_millis(1);

/// How long a goodbye may take.
const FAREWELL: Duration = Duration::from_secs(2);
/// What is awaited when nothing is.
const STANDING: &str = "a standing connection";
/// The most bytes that wait to be written.
const MAX_OUTGOING: usize = 4 << 20;

/// What everybody sees of a connection.
#[derive(Default)]
pub(super) struct State {
    pub(super) blocked: Option<String>,
    pub(super) ended: Option<AmqpError>,
}

/// What a driver is told.
pub(super) enum Command {
    /// Opens a channel.
    Open(oneshot::Sender<Result<u16, AmqpError>>),
    /// Closes one; nobody waits.
    Close(u16),
    /// Asks something on a channel.
    Ask(Question),
}

/// What is asked on a channel.
pub(super) struct Question {
    pub(super) channel: u16,
    pub(super) frame: Vec<u8>,
    pub(super) expects: Expects,
    pub(super) what: String,
    pub(super) consumer: Option<(String, Sink)>,
    pub(super) reply: oneshot::Sender<Result<Answer, AmqpError>>,
}

/// What answers a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Expects {
    /// This method.
    Method(Id),
    /// The confirmation of what is published.
    Confirm,
}

/// What the broker answered.
pub(super) enum Answer {
    Done,
    Declared(Declared),
    Routed(Routed),
}

/// Where the messages of a consumer go.
pub(super) struct Sink {
    pub(super) messages: mpsc::Sender<Message>,
    pub(super) queued: Arc<AtomicUsize>,
    pub(super) missed: Arc<AtomicU64>,
}

/// How many wait in haste for a message.
#[derive(Default)]
pub(super) struct Haste {
    waiting: AtomicUsize,
    begun: Notify,
}

/// One of them, until dropped.
pub struct Hasty<'a>(&'a Haste);

impl Haste {
    /// Begins to wait: the driver rests no longer.
    pub(super) fn begin(&self) -> Hasty<'_> {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        self.begun.notify_one();
        Hasty(self)
    }
}

impl Drop for Hasty<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::SeqCst);
    }
}

/// What a driver does next with its socket.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Turn {
    /// Waits until something comes.
    Read,
    /// Has more already; first those who consume may take what they were given.
    Yield,
    /// Has more already, and who consumes is behind.
    Wait,
    /// Lets messages gather.
    Rest,
}

/// A question whose answer has not come.
struct Pending {
    channel: u16,
    expects: Expects,
    what: String,
    since: Instant,
    /// Gone where it was answered by ourselves: the broker's own answer is still to come, and is swallowed.
    reply: Option<Reply>,
}

enum Reply {
    Opened(oneshot::Sender<Result<u16, AmqpError>>),
    Answer(oneshot::Sender<Result<Answer, AmqpError>>),
}

impl Reply {
    fn fail(self, error: AmqpError) {
        // Nobody listens if the caller gave up.
        match self {
            Self::Opened(reply) => drop(reply.send(Err(error))),
            Self::Answer(reply) => drop(reply.send(Err(error))),
        }
    }

    fn poll_abandoned(&mut self, cx: &mut std::task::Context<'_>) -> Poll<()> {
        match self {
            Self::Opened(reply) => reply.poll_closed(cx),
            Self::Answer(reply) => reply.poll_closed(cx),
        }
    }
}

/// Content that is coming.
struct Content {
    /// The consumer; nobody for what came back.
    tag: Option<String>,
    /// Bytes of the body that are still to come; unknown before its header.
    left: Option<u64>,
    /// Whether it is too large to be kept: then it is read and left out.
    too_large: bool,
    message: Message,
}

impl Content {
    fn new(tag: Option<String>, exchange: String, key: String) -> Self {
        let message = Message { exchange, key, properties: Properties::default(), body: Vec::new() };
        Self { tag, left: None, too_large: false, message }
    }
}

#[derive(Default)]
struct Lane {
    consumers: BTreeMap<String, Sink>,
    content: Option<Content>,
    /// What the broker could not route since the last confirmation.
    nowhere: bool,
    /// We closed it, and the broker has not said so yet.
    closing: bool,
    /// The broker closed it, and its [`Channel`] has not been dropped yet: only then its number is free again.
    dead: bool,
}

/// The task's side of a connection.
pub(super) struct Driver {
    reading: Reading,
    writer: WriteHalf<Stream>,
    outgoing: BytesMut,
    orders: mpsc::Receiver<Command>,
    state: watch::Sender<State>,
    channels: BTreeMap<u16, Lane>,
    channel_max: u16,
    pending: VecDeque<Pending>,
    beat: Duration,
    haste: Arc<Haste>,
    /// Whether a message was handed on since the last turn.
    delivered: bool,
}

impl Driver {
    /// Takes a connection that is open.
    pub(super) fn new(
        reading: Reading,
        writer: WriteHalf<Stream>,
        channel_max: u16,
        beat: Duration,
        haste: Arc<Haste>,
    ) -> (Self, mpsc::Sender<Command>, watch::Receiver<State>) {
        let (commands, orders) = mpsc::channel(QUESTIONS);
        let (state, seen) = watch::channel(State::default());
        let driver = Self {
            reading,
            writer,
            outgoing: BytesMut::new(),
            orders,
            state,
            channels: BTreeMap::new(),
            channel_max,
            pending: VecDeque::new(),
            beat,
            haste,
            delivered: false,
        };
        (driver, commands, seen)
    }

    /// Moves the connection until it ends, everybody has let go of it, or Proctor stops.
    pub(super) async fn drive(mut self, stop: CancellationToken) {
        let mut tick = tokio::time::interval(self.beat / 2);
        let error = loop {
            let turn = match self.turn() {
                Ok(turn) => turn,
                Err(error) => break error,
            };
            if turn == Turn::Rest {
                let stream = self.reading.stream.unsplit(self.writer);
                match rest(stream, &mut self.orders, &self.haste, &stop).await {
                    Ok((stream, order)) => {
                        (self.reading.stream, self.writer) = tokio::io::split(stream);
                        if let Err(error) = order.map_or(Ok(()), |order| self.carry(order)) {
                            break error;
                        }
                        continue;
                    }
                    Err(error) => {
                        // Nobody waits for an answer while it rests, and without its socket there is no goodbye.
                        self.state.send_modify(|state| state.ended = Some(NetError::Io(error).into()));
                        return;
                    }
                }
            }
            let step = tokio::select! {
                filled = self.reading.fill(STANDING), if turn == Turn::Read => filled,
                () = tokio::task::yield_now(), if turn == Turn::Yield => Ok(()),
                () = tokio::time::sleep(CATCH_UP), if turn == Turn::Wait => Ok(()),
                written = self.writer.write_buf(&mut self.outgoing), if !self.outgoing.is_empty() => {
                    written.map(drop).map_err(|error| NetError::Io(error).into())
                }
                order = self.orders.recv() => match order {
                    Some(order) => self.carry(order),
                    None => Err(AmqpError::Ended),
                },
                _ = tick.tick() => self.beat(),
                what = abandoned(&mut self.pending) => Err(AmqpError::Hung(what)),
                () = stop.cancelled() => Err(AmqpError::Ended),
            };
            if let Err(error) = step {
                break error;
            }
        };
        tracing::debug!(endpoint = %self.reading.endpoint, %error, "an AMQP connection ended");
        self.state.send_modify(|state| state.ended = Some(error.clone()));
        for pending in self.pending.drain(..) {
            if let Some(reply) = pending.reply {
                reply.fail(error.clone());
            }
        }
        if matches!(error, AmqpError::Ended | AmqpError::Closed { .. }) {
            // Late or refused, it is no loss: the socket is closed next.
            drop(tokio::time::timeout(FAREWELL, self.goodbye(matches!(error, AmqpError::Ended))).await);
        }
    }

    /// Hands out what has come, and says how to go on.
    fn turn(&mut self) -> Result<Turn, AmqpError> {
        while let Some(frame) = self.reading.take()? {
            self.accept(frame)?;
        }
        let hurried = !self.pending.is_empty() || !self.outgoing.is_empty() || self.haste.waiting.load(Ordering::SeqCst) > 0;
        if !std::mem::take(&mut self.delivered) || hurried {
            return Ok(Turn::Read);
        }
        // Only once the socket is empty: what is sent faster is read as fast as before.
        Ok(match self.reading.fill(STANDING).now_or_never() {
            None => Turn::Rest,
            Some(filled) => filled.map(|()| if self.is_behind() { Turn::Wait } else { Turn::Yield })?,
        })
    }

    /// Says whether a consumer has half of what it may hold: what gathered may be more than that.
    fn is_behind(&self) -> bool {
        let mut sinks = self.channels.values().flat_map(|lane| lane.consumers.values());
        sinks.any(|sink| sink.messages.capacity() < MAX_MESSAGES / 2)
    }

    /// Says goodbye: a socket that is just closed is a warning in the broker's log.
    async fn goodbye(&mut self, first: bool) -> Result<(), AmqpError> {
        if first {
            // A broker that is told to close with a channel open may wait seconds for that channel.
            for id in self.channels.keys().copied().collect::<Vec<_>>() {
                self.close(id);
            }
            self.writer.write_all_buf(&mut self.outgoing).await.map_err(NetError::Io)?;
            while self.channels.values().any(|lane| lane.closing) {
                let frame = self.reading.frame("channel.close").await?;
                self.accept(frame)?;
            }
            self.outgoing.extend_from_slice(&Arguments::of(wire::CLOSE).u16(200).short("").u16(0).u16(0).frame(0));
        }
        self.writer.write_all_buf(&mut self.outgoing).await.map_err(NetError::Io)?;
        self.writer.flush().await.map_err(NetError::Io)?;
        while first && !matches!(self.reading.frame("connection.close").await?, Frame::Method(0, wire::CLOSE_OK, _)) {}
        Ok(())
    }

    fn beat(&mut self) -> Result<(), AmqpError> {
        if self.reading.heard.elapsed() > self.beat * 2 {
            return Err(AmqpError::Silent);
        }
        if let Some(late) = self.pending.iter().find(|pending| pending.reply.is_some() && pending.since.elapsed() > RPC_LIMIT) {
            return Err(AmqpError::Hung(late.what.clone()));
        }
        if self.outgoing.is_empty() {
            self.outgoing.extend_from_slice(&wire::heartbeat());
        }
        Ok(())
    }

    fn carry(&mut self, order: Command) -> Result<(), AmqpError> {
        let (channel, frame, expects, what, reply) = match order {
            Command::Close(id) => {
                self.close(id);
                return Ok(());
            }
            Command::Open(reply) => {
                let Some(id) = (1..=self.channel_max).find(|id| !self.channels.contains_key(id)) else {
                    Reply::Opened(reply).fail(AmqpError::Busy);
                    return Ok(());
                };
                let frame = Arguments::of((20, 10)).short("").frame(id);
                (id, frame, Expects::Method(wire::CHANNEL_OPEN_OK), "a channel".to_owned(), Reply::Opened(reply))
            }
            Command::Ask(Question { channel, frame, expects, what, consumer, reply }) => {
                let Some(lane) = self.channels.get_mut(&channel).filter(|lane| !lane.closing && !lane.dead) else {
                    Reply::Answer(reply).fail(AmqpError::Refused { what, code: 504, text: "the channel was closed before".to_owned() });
                    return Ok(());
                };
                lane.consumers.extend(consumer);
                (channel, frame, expects, what, Reply::Answer(reply))
            }
        };
        let blocked = self.state.borrow().blocked.clone();
        let full = self.pending.len() >= QUESTIONS || self.outgoing.len() + frame.len() > MAX_OUTGOING;
        if blocked.is_some() || full {
            reply.fail(blocked.map_or(AmqpError::Busy, AmqpError::Blocked));
            return Ok(());
        }
        self.channels.entry(channel).or_default();
        self.outgoing.extend_from_slice(&frame);
        self.pending.push_back(Pending { channel, expects, what, since: Instant::now(), reply: Some(reply) });
        Ok(())
    }

    fn close(&mut self, id: u16) {
        match self.channels.get_mut(&id) {
            Some(lane) if lane.dead => drop(self.channels.remove(&id)),
            Some(lane) if !lane.closing => {
                *lane = Lane { closing: true, ..Lane::default() };
                self.outgoing.extend_from_slice(&Arguments::of(wire::CHANNEL_CLOSE).u16(200).short("").u16(0).u16(0).frame(id));
            }
            _ => {}
        }
    }

    fn accept(&mut self, frame: Frame) -> Result<(), AmqpError> {
        match frame {
            Frame::Heartbeat => Ok(()),
            Frame::Method(0, id, method) => self.accept_own(id, method),
            Frame::Method(channel, id, method) => self.accept_method(channel, id, method),
            Frame::Header(channel, size, properties) => {
                let lane = self.lane(channel)?;
                if lane.closing {
                    return Ok(());
                }
                let content = lane.content.as_mut().filter(|content| content.left.is_none()).ok_or_else(|| unexpected("a header"))?;
                content.left = Some(size);
                content.too_large = size > MAX_BODY as u64;
                content.message.properties = properties;
                let whole = lane.complete();
                self.delivered |= whole;
                Ok(())
            }
            Frame::Body(channel, bytes) => {
                let lane = self.lane(channel)?;
                if lane.closing {
                    return Ok(());
                }
                let content = lane.content.as_mut().ok_or_else(|| unexpected("a body"))?;
                let left = content.left.and_then(|left| left.checked_sub(bytes.len() as u64)).ok_or_else(|| unexpected("a body"))?;
                content.left = Some(left);
                if !content.too_large && content.tag.is_some() {
                    match &mut content.message.body {
                        none if none.is_empty() => *none = bytes,
                        body => body.extend_from_slice(&bytes),
                    }
                }
                let whole = lane.complete();
                self.delivered |= whole;
                Ok(())
            }
        }
    }

    fn lane(&mut self, channel: u16) -> Result<&mut Lane, AmqpError> {
        self.channels.get_mut(&channel).ok_or_else(|| AmqpError::Protocol(format!("the broker used channel {channel}, which is not open")))
    }

    fn accept_own(&mut self, id: Id, method: Method) -> Result<(), AmqpError> {
        match method {
            Method::Close { code, text } => {
                self.outgoing.extend_from_slice(&Arguments::of(wire::CLOSE_OK).frame(0));
                Err(AmqpError::Closed { during: STANDING, code, text })
            }
            Method::Blocked(reason) => {
                // What was asked will be answered when the block is over: the callers need not wait for that.
                for pending in &mut self.pending {
                    if let Some(reply) = pending.reply.take() {
                        reply.fail(AmqpError::Blocked(reason.clone()));
                    }
                }
                self.state.send_modify(|state| state.blocked = Some(reason));
                Ok(())
            }
            Method::Unblocked => {
                self.state.send_modify(|state| state.blocked = None);
                Ok(())
            }
            _ => Err(unexpected(&format!("method {id:?} on channel 0"))),
        }
    }

    fn accept_method(&mut self, channel: u16, id: Id, method: Method) -> Result<(), AmqpError> {
        if id == wire::CHANNEL_CLOSE_OK {
            self.channels.remove(&channel).ok_or_else(|| unexpected("channel.close-ok"))?;
            self.pending.retain(|pending| pending.channel != channel);
            return Ok(());
        }
        let closing = self.lane(channel)?.closing;
        match method {
            Method::ChannelClose { code, text } => {
                self.outgoing.extend_from_slice(&Arguments::of(wire::CHANNEL_CLOSE_OK).frame(channel));
                // Where both close at once, the broker still answers ours.
                if !closing {
                    self.channels.insert(channel, Lane { dead: true, ..Lane::default() });
                }
                let (of_channel, others) = self.pending.drain(..).partition(|pending: &Pending| pending.channel == channel);
                self.pending = others;
                for Pending { what, reply, .. } in of_channel {
                    if let Some(reply) = reply {
                        reply.fail(AmqpError::Refused { what, code, text: text.clone() });
                    }
                }
                Ok(())
            }
            _ if closing => Ok(()),
            Method::Deliver { tag, exchange, key } => self.begin(channel, Content::new(Some(tag), exchange, key)),
            Method::Return { code, text } => {
                tracing::trace!(code, text, "a message came back");
                self.lane(channel)?.nowhere = true;
                self.begin(channel, Content::new(None, String::new(), String::new()))
            }
            Method::ConsumerCancelled { tag } => {
                self.lane(channel)?.consumers.remove(&tag);
                Ok(())
            }
            Method::Confirm { ok, .. } => {
                let nowhere = std::mem::take(&mut self.lane(channel)?.nowhere);
                let answer = match (ok, nowhere) {
                    (true, true) => Ok(Answer::Routed(Routed::Nowhere)),
                    (true, false) => Ok(Answer::Routed(Routed::Queue)),
                    (false, _) => Err((500, "the broker could not take the message (basic.nack)")),
                };
                self.answer(channel, Expects::Confirm, answer)
            }
            Method::DeclareOk { queue, messages, consumers } => {
                let declared = Declared { queue, ready: messages, consumers };
                self.answer(channel, Expects::Method(id), Ok(Answer::Declared(declared)))
            }
            _ => self.answer(channel, Expects::Method(id), Ok(Answer::Done)),
        }
    }

    fn begin(&mut self, channel: u16, content: Content) -> Result<(), AmqpError> {
        let lane = self.lane(channel)?;
        if lane.content.is_some() {
            return Err(unexpected("a message within a message"));
        }
        lane.content = Some(content);
        Ok(())
    }

    /// Answers the first question of a channel: a channel's answers come in the order of its questions.
    fn answer(&mut self, channel: u16, got: Expects, answer: Result<Answer, (u16, &str)>) -> Result<(), AmqpError> {
        let first = self.pending.iter().position(|pending| pending.channel == channel);
        let Some(pending) = first.filter(|at| self.pending[*at].expects == got).and_then(|at| self.pending.remove(at)) else {
            return Err(unexpected(&format!("{got:?}")));
        };
        match pending.reply {
            None => {}
            Some(Reply::Opened(reply)) => {
                let gone = reply.send(Ok(channel)).is_err();
                if gone {
                    self.close(channel);
                }
            }
            Some(Reply::Answer(reply)) => {
                let refused = |(code, text): (u16, &str)| AmqpError::Refused { what: pending.what, code, text: text.to_owned() };
                // Nobody listens if the caller gave up in this moment.
                drop(reply.send(answer.map_err(refused)));
            }
        }
        Ok(())
    }
}

impl Lane {
    /// Hands a message on if it is whole, or counts it as missed; says whether it was whole and somebody's.
    fn complete(&mut self) -> bool {
        let Some(Content { tag, too_large, message, .. }) = self.content.take_if(|content| content.left == Some(0)) else { return false };
        let Some(sink) = tag.and_then(|tag| self.consumers.get(&tag)) else { return false };
        let size = message.body.len();
        let queued = sink.queued.fetch_add(size, Ordering::Relaxed) + size;
        if too_large || queued > MAX_QUEUED || sink.messages.try_send(message).is_err() {
            sink.queued.fetch_sub(size, Ordering::Relaxed);
            sink.missed.fetch_add(1, Ordering::Relaxed);
        }
        true
    }
}

/// Lets messages gather, out of the poll: to be woken for each costs more than to take it. Ends early where somebody
/// orders something, waits in haste, or Proctor stops. Returns the order.
async fn rest(
    stream: Stream,
    orders: &mut mpsc::Receiver<Command>,
    haste: &Haste,
    stop: &CancellationToken,
) -> io::Result<(Stream, Option<Command>)> {
    let quiet = stream.quiet()?;
    let order = tokio::select! {
        () = tokio::time::sleep(REST) => None,
        () = haste.begun.notified() => None,
        // Where everybody has let go of it, the next turn ends it.
        order = orders.recv() => order,
        () = stop.cancelled() => None,
    };
    Ok((quiet.listen()?, order))
}

/// Waits until a caller has given up on its question; returns what it asked.
async fn abandoned(pending: &mut VecDeque<Pending>) -> String {
    std::future::poll_fn(|cx| {
        for pending in pending.iter_mut() {
            if pending.reply.as_mut().is_some_and(|reply| reply.poll_abandoned(cx).is_ready()) {
                return Poll::Ready(pending.what.clone());
            }
        }
        Poll::Pending
    })
    .await
}

/// What the protocol does not allow.
pub(super) fn unexpected(what: &str) -> AmqpError {
    AmqpError::Protocol(format!("the broker sent {what} where the protocol does not allow it"))
}
