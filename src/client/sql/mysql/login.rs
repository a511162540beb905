//! The login ("Connection Phase"): greeting, encryption, password in the way that the account wants it.

use ring::digest;

use super::wire::{Fields, Wire};
use super::{SqlError, refused};
use crate::client::net::{self, Endpoint, NetError, Phases, Stream};
use crate::client::sql::{MAX_ANSWER, Settings};
use crate::model::{Reason, Secret};

/// `CLIENT_LONG_PASSWORD | CLIENT_LONG_FLAG | CLIENT_PROTOCOL_41 | CLIENT_TRANSACTIONS | CLIENT_SECURE_CONNECTION |
/// CLIENT_PLUGIN_AUTH`.
const CAPABILITIES: u32 = 0x1 | 0x4 | 0x200 | 0x2000 | 0x8000 | 0x8_0000;
/// `CLIENT_CONNECT_WITH_DB`.
const WITH_DATABASE: u32 = 0x8;
/// `CLIENT_SSL`.
const SSL: u32 = 0x800;
/// `utf8mb4_general_ci`.
const CHARSET: u8 = 45;
/// The most packets that a server sends before it has decided about a login.
const MAX_PACKETS: usize = 6;
/// The longest name, and the longest password, in bytes.
const MAX_TEXT: usize = 250;

/// What the server says first.
struct Greeting {
    version: String,
    capabilities: u32,
    plugin: String,
    scramble: Vec<u8>,
}

/// Logs in, and returns the connection with the server's version.
pub(super) async fn log_in(stream: Stream, settings: &Settings, password: Option<&Secret>) -> Result<(Wire, String), SqlError> {
    let mut wire = Wire::new(stream, MAX_ANSWER);
    let packet = wire.packet().await?;
    let greeting = match packet.as_slice() {
        [0x0a, rest @ ..] => greeting(rest)?,
        [0xff, rest @ ..] => return Err(refused(rest, true)),
        other => {
            let shown = String::from_utf8_lossy(&other[..other.len().min(40)]).into_owned();
            return Err(SqlError::Protocol(format!("expected MySQL's greeting, found {shown:?}")));
        }
    };
    // Why the login is made without its password, and refused.
    let mut hopeless = None;
    let mut capabilities = CAPABILITIES;
    if !settings.database.is_empty() {
        capabilities |= WITH_DATABASE;
    }
    let mut private = matches!(settings.endpoint, Endpoint::Unix(_));
    if let Some(trust) = &settings.tls {
        if greeting.capabilities & SSL == 0 {
            hopeless = Some(login(Reason::Tls, "this MySQL does not offer encryption (see have_ssl, ssl_cert)"));
        } else {
            capabilities |= SSL;
            wire.write(&head(capabilities)).await?;
            let (stream, number, room) = wire.split();
            let (stream, served) = net::tls_observed(stream, settings.host(), trust, &mut Phases::default()).await?;
            wire = Wire::joined(stream, number, room);
            private = true;
            if let Err(verdict) = served.verdict {
                hopeless = Some(NetError::Certificate { name: settings.host().to_owned(), verdict }.into());
            }
        }
    }
    let password = password.filter(|_| hopeless.is_none());
    let mut plugin = greeting.plugin.clone();
    let answer = match reply(&plugin, &greeting.scramble, password, private) {
        Ok(answer) => answer,
        // The account may want another one, which the server then says.
        Err(_) => {
            plugin = NATIVE.to_owned();
            reply(NATIVE, &greeting.scramble, password, private)?
        }
    };
    let mut body = head(capabilities);
    let text = |text: &str| text.bytes().filter(|byte| *byte != 0).take(MAX_TEXT).chain([0]).collect::<Vec<u8>>();
    body.extend(text(&settings.username));
    body.push(u8::try_from(answer.len()).unwrap_or(0));
    body.extend(answer.iter().take(255));
    if capabilities & WITH_DATABASE != 0 {
        body.extend(text(&settings.database));
    }
    body.extend(text(&plugin));
    wire.write(&body).await?;
    for _ in 0..MAX_PACKETS {
        let packet = wire.packet().await?;
        match packet.as_slice() {
            [0x00, ..] => {
                return match hopeless {
                    None => Ok((wire, greeting.version)),
                    // An account without a password.
                    Some(why) => {
                        wire.begin(MAX_ANSWER);
                        wire.write(super::QUIT).await?;
                        Err(why)
                    }
                };
            }
            [0xff, rest @ ..] => return Err(hopeless.unwrap_or_else(|| refused(rest, true))),
            // AuthSwitchRequest: another way, with another scramble.
            [0xfe, rest @ ..] => {
                let mut fields = Fields(rest);
                plugin = String::from_utf8_lossy(fields.until_zero()).into_owned();
                let scramble = fields.0.strip_suffix(&[0]).unwrap_or(fields.0);
                let answer = reply(&plugin, scramble, password.filter(|_| hopeless.is_none()), private).unwrap_or_else(|why| {
                    hopeless.get_or_insert(why);
                    Vec::new()
                });
                wire.write(&answer).await?;
            }
            // caching_sha2_password: the server remembers this password; the end follows.
            [0x01, 3] => {}
            // It does not, and wants it as it is.
            [0x01, 4] => {
                let clear = if private { password.map(clear) } else { None };
                if clear.is_none() {
                    hopeless.get_or_insert(login(
                        Reason::Auth,
                        "the account uses caching_sha2_password, for which MySQL wants an encrypted connection: say tls: true, or use its unix socket",
                    ));
                }
                wire.write(&clear.unwrap_or_default()).await?;
            }
            _ => return Err(SqlError::Protocol("expected MySQL's answer to a login, found something else".to_owned())),
        }
    }
    Err(SqlError::Protocol("MySQL does not come to an end with the login".to_owned()))
}

