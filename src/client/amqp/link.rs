//! What can be asked over a connection that stands.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use tokio::sync::{Mutex, mpsc, oneshot, watch};

use super::driver::{Answer, Command, Expects, Haste, Hasty, MAX_MESSAGES, Question, Sink, State, unexpected};
use super::wire::{self, Arguments, Properties, Value};
use super::{AmqpError, Handshake};

/// A standing connection that never publishes. Clones share it.
#[derive(Clone)]
pub struct Link(Arc<Line>);

struct Line {
    commands: mpsc::Sender<Command>,
    state: watch::Receiver<State>,
    haste: Arc<Haste>,
    handshake: Handshake,
    /// The channel for passive declares: the broker closes it when it refuses one.
    asking: Mutex<Option<u16>>,
}

/// A standing connection that may publish.
#[derive(Clone)]
pub struct Canary(Link);

/// A channel, closed when dropped.
pub struct Channel {
    open: Arc<Open>,
}

/// A channel that publishes, with an answer of the broker's to each message.
pub struct Publisher(Channel);

/// Messages that come, as long as it is kept.
pub struct Consumer {
    messages: mpsc::Receiver<Message>,
    queued: Arc<AtomicUsize>,
    missed: Arc<AtomicU64>,
    open: Arc<Open>,
}

struct Open {
    id: u16,
    line: Arc<Line>,
    consumers: AtomicU64,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.line.close(self.id);
    }
}

/// The most messages that are taken together.
const SEVERAL: usize = 100;

/// A queue as the broker declares it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Declared {
    /// Its name.
    pub queue: String,
    /// Messages that are ready: those that consumers hold unacknowledged are not among them.
    pub ready: u32,
    /// Consumers.
    pub consumers: u32,
}

/// A message that came.
#[derive(Clone, Debug, PartialEq)]
pub struct Message {
    /// The exchange it was published to.
    pub exchange: String,
    /// Its routing key.
    pub key: String,
    /// Its properties.
    pub properties: Properties,
    /// Its body, at most [`super::MAX_BODY`] bytes.
    pub body: Vec<u8>,
}

/// Where a published message went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Routed {
    /// Into a queue.
    Queue,
    /// Nowhere: no queue takes it; the broker gave it back.
    Nowhere,
}

impl Link {
    pub(super) fn over(commands: mpsc::Sender<Command>, state: watch::Receiver<State>, haste: Arc<Haste>, handshake: Handshake) -> Self {
        Self(Arc::new(Line { commands, state, haste, handshake, asking: Mutex::default() }))
    }

    /// Returns what is known since it was opened.
    pub fn handshake(&self) -> &Handshake {
        &self.0.handshake
    }

    /// Returns why it ended, if it did.
    pub fn ended(&self) -> Option<AmqpError> {
        self.0.ended()
    }

    /// Has what comes read at once, until this is dropped, though nobody waits with [`Consumer::next`].
    pub fn hurry(&self) -> Hasty<'_> {
        self.0.haste.begin()
    }

    /// Opens a channel.
    ///
    /// # Errors
    /// [`AmqpError`].
    pub async fn channel(&self) -> Result<Channel, AmqpError> {
        let id = self.0.open().await?;
        Ok(Channel { open: Arc::new(Open { id, line: self.0.clone(), consumers: AtomicU64::new(0) }) })
    }

    /// Asks for a queue as it is, without making it.
    ///
    /// # Errors
    /// [`AmqpError::Refused`]: 404 no such queue, 405 it is another connection's exclusive queue, 403 no permission
    /// (RabbitMQ 3.10 asks for none here).
    pub async fn declare_passive(&self, queue: &str) -> Result<Declared, AmqpError> {
        let mut asking = self.0.asking.lock().await;
        let id = match asking.take() {
            Some(id) => id,
            None => self.0.open().await?,
        };
        let declared = self.0.declare(id, queue, 1, &[]).await;
        if declared.is_ok() {
            *asking = Some(id);
        } else {
            self.0.close(id);
        }
        declared
    }
}

