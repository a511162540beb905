//! A message as a mail: MIME by lettre, over SMTP of ours.
//!
//! Everything in it may hold what a hostile service said. So every value becomes one cleaned, bounded line, only the
//! declared headers exist, bodies are quoted-printable or base64, and the whole mail is ASCII in lines of at most 998
//! bytes: no relay needs an extension for it.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use lettre::message::header::{ContentTransferEncoding, ContentType, HeaderName, HeaderValue};
use lettre::message::{Body, Mailbox, MultiPart, SinglePart};
use sha2::{Digest, Sha256};

use super::{Delivery, Message};
use crate::client::net;
use crate::client::secret;
use crate::client::smtp::{Envelope, Limits, Relay, Security, is_address};
use crate::model::decode::{self, Decode};
use crate::model::yaml::Node;
use crate::model::{Problems, Timestamp};

/// The longest value of a header, in bytes: with its name it stays below the 998 of RFC 5322 even unfolded.
const MAX_VALUE: usize = 900;
/// The most message ids in `References`.
const MAX_REFERENCES: usize = 20;

crate::config_struct! {
    /// The relay that takes our mail.
    pub struct SmtpConfig {
        /// Its name or address; with TLS also the name that its certificate must cover.
        host: String,
        /// Its port: 25 for a relay that knows this host, 587 for `starttls` with a login, 465 for `tls`.
        port: u16 = "25",
        /// How the connection is encrypted: `none`, `starttls` (without it nothing is sent), `tls` (from the first byte).
        tls: Security = "none",
        /// User name; needs `password_file`, and TLS unless the relay is this very host.
        username: Option<String>,
        /// File with the password, read at every use.
        password_file: Option<PathBuf>,
        /// How Proctor names itself to the relay; the default is the name of this host.
        hello: Option<String>,
        /// PEM file with the authorities that may sign the relay's certificate; the default is what the host trusts.
        ca_file: Option<PathBuf>,
    }
}

impl SmtpConfig {
    /// Checks what one key says against another; reads and connects to nothing.
    ///
    /// # Errors
    /// What does not fit.
    pub fn check(&self) -> Result<(), String> {
        let host_ok = net::Endpoint::parse(&net::Endpoint::Tcp { host: self.host.clone(), port: self.port }.to_string()).is_some();
        let local = net::Endpoint::Tcp { host: self.host.clone(), port: self.port }.is_local();
        match (&self.username, &self.password_file) {
            _ if !host_ok => Err(format!("expected a host name and a port, found {:?} and {}", self.host, self.port)),
            (Some(_), None) => Err("username is set, but no password_file".to_owned()),
            (None, Some(_)) => Err("password_file is set, but no username".to_owned()),
            (Some(_), Some(_)) if self.tls == Security::None && !local => {
                Err("the password would be sent without encryption to another host: set tls: starttls or tls: tls".to_owned())
            }
            _ if self.hello.as_deref().is_some_and(|name| !is_hello(name)) => {
                Err(format!("expected a host name or [address] in hello, found {:?}", self.hello.as_deref().unwrap_or_default()))
            }
            _ => Ok(()),
        }
    }

    /// Reads password and authorities and returns how to talk to the relay.
    ///
    /// # Errors
    /// What does not fit or cannot be read, with the file's name.
    pub fn relay(&self, limits: Limits) -> Result<Relay, String> {
        self.check()?;
        let said = |error: secret::SecretError| net::chain(&error);
        let login = match (&self.username, &self.password_file) {
            (Some(user), Some(path)) => Some((user.clone(), secret::read(path).map_err(said)?)),
            _ => None,
        };
        // A NUL separates user name and password in AUTH PLAIN.
        if login.as_ref().is_some_and(|(user, password)| user.contains('\0') || password.expose().contains('\0')) {
            return Err("user name or password holds a NUL, which SMTP cannot carry".to_owned());
        }
        Ok(Relay {
            host: self.host.clone(),
            port: self.port,
            security: self.tls,
            hello: self.hello.clone().unwrap_or_else(host_name),
            login,
            trust: secret::trust(self.ca_file.as_deref()).map_err(said)?,
            limits,
        })
    }
}

fn is_hello(name: &str) -> bool {
    let inner = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
    !inner.is_empty() && inner.len() <= 253 && inner.chars().all(|c| c.is_ascii_alphanumeric() || "-._:".contains(c))
}

/// Returns the name of this host as the kernel knows it.
fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    Some(name.trim()).filter(|name| is_hello(name)).unwrap_or("localhost").to_owned()
}

/// An address with an optional name: `Sysadmin <sysadmin@example.org>`, as Django's ADMINS have it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// The name, empty where there is none.
    pub name: String,
    /// `local@domain`, ASCII.
    pub address: String,
}

