//! AMQP 0-9-1 on the wire: frames, field tables, properties, and the methods that a client of ours sends and takes.
//!
//! From the specification (amqp0-9-1.pdf §2.3 and §4.2) in RabbitMQ's dialect of field types
//! (<https://www.rabbitmq.com/amqp-0-9-1-errata>). Everything that is read is bounded: a frame by [`FRAME_MAX`] before
//! its body is awaited, a table by [`MAX_DEPTH`] and [`MAX_FIELDS`].

use bytes::{Buf, BytesMut};

/// The largest frame that is sent or taken, with its 8 bytes of header and end. RabbitMQ offers 128 KiB, a hostile
/// server 4 GiB; nothing of ours needs more, since bodies come in as many frames as they need.
pub const FRAME_MAX: u32 = 8192;
/// How deep tables and arrays may lie in one another: what lies deeper is refused, not followed.
pub const MAX_DEPTH: usize = 8;
/// The most fields of one table or array.
pub const MAX_FIELDS: usize = 256;
/// Header and end of a frame, in bytes.
const OVERHEAD: usize = 8;
/// The last byte of every frame.
const END: u8 = 0xCE;

/// What came is not AMQP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Malformed;

/// A value of a field table, as far as anybody needs it.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Nothing (`V`).
    Null,
    /// A truth value (`t`).
    Bool(bool),
    /// Any whole number, and a timestamp.
    Int(i64),
    /// Any other number.
    Float(f64),
    /// A text or bytes (`S`, `x`); what is not UTF-8 is replaced.
    Text(String),
    /// Several values (`A`).
    List(Vec<Value>),
    /// Named values (`F`).
    Table(Table),
}

/// Named values in the order in which they came.
pub type Table = Vec<(String, Value)>;

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

/// The properties of a message that somebody needs; the others are skipped.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Properties {
    /// Such as `application/json`.
    pub content_type: Option<String>,
    /// Such as `utf-8`.
    pub content_encoding: Option<String>,
    /// The application's own.
    pub headers: Table,
    /// Joins an answer to its question.
    pub correlation_id: Option<String>,
    /// The queue for the answer.
    pub reply_to: Option<String>,
    /// Milliseconds after which the broker drops the message.
    pub expiration: Option<String>,
}

/// One method of the server's.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Method {
    Start {
        properties: Table,
        mechanisms: String,
    },
    Tune {
        channel_max: u16,
        frame_max: u32,
        heartbeat: u16,
    },
    Close {
        code: u16,
        text: String,
    },
    Blocked(String),
    Unblocked,
    ChannelClose {
        code: u16,
        text: String,
    },
    DeclareOk {
        queue: String,
        messages: u32,
        consumers: u32,
    },
    ConsumerCancelled {
        tag: String,
    },
    Return {
        code: u16,
        text: String,
    },
    Deliver {
        tag: String,
        exchange: String,
        key: String,
    },
    Confirm {
        tag: u64,
        multiple: bool,
        ok: bool,
    },
    /// Anything else that carries nothing we need: the many `-ok`.
    Other,
}

/// Class and method: what names a method.
pub(super) type Id = (u16, u16);
pub(super) const START: Id = (10, 10);
pub(super) const TUNE: Id = (10, 30);
pub(super) const OPEN_OK: Id = (10, 41);
pub(super) const CLOSE: Id = (10, 50);
pub(super) const CLOSE_OK: Id = (10, 51);
pub(super) const CHANNEL_OPEN_OK: Id = (20, 11);
pub(super) const CHANNEL_CLOSE: Id = (20, 40);
pub(super) const CHANNEL_CLOSE_OK: Id = (20, 41);
pub(super) const DECLARE_OK: Id = (50, 11);
pub(super) const BIND_OK: Id = (50, 21);
pub(super) const CONSUME_OK: Id = (60, 21);
pub(super) const SELECT_OK: Id = (85, 11);

/// One frame.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Frame {
    Method(u16, Id, Method),
    Header(u16, u64, Properties),
    Body(u16, Vec<u8>),
    Heartbeat,
}

/// Why no frame can be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum FrameError {
    /// The frame is larger than [`FRAME_MAX`].
    TooLarge,
    /// It is no frame: what was found, for people.
    Protocol(String),
}