impl Line {
    fn ended(&self) -> Option<AmqpError> {
        let ended = self.state.borrow().ended.clone();
        ended.or_else(|| self.commands.is_closed().then_some(AmqpError::Ended))
    }

    fn why(&self) -> AmqpError {
        self.ended().unwrap_or(AmqpError::Busy)
    }

    async fn open(&self) -> Result<u16, AmqpError> {
        let (reply, answer) = oneshot::channel();
        self.commands.try_send(Command::Open(reply)).map_err(|_| self.why())?;
        answer.await.map_err(|_| self.why())?
    }

    fn close(&self, id: u16) {
        // A connection that has no room for it hangs, and ends with all its channels.
        drop(self.commands.try_send(Command::Close(id)));
    }

    async fn ask(
        &self,
        channel: u16,
        frame: Vec<u8>,
        expects: Expects,
        what: String,
        consumer: Option<(String, Sink)>,
    ) -> Result<Answer, AmqpError> {
        let (reply, answer) = oneshot::channel();
        let question = Question { channel, frame, expects, what, consumer, reply };
        self.commands.try_send(Command::Ask(question)).map_err(|_| self.why())?;
        answer.await.map_err(|_| self.why())?
    }

    async fn declare(&self, channel: u16, queue: &str, bits: u8, arguments: &[(&str, Value)]) -> Result<Declared, AmqpError> {
        let table = arguments.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
        let what = if queue.is_empty() { "a queue of its own for Proctor".to_owned() } else { format!("to say how queue {queue:?} is") };
        let frame = Arguments::of((50, 10)).u16(0).short(queue).u8(bits).table(&table).frame(channel);
        match self.ask(channel, frame, Expects::Method(wire::DECLARE_OK), what, None).await? {
            Answer::Declared(declared) => Ok(declared),
            Answer::Done | Answer::Routed(_) => Err(unexpected("no queue.declare-ok")),
        }
    }
}

impl Canary {
    pub(super) fn over(link: Link) -> Self {
        Self(link)
    }

    /// Returns the reason if the broker blocks this connection.
    pub fn blocked(&self) -> Option<String> {
        self.0.0.state.borrow().blocked.clone()
    }

    /// Returns what is known since it was opened.
    pub fn handshake(&self) -> &Handshake {
        self.0.handshake()
    }

    /// Opens a channel that publishes.
    ///
    /// # Errors
    /// [`AmqpError::Blocked`] while the broker blocks this connection, and all others.
    pub async fn publisher(&self) -> Result<Publisher, AmqpError> {
        let channel = self.0.channel().await?;
        let select = Arguments::of((85, 10)).u8(0).frame(channel.open.id);
        channel.ask(select, Expects::Method(wire::SELECT_OK), "confirmations of what is published".to_owned(), None).await?;
        Ok(Publisher(channel))
    }
}

impl Channel {
    async fn ask(&self, frame: Vec<u8>, expects: Expects, what: String, consumer: Option<(String, Sink)>) -> Result<Answer, AmqpError> {
        self.open.line.ask(self.open.id, frame, expects, what, consumer).await
    }

    /// Declares a queue of our own: exclusive, named by the broker, gone with its last consumer or the connection.
    ///
    /// # Errors
    /// [`AmqpError::Refused`] 403: the user needs the configure permission for `^amq\.gen-`.
    pub async fn own_queue(&self, arguments: &[(&str, Value)]) -> Result<String, AmqpError> {
        const EXCLUSIVE_AUTO_DELETE: u8 = 4 | 8;
        self.open.line.declare(self.open.id, "", EXCLUSIVE_AUTO_DELETE, arguments).await.map(|declared| declared.queue)
    }

    /// Binds a queue of our own to an exchange.
    ///
    /// # Errors
    /// [`AmqpError::Refused`]: 404 no such exchange, 403 needs write for the queue and read for the exchange.
    pub async fn bind(&self, queue: &str, exchange: &str, key: &str) -> Result<(), AmqpError> {
        let frame = Arguments::of((50, 20)).u16(0).short(queue).short(exchange).short(key).u8(0).table(&Vec::new()).frame(self.open.id);
        self.ask(frame, Expects::Method(wire::BIND_OK), format!("what is sent to exchange {exchange:?}"), None).await.map(drop)
    }

