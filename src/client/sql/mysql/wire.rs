//! Packets: a length of three bytes, a number, and what is in them ("Protocol Basics").

use std::io;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::SqlError;
use crate::client::net::{NetError, Stream};

/// The largest packet that is taken, in bytes; a row of ours has some hundred.
const MAX_PACKET: usize = 64 * 1024;

/// A connection with the number of the next packet.
pub(super) struct Wire {
    pub(super) stream: Stream,
    number: u8,
    /// Bytes that may still come in this exchange.
    room: usize,
}

impl Wire {
    pub(super) fn new(stream: Stream, room: usize) -> Self {
        Self { stream, number: 0, room }
    }

    /// Begins a new exchange, whose answers may have so many bytes.
    pub(super) fn begin(&mut self, room: usize) {
        self.number = 0;
        self.room = room;
    }

    /// Reads one packet whole; the length that it announces is believed only up to [`MAX_PACKET`].
    pub(super) async fn packet(&mut self) -> Result<Vec<u8>, SqlError> {
        let mut header = [0u8; 4];
        self.stream.read_exact(&mut header).await?;
        let length = usize::from(header[0]) | usize::from(header[1]) << 8 | usize::from(header[2]) << 16;
        if header[3] != self.number {
            return Err(SqlError::Protocol(format!(
                "expected MySQL's packet number {}, found {:?}",
                self.number,
                String::from_utf8_lossy(&header)
            )));
        }
        if length > MAX_PACKET || length + header.len() > self.room {
            return Err(NetError::TooLarge { limit: MAX_PACKET.min(self.room) }.into());
        }
        self.room -= length + header.len();
        self.number = self.number.wrapping_add(1);
        let mut packet = vec![0; length];
        self.stream.read_exact(&mut packet).await?;
        Ok(packet)
    }

    /// Writes one packet, which is always shorter than 16 MiB.
    pub(super) async fn write(&mut self, body: &[u8]) -> io::Result<()> {
        let length = u32::try_from(body.len()).ok().filter(|length| *length < 0xff_ffff);
        let length = length.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "too long for one packet"))?;
        let mut packet = length.to_le_bytes();
        packet[3] = self.number;
        self.number = self.number.wrapping_add(1);
        let mut whole = packet.to_vec();
        whole.extend_from_slice(body);
        self.stream.write_all(&whole).await?;
        self.stream.flush().await
    }

    /// Gives the stream away, to be encrypted.
    pub(super) fn split(self) -> (Stream, u8, usize) {
        (self.stream, self.number, self.room)
    }

    /// The opposite of [`Wire::split`].
    pub(super) fn joined(stream: Stream, number: u8, room: usize) -> Self {
        Self { stream, number, room }
    }
}

/// Says whether a packet ends columns or rows: 254, and too short for a row that begins with a text of such a length.
pub(super) fn is_eof(packet: &[u8]) -> bool {
    packet.first() == Some(&0xfe) && packet.len() < 9
}

/// What is left of a packet.
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

impl<'a> Fields<'a> {
    /// Takes so many bytes.
    pub(super) fn bytes(&mut self, count: usize) -> Result<&'a [u8], SqlError> {
        let (taken, rest) =
            self.0.split_at_checked(count).ok_or_else(|| SqlError::Protocol("a packet of MySQL ends before its last field".to_owned()))?;
        self.0 = rest;
        Ok(taken)
    }

    /// Takes one byte.
    pub(super) fn byte(&mut self) -> Result<u8, SqlError> {
        Ok(self.bytes(1)?[0])
    }

    /// Takes a whole number of two bytes.
    pub(super) fn short(&mut self) -> Result<u16, SqlError> {
        let bytes = self.bytes(2)?;
        Ok(u16::from_le_bytes([bytes[0], bytes[1]]))
    }

    /// Takes a text that ends with a zero byte, or with the packet.
    pub(super) fn until_zero(&mut self) -> &'a [u8] {
        let end = self.0.iter().position(|byte| *byte == 0);
        let (text, rest) = self.0.split_at(end.unwrap_or(self.0.len()));
        self.0 = rest.get(1..).unwrap_or_default();
        text
    }

    /// Takes a number of one to nine bytes.
    pub(super) fn number(&mut self) -> Result<u64, SqlError> {
        let count = match self.byte()? {
            small @ 0..=0xfa => return Ok(small.into()),
            0xfc => 2,
            0xfd => 3,
            0xfe => 8,
            _ => return Err(SqlError::Protocol("expected a number in MySQL's packet, found none".to_owned())),
        };
        let mut whole = [0u8; 8];
        whole[..count].copy_from_slice(self.bytes(count)?);
        Ok(u64::from_le_bytes(whole))
    }

    /// Takes a text with its length in front; nothing for NULL.
    pub(super) fn text(&mut self) -> Result<Option<&'a [u8]>, SqlError> {
        if self.0.first() == Some(&0xfb) {
            self.byte()?;
            return Ok(None);
        }
        let length = usize::try_from(self.number()?).unwrap_or(usize::MAX);
        self.bytes(length).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_read_in_each_of_their_lengths() {
        let mut fields = Fields(b"\x03abc\xfb\xfc\x02\x00de\xfd\x01\x00\x00f\xfe\x01\x00\x00\x00\x00\x00\x00\x00gh\0i");
        for wanted in [Some(&b"abc"[..]), None, Some(b"de"), Some(b"f"), Some(b"g")] {
            assert_eq!(fields.text().expect("is whole"), wanted);
        }
        assert_eq!((fields.until_zero(), fields.until_zero(), fields.until_zero()), (&b"h"[..], &b"i"[..], &b""[..]));
        for cut in [&b"\x05abc"[..], b"\xfc\x01", b"\xff", b"\xfe\xff\xff\xff\xff\xff\xff\xff\xff", b""] {
            assert!(Fields(cut).text().is_err(), "{cut:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_are_read_beyond_their_packet(bytes: Vec<u8>) {
            let mut fields = Fields(&bytes);
            while !fields.0.is_empty() && fields.text().is_ok() {}
            Fields(&bytes).until_zero();
        }
    }
}