impl From<Malformed> for FrameError {
    fn from(_: Malformed) -> Self {
        Self::Protocol("expected a frame of AMQP 0-9-1, found one that is malformed".to_owned())
    }
}

/// Takes the first frame out of what has come, or nothing while it is not whole.
pub(super) fn take_frame(buffer: &mut BytesMut) -> Result<Option<Frame>, FrameError> {
    let Some(kind) = buffer.first().copied() else { return Ok(None) };
    if !matches!(kind, 1..=3 | 8) {
        if b"AMQP".starts_with(&buffer[..buffer.len().min(4)]) && buffer.len() < 8 {
            return Ok(None);
        }
        return Err(FrameError::Protocol(match buffer.strip_prefix(b"AMQP") {
            Some(version) => format!("the broker speaks another AMQP than 0-9-1: its answer names version {:?}", &version[1..4]),
            None => format!("expected a frame of AMQP 0-9-1, found {}", printable(buffer)),
        }));
    }
    if buffer.len() < 7 {
        return Ok(None);
    }
    let channel = u16::from_be_bytes([buffer[1], buffer[2]]);
    let size = u32::from_be_bytes([buffer[3], buffer[4], buffer[5], buffer[6]]) as usize;
    if size > FRAME_MAX as usize - OVERHEAD {
        return Err(FrameError::TooLarge);
    }
    if buffer.len() < size + OVERHEAD {
        return Ok(None);
    }
    let frame = buffer.split_to(size + OVERHEAD);
    if frame[size + 7] != END {
        return Err(Malformed.into());
    }
    let mut reader = Reader(&frame[7..size + 7]);
    Ok(Some(match kind {
        1 => {
            let id = (reader.u16()?, reader.u16()?);
            Frame::Method(channel, id, reader.method(id)?)
        }
        2 => {
            reader.take(4)?;
            let size = reader.u64()?;
            Frame::Header(channel, size, reader.properties()?)
        }
        3 => Frame::Body(channel, reader.0.to_vec()),
        _ => Frame::Heartbeat,
    }))
}

/// The first bytes of something, for people.
fn printable(bytes: &[u8]) -> String {
    format!("\"{}\"", bytes[..bytes.len().min(40)].escape_ascii())
}