impl Address {
    /// Parses `local@domain`, `Name <local@domain>` or `"Name" <local@domain>`.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        let (name, address) = match text.strip_suffix('>') {
            Some(rest) => rest.rsplit_once('<')?,
            None => ("", text),
        };
        let name = name.trim();
        let mut clean = line(name);
        if let Some(quoted) = name.strip_prefix('"').and_then(|name| name.strip_suffix('"')) {
            // Within quotes a backslash says that the next character stands for itself (RFC 5322 §3.2.4).
            let mut escaped = false;
            clean = line(quoted)
                .chars()
                .filter(|c| {
                    escaped = *c == '\\' && !escaped;
                    !escaped
                })
                .collect();
        }
        is_address(address).then(|| Self { name: clean, address: address.to_owned() })
    }

    /// Returns what stands behind the `@`.
    pub fn domain(&self) -> &str {
        self.address.rsplit_once('@').map_or("localhost", |(_, domain)| domain)
    }

    fn to_lettre(&self) -> Result<Mailbox, ComposeError> {
        let address = self.address.parse().map_err(|_| ComposeError(format!("{:?} is no mail address", self.address)))?;
        Ok(Mailbox::new(Some(self.name.clone()).filter(|name| !name.is_empty()), address))
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.name.is_empty() { f.write_str(&self.address) } else { write!(f, "{} <{}>", self.name, self.address) }
    }
}

impl Decode for Address {
    const EXPECTED: &'static str = "a mail address such as Sysadmin <sysadmin@example.org>";
    fn decode(node: &Node, problems: &mut Problems) -> Option<Self> {
        let address = String::decode(node, &mut Problems::default()).and_then(|text| Self::parse(&text));
        if address.is_none() {
            decode::mismatch(node, Self::EXPECTED, problems);
        }
        address
    }
}

/// Who writes, the same for every mail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Author {
    /// `notify.from`: header and envelope.
    pub from: Address,
    /// The site's name, for `List-Id`.
    pub site: String,
}

/// A mail that cannot be built.
#[derive(Debug, thiserror::Error)]
#[error("the mail cannot be built: {0}")]
pub struct ComposeError(String);

/// Builds envelope and bytes of a mail; the same delivery gives the same bytes at every retry.
///
/// # Errors
/// An address that is none.
pub fn compose(author: &Author, to: &str, delivery: &Delivery) -> Result<(Envelope, Vec<u8>), ComposeError> {
    let Message { message_id, in_reply_to, references, subject, text, html, headers, important, .. } = &delivery.message;
    let to = Address::parse(to).ok_or_else(|| ComposeError(format!("{:?} is no mail address", to.chars().take(80).collect::<String>())))?;
    let envelope = Envelope::new(&author.from.address, &to.address).map_err(ComposeError)?;

    let mut builder = lettre::Message::builder()
        .from(author.from.to_lettre()?)
        .to(to.to_lettre()?)
        .date(system_time(delivery.queued_at))
        .message_id(Some(bracketed(message_id)))
        .raw_header(header("Subject", subject)?);
    if let Some(id) = in_reply_to {
        builder = builder.raw_header(HeaderValue::dangerous_new_pre_encoded(name("In-Reply-To")?, bracketed(id), bracketed(id)));
    }
    if !references.is_empty() {
        // The root and the newest matter; ids stand on a line each, so that no line grows too long.
        let cut = references.len().saturating_sub(MAX_REFERENCES - 1).max(1);
        let ids: Vec<String> = references.iter().take(1).chain(references.iter().skip(cut)).map(|id| bracketed(id)).collect();
        let folded = ids.join("\r\n ");
        builder = builder.raw_header(HeaderValue::dangerous_new_pre_encoded(name("References")?, ids.join(" "), folded));
    }
    let site: String = author.site.chars().map(|c| if c.is_ascii_alphanumeric() || c == '-' { c } else { '-' }).take(60).collect();
    for (name, value) in [
        ("Auto-Submitted", "auto-generated".to_owned()),
        ("X-Auto-Response-Suppress", "All".to_owned()),
        ("List-Id", format!("<alerts.{}.{}>", if site.is_empty() { "site" } else { &site }, author.from.domain())),
    ] {
        builder = builder.raw_header(header(name, &value)?);
    }
    if *important {
        builder = builder.raw_header(header("X-Priority", "1")?).raw_header(header("Importance", "high")?);
    }
    // Names are ours; whatever else got in among them must not stand in for an address or a date.
    for (name, value) in headers.iter().filter(|(name, _)| name.get(..2).is_some_and(|begin| begin.eq_ignore_ascii_case("X-"))) {
        if name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-') && name.len() <= 70 {
            builder = builder.raw_header(header(name, value)?);
        }
    }

    let digest = Sha256::digest(delivery.id.as_bytes());
    let boundary: String = digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
    // RFC 2046 §5.1.4: the last part is the best one.
    let parts = MultiPart::alternative()
        .boundary(format!("proctor-{boundary}"))
        .singlepart(part(ContentType::TEXT_PLAIN, text))
        .singlepart(part(ContentType::TEXT_HTML, html));
    let mail = builder.multipart(parts).map_err(|error| ComposeError(error.to_string()))?;
    Ok((envelope, mail.formatted()))
}