    /// Consumes a queue of our own, or [`super::DIRECT_REPLY`], without acknowledgements.
    ///
    /// # Errors
    /// [`AmqpError::Refused`]: 403 needs read for the queue.
    pub async fn consume(&self, queue: &str) -> Result<Consumer, AmqpError> {
        const NO_ACK: u8 = 2;
        let tag = format!("proctor-{}", self.open.consumers.fetch_add(1, Ordering::Relaxed));
        let frame = Arguments::of((60, 20)).u16(0).short(queue).short(&tag).u8(NO_ACK).table(&Vec::new()).frame(self.open.id);
        let (sender, messages) = mpsc::channel(MAX_MESSAGES);
        let (queued, missed) = (Arc::<AtomicUsize>::default(), Arc::<AtomicU64>::default());
        let sink = Sink { messages: sender, queued: queued.clone(), missed: missed.clone() };
        let what = format!("the messages of queue {queue:?}");
        self.ask(frame, Expects::Method(wire::CONSUME_OK), what, Some((tag, sink))).await?;
        Ok(Consumer { messages, queued, missed, open: self.open.clone() })
    }
}

impl std::ops::Deref for Publisher {
    type Target = Channel;
    fn deref(&self) -> &Channel {
        &self.0
    }
}

impl Publisher {
    /// Returns why its connection ended, if it did: begin again from [`super::Broker::canary`] then.
    pub fn ended(&self) -> Option<AmqpError> {
        self.open.line.ended()
    }

    /// Publishes a message, not persistent, and waits until the broker has it: one at a time.
    ///
    /// # Errors
    /// [`AmqpError::Blocked`], at once also where the broker says so only then; [`AmqpError::Refused`]: 404 no such
    /// exchange, 403 needs write for the exchange (the default one is `amq.default`).
    pub async fn publish(&mut self, exchange: &str, key: &str, properties: &Properties, body: &[u8]) -> Result<Routed, AmqpError> {
        let what =
            if exchange.is_empty() { format!("a message for queue {key:?}") } else { format!("a message for exchange {exchange:?}") };
        let frames = wire::publish(self.open.id, exchange, key, properties, body);
        match self.ask(frames, Expects::Confirm, what, None).await? {
            Answer::Routed(routed) => Ok(routed),
            Answer::Done | Answer::Declared(_) => Err(unexpected("no confirmation")),
        }
    }
}

impl Consumer {
    /// Waits for the next message.
    ///
    /// # Errors
    /// Why none will come; begin anew then.
    pub async fn next(&mut self) -> Result<Message, AmqpError> {
        let message = match self.messages.try_recv() {
            Ok(message) => Some(message),
            Err(_) => {
                let _hasty = self.open.line.haste.begin();
                self.messages.recv().await
            }
        };
        let message = message.ok_or_else(|| self.why())?;
        self.queued.fetch_sub(message.body.len(), Ordering::Relaxed);
        Ok(message)
    }

    /// Waits for messages, and appends those that are there, at most `SEVERAL`. Where they come one after the other
    /// and nobody waits for one with [`Consumer::next`], they may come [`super::REST`] late.
    ///
    /// # Errors
    /// Why none will come; begin anew then.
    pub async fn several(&mut self, into: &mut Vec<Message>) -> Result<(), AmqpError> {
        let before = into.len();
        if self.messages.recv_many(into, SEVERAL).await == 0 {
            return Err(self.why());
        }
        let size = into[before..].iter().map(|message| message.body.len()).sum();
        self.queued.fetch_sub(size, Ordering::Relaxed);
        Ok(())
    }

    fn why(&self) -> AmqpError {
        self.open.line.ended().unwrap_or(AmqpError::Cancelled)
    }

    /// How many messages were left out since the start: too large, or this was not read fast enough.
    pub fn missed(&self) -> u64 {
        self.missed.load(Ordering::Relaxed)
    }
}