/// What is left of a frame.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.0.split_at_checked(n).ok_or(Malformed)?;
        self.0 = rest;
        Ok(taken)
    }

    fn u8(&mut self) -> Result<u8, Malformed> {
        self.take(1).map(|bytes| bytes[0])
    }
    fn u16(&mut self) -> Result<u16, Malformed> {
        self.take(2).map(|mut bytes| bytes.get_u16())
    }
    fn u32(&mut self) -> Result<u32, Malformed> {
        self.take(4).map(|mut bytes| bytes.get_u32())
    }
    fn u64(&mut self) -> Result<u64, Malformed> {
        self.take(8).map(|mut bytes| bytes.get_u64())
    }

    fn short(&mut self) -> Result<String, Malformed> {
        let n = self.u8()?;
        Ok(String::from_utf8_lossy(self.take(n.into())?).into_owned())
    }

    fn long(&mut self) -> Result<&'a [u8], Malformed> {
        let n = self.u32()?;
        self.take(n as usize)
    }

    fn table(&mut self, depth: usize) -> Result<Table, Malformed> {
        Reader(self.long()?).fields(depth)
    }

    fn fields(mut self, depth: usize) -> Result<Table, Malformed> {
        let mut table = Vec::new();
        while !self.0.is_empty() {
            if table.len() >= MAX_FIELDS {
                return Err(Malformed);
            }
            table.push((self.short()?, self.value(depth)?));
        }
        Ok(table)
    }

    fn value(&mut self, depth: usize) -> Result<Value, Malformed> {
        if depth >= MAX_DEPTH {
            return Err(Malformed);
        }
        Ok(match self.u8()? {
            b'V' => Value::Null,
            b't' => Value::Bool(self.u8()? != 0),
            b'b' => Value::Int(self.take(1)?.get_i8().into()),
            b'B' => Value::Int(self.u8()?.into()),
            b's' | b'U' => Value::Int(self.take(2)?.get_i16().into()),
            b'u' => Value::Int(self.u16()?.into()),
            b'I' => Value::Int(self.take(4)?.get_i32().into()),
            b'i' => Value::Int(self.u32()?.into()),
            b'l' | b'L' => Value::Int(self.take(8)?.get_i64()),
            b'T' => Value::Int(i64::try_from(self.u64()?).unwrap_or(i64::MAX)),
            b'f' => Value::Float(self.take(4)?.get_f32().into()),
            b'd' => Value::Float(self.take(8)?.get_f64()),
            b'D' => {
                let (scale, digits) = (self.u8()?, self.take(4)?.get_i32());
                Value::Float(f64::from(digits) / 10f64.powi(scale.into()))
            }
            b'S' | b'x' => Value::Text(String::from_utf8_lossy(self.long()?).into_owned()),
            b'F' => Value::Table(self.table(depth + 1)?),
            b'A' => {
                let mut inner = Reader(self.long()?);
                let mut list = Vec::new();
                while !inner.0.is_empty() {
                    if list.len() >= MAX_FIELDS {
                        return Err(Malformed);
                    }
                    list.push(inner.value(depth + 1)?);
                }
                Value::List(list)
            }
            _ => return Err(Malformed),
        })
    }

    fn method(&mut self, id: Id) -> Result<Method, Malformed> {
        Ok(match id {
            START => {
                self.take(2)?;
                let properties = self.table(0)?;
                Method::Start { properties, mechanisms: String::from_utf8_lossy(self.long()?).into_owned() }
            }
            TUNE => Method::Tune { channel_max: self.u16()?, frame_max: self.u32()?, heartbeat: self.u16()? },
            CLOSE => Method::Close { code: self.u16()?, text: self.short()? },
            (10, 60) => Method::Blocked(self.short()?),
            (10, 61) => Method::Unblocked,
            CHANNEL_CLOSE => Method::ChannelClose { code: self.u16()?, text: self.short()? },
            DECLARE_OK => Method::DeclareOk { queue: self.short()?, messages: self.u32()?, consumers: self.u32()? },
            (60, 30) => Method::ConsumerCancelled { tag: self.short()? },
            (60, 50) => Method::Return { code: self.u16()?, text: self.short()? },
            (60, 60) => {
                let tag = self.short()?;
                self.take(9)?;
                Method::Deliver { tag, exchange: self.short()?, key: self.short()? }
            }
            (60, 80) => Method::Confirm { tag: self.u64()?, multiple: self.u8()? & 1 == 1, ok: true },
            (60, 120) => Method::Confirm { tag: self.u64()?, multiple: self.u8()? & 1 == 1, ok: false },
            _ => Method::Other,
        })
    }

    fn properties(&mut self) -> Result<Properties, Malformed> {
        let flags = self.u16()?;
        let mut properties = Properties::default();
        // In the order of the specification, from the highest bit on; the lowest says that further flags follow.
        for bit in (1..16).rev().filter(|bit| flags & (1 << bit) != 0) {
            match bit {
                15 => properties.content_type = Some(self.short()?),
                14 => properties.content_encoding = Some(self.short()?),
                // Whoever may publish writes them: what we do not follow must not cost the connection.
                13 => properties.headers = Reader(self.long()?).fields(0).unwrap_or_default(),
                12 | 11 => drop(self.u8()?),
                10 => properties.correlation_id = Some(self.short()?),
                9 => properties.reply_to = Some(self.short()?),
                8 => properties.expiration = Some(self.short()?),
                6 => drop(self.u64()?),
                7 | 2..=5 => drop(self.short()?),
                _ => return Err(Malformed),
            }
        }
        Ok(properties)
    }
}

/// Writes the arguments of a method.
pub(super) struct Arguments(Vec<u8>);

impl Arguments {
    /// Begins a method.
    pub(super) fn of(id: Id) -> Self {
        Self([id.0.to_be_bytes(), id.1.to_be_bytes()].concat())
    }

    pub(super) fn u8(mut self, value: u8) -> Self {
        self.0.push(value);
        self
    }
    pub(super) fn u16(mut self, value: u16) -> Self {
        self.0.extend(value.to_be_bytes());
        self
    }
    pub(super) fn u32(mut self, value: u32) -> Self {
        self.0.extend(value.to_be_bytes());
        self
    }
    /// A text of at most 255 bytes; what is longer is cut at a character.
    pub(super) fn short(mut self, text: &str) -> Self {
        put_short(&mut self.0, text);
        self
    }
    pub(super) fn long(mut self, bytes: &[u8]) -> Self {
        put_long(&mut self.0, bytes);
        self
    }
    pub(super) fn table(mut self, table: &Table) -> Self {
        put_table(&mut self.0, table);
        self
    }
    /// Writes the method as a frame.
    pub(super) fn frame(self, channel: u16) -> Vec<u8> {
        frame(1, channel, &self.0)
    }
}