fn login(reason: Reason, text: &str) -> SqlError {
    SqlError::Login { reason, text: text.to_owned() }
}

/// A greeting behind its first byte.
fn greeting(packet: &[u8]) -> Result<Greeting, SqlError> {
    let mut fields = Fields(packet);
    let version: String = String::from_utf8_lossy(fields.until_zero()).chars().take(80).collect();
    fields.bytes(4)?;
    let mut scramble = fields.bytes(8)?.to_vec();
    fields.byte()?;
    let low = fields.short()?;
    fields.byte()?;
    fields.short()?;
    let high = fields.short()?;
    let length = usize::from(fields.byte()?);
    fields.bytes(10)?;
    let rest = fields.bytes(length.saturating_sub(8).max(13).min(fields.0.len()))?;
    scramble.extend_from_slice(rest.strip_suffix(&[0]).unwrap_or(rest));
    let plugin = String::from_utf8_lossy(fields.until_zero()).into_owned();
    Ok(Greeting {
        // MariaDB says that it is a 5.5.5, for replicas that know no 10.
        version: version.strip_prefix("5.5.5-").map_or(version.clone(), str::to_owned),
        capabilities: u32::from(high) << 16 | u32::from(low),
        plugin: if plugin.is_empty() { NATIVE.to_owned() } else { plugin },
        scramble,
    })
}

/// What a request for encryption consists of, and a login begins with.
fn head(capabilities: u32) -> Vec<u8> {
    let mut head = capabilities.to_le_bytes().to_vec();
    head.extend((1u32 << 24).to_le_bytes());
    head.push(CHARSET);
    head.extend([0; 23]);
    head
}

const NATIVE: &str = "mysql_native_password";

