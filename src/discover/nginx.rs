//! What nginx's configuration says: which sites there are, where they redirect to, where its counters are.

use std::net::IpAddr;
use std::path::Path;

use crate::probe::nginx::configuration::{Configuration, directives};

/// The most bytes of all files together, and the most servers.
const MAX_BYTES: usize = 4 << 20;
const MAX_SERVERS: usize = 200;

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listen {
    /// An address of its own; nothing for all of the host.
    pub address: Option<IpAddr>,
    /// The port.
    pub port: u16,
    /// Whether it speaks TLS there.
    pub tls: bool,
    /// Whether it answers there for names that no server has.
    pub default: bool,
}

/// A `server` block.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Server {
    /// Where it listens.
    pub listens: Vec<Listen>,
    /// Its names that are whole: neither patterns nor `_`.
    pub names: Vec<String>,
    /// Where all of it redirects to, with nginx's variables.
    pub redirect: Option<String>,
    /// The path of `stub_status`, where that is an exact one.
    pub status: Option<String>,
}

/// Reads a configuration with all that it includes; beside the servers what could not be read, with the command that opens
/// it.
pub fn look(file: &Path) -> (Vec<Server>, Vec<String>) {
    let found = Configuration::look(&[file.to_owned()]);
    let (mut servers, mut left) = (Vec::new(), MAX_BYTES);
    for (path, (length, _)) in &found.files {
        let length = usize::try_from(*length).unwrap_or(usize::MAX);
        if length > left || servers.len() >= MAX_SERVERS {
            break;
        }
        left -= length;
        // One that went away meanwhile is as if it had not been there.
        if let Ok(bytes) = std::fs::read(path) {
            servers.extend(parse(&String::from_utf8_lossy(&bytes)));
        }
    }
    servers.truncate(MAX_SERVERS);
    let denied = found.denied.iter().map(|(path, remedy)| format!("{}: {remedy}", path.display())).collect();
    (servers, denied)
}

/// Reads the `server` blocks of one file.
pub fn parse(text: &str) -> Vec<Server> {
    let (mut servers, mut blocks) = (Vec::new(), Vec::<Vec<String>>::new());
    let mut server: Option<(usize, Server)> = None;
    for (words, end) in directives(text) {
        let words_of: Vec<&str> = words.iter().map(String::as_str).collect();
        match (end, words_of.as_slice()) {
            ('{', _) => {
                // The `server` of an `upstream` is a line, not a block.
                if words_of == ["server"] && server.is_none() {
                    server = Some((blocks.len(), Server::default()));
                }
                blocks.push(words);
            }
            ('}', _) => {
                drop(blocks.pop());
                if server.as_ref().is_some_and(|(depth, _)| *depth >= blocks.len()) {
                    servers.extend(server.take().map(|(_, server)| server));
                }
            }
            (_, words) => {
                if let Some((depth, server)) = &mut server {
                    server.add(words, &blocks[(*depth + 1).min(blocks.len())..]);
                }
            }
        }
    }
    servers
}

impl Server {
    /// Takes a directive that stands within these blocks of the server.
    fn add(&mut self, words: &[&str], within: &[Vec<String>]) {
        let location: Option<Vec<&str>> = within.first().map(|block| block.iter().map(String::as_str).collect());
        match (words, location.as_deref()) {
            (["listen", what, options @ ..], None) => self.listens.extend(listen(what, options)),
            (["server_name", names @ ..], None) => {
                self.names.extend(names.iter().filter(|name| is_name(name)).map(|name| (*name).to_owned()))
            }
            (["return", code, url], None | Some(["location", "/"]))
                if within.len() <= 1 && matches!(*code, "301" | "302" | "307" | "308") =>
            {
                self.redirect = Some((*url).to_owned());
            }
            (["stub_status", ..], Some(["location", "=", path])) => self.status = Some((*path).to_owned()),
            _ => {}
        }
    }
}

fn listen(what: &str, options: &[&str]) -> Option<Listen> {
    let of = |flag: &str| options.contains(&flag);
    let (host, port) = match what.parse::<u16>() {
        Ok(port) => ("*", port),
        Err(_) => match what.rsplit_once(':').filter(|(_, port)| port.parse::<u16>().is_ok()) {
            Some((host, port)) => (host, port.parse().ok()?),
            None => (what, 80),
        },
    };
    let address = host.trim_matches(['[', ']']).parse::<IpAddr>().ok().filter(|ip| !ip.is_unspecified());
    // A name, or unix:/path, is left out: who would be asked is not known.
    let known = address.is_some() || matches!(host, "*" | "0.0.0.0" | "[::]");
    known.then(|| Listen { address, port, tls: of("ssl"), default: of("default_server") || of("default") })
}