/// The longest text whose length is written as one byte.
const MAX_SHORT: usize = 255;

fn put_short(out: &mut Vec<u8>, text: &str) {
    let text = &text[..text.floor_char_boundary(MAX_SHORT)];
    out.push(u8::try_from(text.len()).unwrap_or(u8::MAX));
    out.extend(text.as_bytes());
}

fn put_long(out: &mut Vec<u8>, bytes: &[u8]) {
    // What we write is ours and small.
    out.extend(u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_be_bytes());
    out.extend(bytes);
}

fn put_table(out: &mut Vec<u8>, table: &Table) {
    let mut inner = Vec::new();
    for (name, value) in table {
        put_short(&mut inner, name);
        put_value(&mut inner, value);
    }
    put_long(out, &inner);
}

fn put_value(out: &mut Vec<u8>, value: &Value) {
    match value {
        Value::Null => out.push(b'V'),
        Value::Bool(value) => out.extend([b't', u8::from(*value)]),
        Value::Int(value) => {
            out.push(b'l');
            out.extend(value.to_be_bytes());
        }
        Value::Float(value) => {
            out.push(b'd');
            out.extend(value.to_be_bytes());
        }
        Value::Text(text) => {
            out.push(b'S');
            put_long(out, text.as_bytes());
        }
        Value::List(list) => {
            out.push(b'A');
            let mut inner = Vec::new();
            list.iter().for_each(|value| put_value(&mut inner, value));
            put_long(out, &inner);
        }
        Value::Table(table) => {
            out.push(b'F');
            put_table(out, table);
        }
    }
}

fn frame(kind: u8, channel: u16, payload: &[u8]) -> Vec<u8> {
    let mut out = vec![kind];
    out.extend(channel.to_be_bytes());
    put_long(&mut out, payload);
    out.push(END);
    out
}

/// A heartbeat.
pub(super) fn heartbeat() -> Vec<u8> {
    frame(8, 0, &[])
}

/// Writes `basic.publish` with its header and body; `mandatory`, so that a message that no queue takes comes back.
pub(super) fn publish(channel: u16, exchange: &str, key: &str, properties: &Properties, body: &[u8]) -> Vec<u8> {
    let mut out = Arguments::of((60, 40)).u16(0).short(exchange).short(key).u8(1).frame(channel);
    let mut header = Arguments::of((60, 0)).0;
    header.extend((body.len() as u64).to_be_bytes());
    let mut flags = 0u16;
    let mut listed = Vec::new();
    let mut text = |bit: u16, value: &Option<String>, out: &mut Vec<u8>| {
        if let Some(value) = value {
            flags |= 1 << bit;
            put_short(out, value);
        }
    };
    text(15, &properties.content_type, &mut listed);
    text(14, &properties.content_encoding, &mut listed);
    let mut rest = Vec::new();
    text(10, &properties.correlation_id, &mut rest);
    text(9, &properties.reply_to, &mut rest);
    text(8, &properties.expiration, &mut rest);
    if !properties.headers.is_empty() {
        flags |= 1 << 13;
        put_table(&mut listed, &properties.headers);
    }
    header.extend(flags.to_be_bytes());
    header.extend(listed);
    header.extend(rest);
    out.extend(frame(2, channel, &header));
    for chunk in body.chunks(FRAME_MAX as usize - OVERHEAD) {
        out.extend(frame(3, channel, chunk));
    }
    out
}

