//! Hostile replies, without a network.

use super::*;
use proptest::prelude::*;

#[test]
fn base64_is_that_of_the_rfc() {
    for (plain, coded) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy"), ("\0a\0ÿ", "AGEAw78=")] {
        assert_eq!(base64(plain.as_bytes()), coded);
    }
}

#[test]
fn no_message_can_end_early() {
    for (message, sent) in [
        ("", ""),
        ("a", "a\r\n"),
        (".", "..\r\n"),
        ("a\n.\nQUIT\n", "a\r\n..\r\nQUIT\r\n"),
        ("a\r.\rb", "a\r\n..\r\nb\r\n"),
        ("a\r\n.\r\nb\r\n", "a\r\n..\r\nb\r\n"),
        ("a\n\r.\r\n", "a\r\n\r\n..\r\n"),
    ] {
        assert_eq!(String::from_utf8(stuffed(message.as_bytes())).expect("is text"), sent, "{message:?}");
    }
}

/// Bytes of which most are among these few: a choice per byte by `prop_oneof!` takes most of a test's time.
fn often(few: &'static [u8], length: std::ops::Range<usize>) -> impl Strategy<Value = Vec<u8>> {
    let often = move |byte: u8| if byte < 220 { few[usize::from(byte) % few.len()] } else { byte };
    proptest::collection::vec(any::<u8>(), length).prop_map(move |bytes| bytes.into_iter().map(often).collect())
}

proptest! {
    #[test]
    fn no_bytes_of_a_relay_break_the_reading(bytes in often(b"250- \r\n", 0..800)) {
        if let Ok(reply) = read(&bytes) {
            prop_assert!((200..600).contains(&reply.code) && reply.text.iter().all(|line| !line.contains(char::is_control)));
        }
    }

    #[test]
    fn whatever_is_sent_has_one_end_and_only_whole_lines(message in often(b"\r\n.", 0..200)) {
        let sent = stuffed(&message);
        prop_assert!(!sent.windows(3).any(|w| w == b"\n.\r") && !sent.starts_with(b".\r\n"));
        for (at, byte) in sent.iter().enumerate() {
            prop_assert!(*byte != b'\n' || at > 0 && sent[at - 1] == b'\r');
            prop_assert!(*byte != b'\r' || sent.get(at + 1) == Some(&b'\n'));
        }
    }
}

/// Reads one reply out of these bytes, after which the relay closes.
fn read(bytes: &[u8]) -> Result<Reply, Cause> {
    use std::io::Write;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let (ours, mut theirs) = std::os::unix::net::UnixStream::pair().expect("a pair");
        ours.set_nonblocking(true).expect("is set");
        theirs.write_all(bytes).expect("fits the socket");
        drop(theirs);
        let limits = Limits::default();
        let stream = Some(Stream::Unix(tokio::net::UnixStream::from_std(ours).expect("is taken")));
        let deadline = Instant::now() + limits.session;
        let mut dialogue = Dialogue { stream, buffer: Vec::new(), transcript: Vec::new(), limits, deadline, stage: Stage::Mail };
        let reply = dialogue.reply(limits.command).await;
        assert!(dialogue.buffer.len() <= 2 * limits.line + 24, "{}", dialogue.buffer.len());
        reply
    })
}

#[test]
fn replies_are_read_as_the_rfc_has_them_and_nothing_else_is_one() {
    for (bytes, code, text) in [
        ("250 ok\r\n", 250, "ok"),
        ("250\r\n", 250, ""),
        ("250-a\r\n250-b\r\n250 c\r\n", 250, "a b c"),
        ("421 bare line feed\n", 421, "bare line feed"),
        ("550 a\x07\x1b[31mb\r\n250 next", 550, "a  [31mb"),
    ] {
        let reply = read(bytes.as_bytes()).expect(bytes);
        assert_eq!((reply.code, reply.text.join(" ").as_str()), (code, text));
    }
    let (long, many) = (format!("250 {}\r\n", "x".repeat(1000)), "250-x\r\n".repeat(101));
    for bytes in [
        "",
        "250 half",
        "250-a\r\n",
        "ok\r\n",
        "25\r\n",
        "2500 x\r\n",
        "150 x\r\n",
        "650 x\r\n",
        "250_x\r\n",
        "250-a\r\n550 b\r\n",
        &long,
        &many,
    ] {
        assert!(read(bytes.as_bytes()).is_err(), "{bytes:.40}");
    }
}

#[test]
fn an_address_cannot_carry_a_command() {
    for address in ["sysadmin@example.org", "a.b+c@localhost", "x@10.0.0.1"] {
        assert!(is_address(address), "{address}");
    }
    for address in ["", "a", "@b", "a@", "a b@c", "a@b>\r\nDATA", "a@b\r\n", "<a@b>", "a@b@c", "\"a b\"@c", "ä@b", "a..b@c", ".a@b", "a@b."]
    {
        assert!(Envelope::new("ok@example.org", address).is_err(), "{address:?}");
    }
}

#[test]
fn what_a_reply_means_depends_on_when_it_comes() {
    for (stage, code, verdict) in [
        (Stage::Banner, 421, Verdict::Dead),
        (Stage::Banner, 554, Verdict::Held),
        (Stage::Hello, 451, Verdict::Dead),
        (Stage::Starttls, 454, Verdict::Dead),
        (Stage::Auth, 535, Verdict::Held),
        (Stage::Auth, 454, Verdict::Dead),
        (Stage::Mail, 550, Verdict::Held),
        (Stage::Mail, 530, Verdict::Held),
        (Stage::Mail, 452, Verdict::Later),
        (Stage::Rcpt, 450, Verdict::Later),
        (Stage::Rcpt, 550, Verdict::Never),
        (Stage::Rcpt, 552, Verdict::Later),
        (Stage::Rcpt, 421, Verdict::Dead),
        (Stage::Data, 554, Verdict::Message),
        (Stage::Dot, 554, Verdict::Message),
        (Stage::Dot, 451, Verdict::Later),
        (Stage::Dot, 421, Verdict::Dead),
        (Stage::Data, 250, Verdict::Dead),
    ] {
        let source = Cause::Reply(Reply { code, text: Vec::new() });
        let error = SmtpError { relay: "relay:25".to_owned(), stage, source, transcript: Vec::new() };
        assert_eq!(error.verdict(), verdict, "{stage:?} {code}");
    }
}