/// Says whether a name of a server is a whole one that a browser could ask for.
pub fn is_name(name: &str) -> bool {
    let fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.');
    !name.is_empty()
        && name.len() <= 253
        && name.chars().all(fine)
        && name.contains(|c: char| c.is_ascii_alphabetic())
        && !name.starts_with(['.', '-'])
}

impl Server {
    /// Returns where a page of this name redirects to, where that can be told from the configuration alone.
    pub fn redirects_to(&self, name: &str) -> Option<String> {
        let target = self.redirect.as_ref()?.replace("$host", name).replace("$server_name", name).replace("$request_uri", "/");
        let target = if target.matches('/').count() == 2 { format!("{target}/") } else { target };
        (target.starts_with("https://") && !target.contains(['$', '"', ' '])).then_some(target)
    }
}

/// Returns the URL at which `stub_status` answers, and no site instead of it: its server has the name that is asked for, or
/// answers for every name.
pub fn status(servers: &[Server]) -> Option<String> {
    servers.iter().find_map(|server| {
        let path = server.status.as_ref().filter(|path| path.starts_with('/') && path.chars().all(|c| c.is_ascii_graphic() && c != '"'))?;
        server.listens.iter().filter(|listen| !listen.tls && listen.address.is_none_or(|ip| ip.is_loopback())).find_map(|listen| {
            let others = servers.iter().filter(|other| other.listens.iter().any(|other| other.port == listen.port)).count();
            let named = ["localhost", "127.0.0.1"].into_iter().find(|name| server.names.iter().any(|own| own == name));
            let host = named.or((listen.default || others == 1).then_some("127.0.0.1"))?;
            let port = if listen.port == 80 { String::new() } else { format!(":{}", listen.port) };
            Some(format!("http://{host}{port}{path}"))
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As CourSys and Debian have it.
    const SITE: &str = r#"
upstream app { server 127.0.0.1:8000 fail_timeout=0; }
server {
    listen 80 default_server; listen [::]:80 default_server;
    server_name _;
    return 301 https://coursys.sfu.ca$request_uri;
    location = /nginx_status { stub_status on; allow 127.0.0.1; deny all; }
}
server {
    listen 80;
    server_name coursys.sfu.ca courses.cs.sfu.ca *.old.sfu.ca ~^www\d+$;
    location / { return 301 https://$host$request_uri; }
}
server {
    listen 443 ssl http2; # the site
    server_name coursys.sfu.ca;
    ssl_certificate /etc/letsencrypt/live/coursys/fullchain.pem;
    location / { if ($maintenance) { return 302 /sorry; } proxy_pass http://app; }
    location /old { return 301 /new; }
}
server { listen unix:/run/x.sock; listen example:81; listen 127.0.0.1:8080; server_name localhost; }
"#;

    #[test]
    fn the_servers_of_a_site_are_read() {
        let servers = parse(SITE);
        assert_eq!(servers.len(), 4);
        assert_eq!(servers[1].names, ["coursys.sfu.ca", "courses.cs.sfu.ca"]);
        assert_eq!(servers[1].redirects_to("coursys.sfu.ca").as_deref(), Some("https://coursys.sfu.ca/"));
        assert_eq!(servers[2].listens, [Listen { address: None, port: 443, tls: true, default: false }]);
        assert_eq!(servers[2].redirect, None, "neither of an if nor of another location");
        assert_eq!(servers[3].listens.len(), 1);
        assert_eq!(status(&servers).as_deref(), Some("http://127.0.0.1/nginx_status"));
        for length in (0..SITE.len()).filter(|length| SITE.is_char_boundary(*length)) {
            parse(&SITE[..length]);
        }
    }

    #[test]
    fn counters_that_only_a_site_could_answer_for_are_not_asked() {
        let two = "server { listen 80; server_name a.org; location = /s { stub_status; } } server { listen 80; server_name b.org; }";
        assert_eq!(status(&parse(two)), None);
        assert_eq!(status(&parse(&two.replace("a.org", "localhost"))).as_deref(), Some("http://localhost/s"));
        assert_eq!(
            status(&parse("server { listen 127.0.0.1:8081; location = /s { stub_status; } }")).as_deref(),
            Some("http://127.0.0.1:8081/s")
        );
    }
}
