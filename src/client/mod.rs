//! Thin bounded clients that several rooms share. Each has limits on what it reads; deadlines are the caller's.

pub mod docker;
pub mod http;
pub mod net;
pub mod secret;
pub mod smtp;
pub mod systemd;

/// Returns the name of a user in `/etc/passwd`.
pub fn user_name(uid: u32) -> Option<String> {
    let users = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    users.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
    })
}