/// The password as a plugin wants it; nothing where there is none.
fn reply(plugin: &str, scramble: &[u8], password: Option<&Secret>, private: bool) -> Result<Vec<u8>, SqlError> {
    let Some(password) = password else { return Ok(Vec::new()) };
    let bytes = password.expose().as_bytes();
    if bytes.len() > MAX_TEXT {
        return Err(login(Reason::Auth, "password_file: expected at most 250 bytes"));
    }
    match plugin {
        // SHA1(password) XOR SHA1(scramble, SHA1(SHA1(password)))
        NATIVE => {
            let hash = |parts: &[&[u8]]| hash(&digest::SHA1_FOR_LEGACY_USE_ONLY, parts);
            let once = hash(&[bytes]);
            Ok(xor(&once, &hash(&[scramble, &hash(&[&once])])))
        }
        // SHA256(password) XOR SHA256(SHA256(SHA256(password)), scramble)
        "caching_sha2_password" => {
            let hash = |parts: &[&[u8]]| hash(&digest::SHA256, parts);
            let once = hash(&[bytes]);
            Ok(xor(&once, &hash(&[&hash(&[&once]), scramble])))
        }
        "mysql_clear_password" | "sha256_password" if private => Ok(clear(password)),
        other => {
            let why = if private {
                "which Proctor does not speak"
            } else {
                "which needs an encrypted connection (tls: true), if it is spoken at all"
            };
            let other: String = other.chars().filter(|c| !c.is_control()).take(60).collect();
            Err(login(
                Reason::Auth,
                &format!("the account logs in by {other:?}, {why}: give it mysql_native_password or caching_sha2_password"),
            ))
        }
    }
}

fn clear(password: &Secret) -> Vec<u8> {
    password.expose().bytes().chain([0]).collect()
}

fn hash(algorithm: &'static digest::Algorithm, parts: &[&[u8]]) -> Vec<u8> {
    let mut context = digest::Context::new(algorithm);
    for part in parts {
        context.update(part);
    }
    context.finish().as_ref().to_vec()
}

fn xor(left: &[u8], right: &[u8]) -> Vec<u8> {
    left.iter().zip(right).map(|(left, right)| left ^ right).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_said_as_each_plugin_wants_it_and_never_in_clear_where_others_read_along() {
        let secret = Secret::new("secret".to_owned());
        let scramble: Vec<u8> = (1..=20).collect();
        let hex = |bytes: Vec<u8>| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let said = |plugin, private| reply(plugin, &scramble, Some(&secret), private);
        // By Python's hashlib.
        assert_eq!(hex(said(NATIVE, false).expect("is known")), NATIVE_ORACLE);
        assert_eq!(hex(said("caching_sha2_password", false).expect("is known")), CACHING_ORACLE);
        assert_eq!(said("mysql_clear_password", true).expect("is private"), b"secret\0");
        for plugin in ["mysql_clear_password", "sha256_password", "client_ed25519"] {
            assert_eq!(said(plugin, false).expect_err(plugin).reason(), Reason::Auth);
        }
        assert_eq!(reply(NATIVE, &scramble, None, false).expect("is none"), b"");
    }

    #[test]
    fn a_greeting_is_read_and_half_of_one_is_not() {
        let whole = b"5.5.5-10.11.19-MariaDB\0\x01\0\0\0abcdefgh\0\xfe\xf7\x2d\x02\0\xff\x81\x15\0\0\0\0\0\0\0\0\0\0ijklmnopqrst\0mysql_native_password\0";
        let read = greeting(whole).expect("is whole");
        assert_eq!(
            (read.version.as_str(), read.plugin.as_str(), read.scramble.as_slice()),
            ("10.11.19-MariaDB", NATIVE, &b"abcdefghijklmnopqrst"[..])
        );
        assert_eq!(read.capabilities & SSL, SSL & 0xf7fe);
        for cut in [0, 10, 24, 30, 40] {
            assert!(greeting(&whole[..cut]).is_err(), "{cut}");
        }
    }

    const NATIVE_ORACLE: &str = "b32bb3a583e1340c0a1108d58b1be49781ad8c2f";
    const CACHING_ORACLE: &str = "746ebe205d56a0707acb3e796e834e0dd7b1d61743b26bd5202c7a623230c7c9";
}
