//! Databases: those that listen here, and the one that Django names elsewhere.

use std::path::Path;

use super::super::django::Database;
use super::super::sockets::{At, Listener, Process};
use super::ports::{Kind, is_here};
use super::{Plan, is_word, quoted};

/// A server on this host, by its port and its sockets.
struct Server<'a> {
    postgres: bool,
    /// Whether it is MariaDB for sure.
    maria: bool,
    owner: Option<&'a Process>,
    tcp: Option<&'a At>,
    unix: Option<&'a At>,
}

impl Plan<'_> {
    pub(super) fn databases(&mut self, all: &[(Kind, &Listener)]) {
        let mut servers: Vec<Server<'_>> = Vec::new();
        for (kind, listener) in all.iter().filter(|(kind, _)| matches!(kind, Kind::Postgres | Kind::Mysql)) {
            let (postgres, at) = (*kind == Kind::Postgres, &listener.at);
            let maria = listener.owner.as_ref().is_some_and(|owner| owner.name == "mariadbd");
            let owner = listener.owner.as_ref();
            let of_one =
                |server: &&mut Server<'_>| if owner.is_some() { server.owner == owner } else { port(server.tcp) == port(Some(at)) };
            let same = servers.iter_mut().find(|server| server.postgres == postgres && of_one(server));
            match (same, at) {
                (Some(server), At::Tcp(_)) => server.tcp = server.tcp.or(Some(at)),
                (Some(server), At::Unix(_)) => server.unix = server.unix.or(Some(at)),
                (None, At::Tcp(_)) => servers.push(Server { postgres, maria, owner, tcp: Some(at), unix: None }),
                (None, At::Unix(_)) => servers.push(Server { postgres, maria, owner, tcp: None, unix: Some(at) }),
            }
        }
        for server in servers {
            self.database(&server);
        }
        let Some(site) =
            self.settings().and_then(|settings| settings.databases.iter().find(|database| database.alias == "default")).cloned()
        else {
            return;
        };
        let through = site.port.parse().ok().filter(|_| is_here(&site.host));
        if let Some((_, tunnel)) = self.names.tunnels.iter().find(|(port, _)| Some(*port) == through) {
            self.names.database.named = Some(tunnel.clone());
        } else if !is_here(&site.host) && !site.host.starts_with('/') && is_word(&site.host) {
            self.elsewhere(&site);
        }
    }

    /// Returns the database of Django that is behind a server.
    fn of_site(&self, server: &Server<'_>) -> Option<&Database> {
        let engine = if server.postgres { ["postg", "pgsql"] } else { ["mysql", "maria"] };
        let usual = if server.postgres { 5432 } else { 3306 };
        let fits = |database: &&Database| {
            // A socket's folder, or for MySQL the socket itself.
            let socket = |path: &str| matches!(server.unix, Some(At::Unix(unix)) if unix == Path::new(path) || unix.parent() == Some(Path::new(path)));
            let here = is_here(&database.host) || socket(&database.host);
            let at = database.port.parse().unwrap_or(usual);
            let known = port(server.tcp.or(server.unix));
            // The socket of a MySQL names no port.
            here && engine.iter().any(|engine| database.engine.contains(engine)) && known.is_none_or(|known| known == at)
        };
        let databases = &self.settings()?.databases;
        databases.iter().filter(fits).min_by_key(|database| database.alias != "default")
    }

    fn database(&mut self, server: &Server<'_>) {
        let Some(at) = server.tcp.or(server.unix) else { return };
        let site = self.of_site(server).cloned();
        let (kind, name) = if server.postgres { ("postgres", "PostgreSQL") } else { ("mysql", "MySQL") };
        let about = format!("{name} at {at}");
        let named = site.as_ref().map(|site| site.name.clone()).filter(|name| !name.is_empty());
        let (secret, there) = self.secret(kind);
        let inside = self.inside(at);
        // By its socket in the file system the server knows the user without a password.
        let socket = server.unix.filter(|_| inside.is_none() && (server.postgres || (server.maria && at_socket(server.unix))));
        let user = if socket.is_some() { self.facts.user.0.clone() } else { "proctor".to_owned() };
        let mut body = format!("{kind}: {{address: {}", quoted(&socket.unwrap_or(at).to_string()));
        if server.postgres {
            body += &format!(", database: {}", quoted(named.as_deref().unwrap_or("postgres")));
        }
        body += &format!(", username: {}", quoted(&user));
        if socket.is_none() {
            body += &format!(", password_file: {}", quoted(&secret));
        }
        body += "}";
        let words = if server.postgres { "PostgreSQL" } else { "MySQL" };
        if socket.is_none() && there {
            let name =
                self.add(kind_name(kind), body, format!("{about}: whether it lets in, answers and takes writes; locks, connections left"));
            self.remember(name, site.is_some());
            return;
        }
        let name =
            self.add(kind_name(kind), format!("tcp: {{address: {}}}", quoted(&at.to_string())), format!("{about}: whether the port opens"));
        self.remember(name, site.is_some());
        let command = match (server.postgres, socket) {
            (true, Some(socket)) => {
                // A socket elsewhere than usual has to be named.
                let at = match (socket, port(Some(socket))) {
                    (At::Unix(path), port) => {
                        let folder = path
                            .parent()
                            .map(|folder| folder.display().to_string())
                            .filter(|folder| !folder.ends_with("run/postgresql") && is_word(folder));
                        let host = folder.map(|folder| format!(" -h {folder}")).unwrap_or_default();
                        let port = port.filter(|port| *port != 5432).map(|port| format!(" -p {port}")).unwrap_or_default();
                        host + &port
                    }
                    _ => String::new(),
                };
                format!(
                    "sudo -u postgres psql{at} -c 'CREATE ROLE \"{user}\" LOGIN CONNECTION LIMIT 3' -c 'GRANT pg_monitor TO \"{user}\"'"
                )
            }
            (true, None) => {
                let port = port(Some(at)).filter(|port| *port != 5432).map(|port| format!(" -p {port}")).unwrap_or_default();
                let psql = inside.map_or_else(|| format!("sudo -u postgres psql{port}"), |inside| format!("{inside}psql -U postgres"));
                format!(
                    "{} && printf \"CREATE ROLE proctor LOGIN CONNECTION LIMIT 3 PASSWORD '%s'; GRANT pg_monitor TO proctor\" \"$(cat {secret})\" | {psql}",
                    self.make_password(&secret)
                )
            }
            (false, Some(_)) => format!(
                "mysql -e 'CREATE USER {user}@localhost IDENTIFIED VIA unix_socket WITH MAX_USER_CONNECTIONS 3; GRANT PROCESS, REPLICA MONITOR ON *.* TO {user}@localhost'"
            ),
            (false, None) => format!(
                "{} && printf \"CREATE USER proctor@'127.0.0.1' IDENTIFIED BY '%s' WITH MAX_USER_CONNECTIONS 3; GRANT PROCESS, {} ON *.* TO proctor@'127.0.0.1'\" \"$(cat {secret})\" | {}mysql",
                self.make_password(&secret),
                if server.maria { "REPLICA MONITOR" } else { "REPLICATION CLIENT" },
                inside.unwrap_or_default()
            ),
        };
        self.half(
            Some(body),
            format!("{about}: its port, not whether {words} lets in, takes writes, has connections left, who locks whom"),
            command,
        );
    }

    fn remember(&mut self, name: String, of_site: bool) {
        // Of several that fit the first stays.
        if of_site && self.names.database.named.is_none() {
            self.names.database.named = Some(name.clone());
        }
        self.names.database.all.push(name);
    }

    /// The database of the site on another host.
    fn elsewhere(&mut self, site: &Database) {
        let postgres = site.engine.contains("postg") || site.engine.contains("pgsql");
        if !postgres && !site.engine.contains("mysql") {
            return;
        }
        let kind = if postgres { "postgres" } else { "mysql" };
        let port: u16 = site.port.parse().unwrap_or(if postgres { 5432 } else { 3306 });
        let address = quoted(&format!("{}:{port}", site.host));
        let (secret, there) = self.secret(kind);
        let database = if postgres { format!(", database: {}", quoted(&site.name)) } else { String::new() };
        let body = format!("{kind}: {{address: {address}{database}, username: proctor, password_file: {}}}", quoted(&secret));
        let about = format!("the site's database at {}:{port}", site.host);
        if there {
            let name = self.add("database", body, format!("{about}: whether it lets in, answers and takes writes"));
            self.names.database.named = Some(name);
            return;
        }
        // A MySQL whose greeting nobody answers would block this host after a hundred times.
        let tcp = if postgres { format!("tcp: {{address: {address}}}") } else { String::new() };
        let name = self.add("database", tcp, format!("{about}: whether the port opens"));
        self.names.database.named = Some(name);
        let command = format!("{} and make the user there with it as docs/probes/{kind}.md says", self.make_password(&secret));
        self.half(Some(body), format!("{about}: not whether it lets in, answers and takes writes"), command);
    }
}

fn kind_name(kind: &str) -> &str {
    if kind == "postgres" { "postgresql" } else { kind }
}

/// MariaDB knows users by its socket as it is installed; whether this server does is known by its path only.
fn at_socket(unix: Option<&At>) -> bool {
    matches!(unix, Some(At::Unix(path)) if path.ends_with("mysqld/mysqld.sock"))
}

fn port(at: Option<&At>) -> Option<u16> {
    match at? {
        At::Tcp(address) => Some(address.port()),
        At::Unix(path) => path.to_string_lossy().rsplit_once(".s.PGSQL.")?.1.parse().ok(),
    }
}