/// Encodes a body: quoted-printable, so that a text stays readable in a spool, or base64 where that is much shorter.
fn part(kind: ContentType, text: &str) -> SinglePart {
    let clean = |c: char| if c.is_control() && c != '\n' && c != '\t' { ' ' } else { c };
    let text: String = text.replace("\r\n", "\n").chars().map(clean).collect();
    let foreign = text.bytes().filter(|byte| !byte.is_ascii()).count();
    let encoding = if foreign * 6 > text.len() { ContentTransferEncoding::Base64 } else { ContentTransferEncoding::QuotedPrintable };
    // These two encodings take any bytes.
    let body = Body::new_with_encoding(text, encoding).unwrap_or_else(|_| Body::new(String::new()));
    SinglePart::builder().header(kind).body(body)
}

fn name(name: &str) -> Result<HeaderName, ComposeError> {
    HeaderName::new_from_ascii(name.to_owned()).map_err(|_| ComposeError(format!("{name:?} is no name of a header")))
}

fn header(header: &str, value: &str) -> Result<HeaderValue, ComposeError> {
    Ok(HeaderValue::new(name(header)?, line(value)))
}

/// Makes one line of at most [`MAX_VALUE`] bytes: control characters and separators of lines become spaces, and what
/// looks like an encoded word of RFC 2047 no longer does.
fn line(text: &str) -> String {
    let mut clean = String::new();
    for c in text.trim().replace("=?", "= ?").chars() {
        let c = if c.is_control() || matches!(c, '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}') {
            ' '
        } else {
            c
        };
        if clean.len() + c.len_utf8() > MAX_VALUE {
            break;
        }
        clean.push(c);
    }
    clean.trim().to_owned()
}

/// Returns a message id in its brackets, with nothing in it that ends it.
fn bracketed(id: &str) -> String {
    let id: String = id.chars().filter(|c| c.is_ascii_graphic() && !matches!(c, '<' | '>' | '(' | ')' | '"' | '\\')).take(250).collect();
    format!("<{id}>")
}

/// Within the years that a `Date` can hold.
fn system_time(at: Timestamp) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_millis(u64::try_from(at.0).unwrap_or(0).min(253_402_300_799_000))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_people_and_programs_write_them() {
        for (text, name, address) in [
            ("a@x.org", "", "a@x.org"),
            (" Sys Admin <a@x.org> ", "Sys Admin", "a@x.org"),
            ("\"Admin, Sys\" <a@x.org>", "Admin, Sys", "a@x.org"),
            (r#""say \"hi\" and \\" <a@x.org>"#, r#"say "hi" and \"#, "a@x.org"),
            ("A\r\nBcc: b <a@x.org>", "A  Bcc: b", "a@x.org"),
        ] {
            assert_eq!(Address::parse(text), Some(Address { name: name.into(), address: address.into() }), "{text:?}");
        }
        for text in ["", "<>", "a@x.org>", "A <a@x.org> b", "A <a@x\r\n.org>", "jürgen@x.org"] {
            assert_eq!(Address::parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn settings_that_do_not_fit_are_said_before_anything_is_sent() {
        for (yaml, said) in [
            ("{host: localhost}", None),
            ("{host: localhost, username: u, password_file: /p}", None),
            ("{host: m.example.org, tls: starttls, username: u, password_file: /p}", None),
            ("{host: m.example.org, username: u, password_file: /p}", Some("without encryption")),
            ("{host: localhost, username: u}", Some("no password_file")),
            ("{host: localhost, password_file: /p}", Some("no username")),
            ("{host: 'a b'}", Some("expected a host name")),
            ("{host: localhost, hello: \"x\\r\\nMAIL\"}", Some("hello")),
        ] {
            let config: SmtpConfig = crate::model::decode::from_text("f", yaml).expect(yaml);
            let found = config.check().err();
            assert!(found.as_deref().is_none() == said.is_none(), "{yaml}: {found:?}");
            assert!(found.unwrap_or_default().contains(said.unwrap_or_default()), "{yaml}");
        }
    }
}