#[cfg(fuzzing)]
impl crate::fuzzing::Parsers {
    /// Frames of a broker.
    pub fn amqp(bytes: &[u8]) {
        let mut buffer = BytesMut::from(bytes);
        let mut left = buffer.len();
        while let Ok(Some(_)) = take_frame(&mut buffer) {
            assert!(buffer.len() < left, "a frame has at least its own bytes");
            left = buffer.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(bytes: &[u8]) -> Result<Option<Frame>, FrameError> {
        take_frame(&mut BytesMut::from(bytes))
    }

    #[test]
    fn what_is_published_is_read_back() {
        let headers = vec![
            ("lang".to_owned(), Value::from("py")),
            ("retries".to_owned(), Value::Int(-1)),
            ("eta".to_owned(), Value::Null),
            ("timelimit".to_owned(), Value::List(vec![Value::Null, Value::Float(1.5)])),
            ("more".to_owned(), Value::Table(vec![("ok".to_owned(), Value::Bool(true))])),
        ];
        let text = |text: &str| Some(text.to_owned());
        let properties = Properties {
            content_type: text("application/json"),
            content_encoding: text("utf-8"),
            headers,
            correlation_id: text("1"),
            reply_to: text("q"),
            expiration: text("5000"),
        };
        let body = vec![7; 10_000];
        let mut bytes = BytesMut::from(&publish(3, "celery.pidbox", "k", &properties, &body)[..]);
        assert!(matches!(take_frame(&mut bytes), Ok(Some(Frame::Method(3, (60, 40), Method::Other)))));
        assert_eq!(take_frame(&mut bytes), Ok(Some(Frame::Header(3, 10_000, properties))));
        let Ok(Some(Frame::Body(3, first))) = take_frame(&mut bytes) else { panic!("a body") };
        let Ok(Some(Frame::Body(3, second))) = take_frame(&mut bytes) else { panic!("a second body") };
        assert_eq!((first.len(), second.len(), bytes.len()), (8184, 1816, 0));
        assert_eq!([first, second].concat(), body);
    }

    #[test]
    fn what_is_no_frame_or_too_large_is_refused_before_it_is_awaited() {
        assert_eq!(taken(b"\x01\x00\x00\xff\xff\xff\xff"), Err(FrameError::TooLarge));
        assert_eq!(taken(b"\x01\x00\x00\x00\x00\x1f\xf9"), Err(FrameError::TooLarge));
        assert_eq!(taken(b"\x01\x00\x00\x00\x00\x1f\xf8"), Ok(None));
        assert_eq!(taken(b""), Ok(None));
        assert_eq!(taken(b"AMQP\x00"), Ok(None));
        for (bytes, said) in [
            (b"HTTP/1.1 400 Bad Request\r\n".as_slice(), "found \"HTTP/1.1 400"),
            (b"AMQP\x00\x01\x00\x00", "names version [1, 0, 0]"),
            (b"\x08\x00\x00\x00\x00\x00\x00x", "malformed"),
            (b"\x01\x00\x00\x00\x00\x00\x01\x00\xce", "malformed"),
        ] {
            let Err(FrameError::Protocol(found)) = taken(bytes) else { panic!("{said}") };
            assert!(found.contains(said), "{found}");
        }
    }

    #[test]
    fn what_lies_too_deep_or_is_too_much_is_refused_and_not_followed() {
        let nested = |depth: usize| {
            let value = (0..depth).fold(Value::Null, |inner, _| Value::List(vec![inner]));
            Arguments::of(START).u16(9).table(&vec![("a".to_owned(), value)]).long(b"PLAIN").long(b"en_US").frame(0)
        };
        assert!(matches!(taken(&nested(MAX_DEPTH - 1)), Ok(Some(Frame::Method(0, START, Method::Start { .. })))));
        // 1500 levels fit into one frame and overflow the stack of a reader that follows them.
        for depth in [MAX_DEPTH, 1500] {
            assert!(matches!(taken(&nested(depth)), Err(FrameError::Protocol(_))), "{depth}");
        }
        let many = Value::List(vec![Value::Null; MAX_FIELDS + 1]);
        let many = Arguments::of(START).u16(9).table(&vec![("a".to_owned(), many)]).frame(0);
        assert!(matches!(taken(&many), Err(FrameError::Protocol(_))));
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_panic_or_give_more_than_they_are(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..300), kind in 1u8..4, channel in 0u16..3, class in proptest::sample::select(vec![10u16, 20, 50, 60]), method in 0u16..130) {
            let payload = [&class.to_be_bytes()[..], &method.to_be_bytes(), &bytes].concat();
            if let Ok(Some(Frame::Body(_, body))) = taken(&frame(kind, channel, &payload)) {
                assert_eq!(body, payload);
            }
            drop(taken(&bytes));
        }
    }
}
