//! What listens: each port by its owner, and by its number only where that may not be seen.

use std::net::IpAddr;

use super::super::django::{Cache, Place};
use super::super::programs;
use super::super::sockets::{At, Listener};
use super::{MAX_UNKNOWN, MAX_UNSEEN, Plan, is_word, list, quoted};
use crate::probe::tunnel::{self, Dialect};

/// What listens at a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Memcached,
    Tunnel,
    Nginx,
    Gunicorn,
    Postgres,
    Mysql,
    Rabbitmq,
    /// Another port of RabbitMQ or of Erlang.
    Erlang,
    Search,
    Redis,
    Markup,
    /// Of the host or of Proctor itself.
    Own,
    Unknown,
}

/// The usual port of a broker.
pub(super) const AMQP: u16 = 5672;

/// Programs of the host that are no service of the site.
const OWN: [&str; 16] = [
    "proctor",
    "sshd",
    "systemd",
    "init",
    "epmd",
    "dockerd",
    "containerd",
    "chronyd",
    "ntpd",
    "systemd-resolve",
    "cupsd",
    "exim4",
    "master",
    "sendmail",
    "rpcbind",
    "avahi-daemon",
];

impl Plan<'_> {
    pub(super) fn kind(&self, listener: &Listener) -> Kind {
        let name = listener.owner.as_ref().map_or("", |owner| owner.name.as_str());
        let Some(port) = listener.at.port() else { return kind_of_socket(listener) };
        let inside = listener.inside.or_else(|| Some(self.facts.containers.published.get(&port)?.1)).unwrap_or(port);
        if let Some(owner) = &listener.owner {
            for (program, kind) in [("nginx", Kind::Nginx), ("gunicorn", Kind::Gunicorn)] {
                if programs::is(owner, program) {
                    return kind;
                }
            }
        }
        match (name, inside) {
            ("memcached", _) => Kind::Memcached,
            ("ssh" | "autossh", _) => Kind::Tunnel,
            ("postgres", _) => Kind::Postgres,
            ("mariadbd" | "mysqld", _) => Kind::Mysql,
            ("redis-server" | "valkey-server", _) => Kind::Redis,
            (name, _) if self.broker_here() == Some(port) && !OWN.contains(&name) => Kind::Rabbitmq,
            ("beam.smp", AMQP) => Kind::Rabbitmq,
            ("beam.smp", 4369 | 15672 | 15692 | 25672) => Kind::Erlang,
            ("beam.smp", _) if self.is_of_broker(listener) => Kind::Erlang,
            // Django knows what it connects to, also where the owner may not be seen.
            ("" | "docker-proxy", _) if self.database_at(port).is_some() => {
                if self.database_at(port) == Some(Dialect::Postgres) {
                    Kind::Postgres
                } else {
                    Kind::Mysql
                }
            }
            ("java", port) if port == 9200 || self.search_of(port).is_some() => Kind::Search,
            ("" | "docker-proxy", _) if self.is_cache(&listener.at) => Kind::Memcached,
            ("" | "docker-proxy", 11211) => Kind::Memcached,
            ("" | "docker-proxy", 5432) => Kind::Postgres,
            ("" | "docker-proxy", 3306) => Kind::Mysql,
            ("" | "docker-proxy", 5672) => Kind::Rabbitmq,
            ("" | "docker-proxy", 4369 | 15672 | 15692 | 25672) => Kind::Erlang,
            ("" | "docker-proxy", 9200) => Kind::Search,
            ("" | "docker-proxy", 9300) => Kind::Own,
            ("" | "docker-proxy", 6379) => Kind::Redis,
            ("", 22 | 53 | 111 | 25 | 587 | 631) => Kind::Own,
            (name, _) if OWN.contains(&name) => Kind::Own,
            _ if self.is_markup(listener) => Kind::Markup,
            _ => Kind::Unknown,
        }
    }

    /// Says whether a service that renders markup listens there, by its script or its container.
    fn is_markup(&self, listener: &Listener) -> bool {
        let container = || listener.at.port().and_then(|port| self.facts.containers.published.get(&port));
        match &listener.owner {
            Some(owner) if owner.name != "docker-proxy" => programs::markup(owner).is_some(),
            _ => container().is_some_and(|(name, _)| programs::names_markup(name)),
        }
    }

    /// Returns the broker that Django names, where it speaks AMQP.
    pub(super) fn broker(&self) -> Option<&'_ Place> {
        self.settings().and_then(|settings| settings.celery.as_ref()).map(|celery| &celery.broker).filter(|broker| is_amqp(&broker.scheme))
    }

    /// Returns the port of the broker that Django names, where that is one of this host.
    fn broker_here(&self) -> Option<u16> {
        self.broker().filter(|broker| is_here(&broker.host)).map(|broker| broker.port.unwrap_or(AMQP))
    }

    /// Says whether it is another port of a broker that is found by its own.
    fn is_of_broker(&self, listener: &Listener) -> bool {
        let broker = |other: &Listener| other.at.port().is_some_and(|port| port == AMQP || self.broker_here() == Some(port));
        self.facts.listeners.iter().any(|other| other.owner == listener.owner && broker(other))
    }

    /// Says whether it is a memcached that Django names.
    fn is_cache(&self, at: &At) -> bool {
        let memcached = |cache: &&Cache| cache.backend.to_ascii_lowercase().contains("memcache");
        let caches = self.settings().into_iter().flat_map(|settings| &settings.caches);
        caches.filter(memcached).any(|cache| cache.locations.iter().any(|one| named(one, at)))
    }

    /// Returns what Django's database speaks that is at this port of this host.
    fn database_at(&self, port: u16) -> Option<Dialect> {
        let here = self.settings()?.databases.iter().filter(|database| is_here(&database.host));
        let mut here = here.filter_map(|database| {
            let (dialect, usual) = match &database.engine {
                engine if engine.contains("postg") || engine.contains("pgsql") => (Dialect::Postgres, 5432),
                engine if engine.contains("mysql") || engine.contains("maria") => (Dialect::Mysql, 3306),
                _ => return None,
            };
            (database.port.parse().unwrap_or(usual) == port).then_some(dialect)
        });
        here.next()
    }

    pub(super) fn ports(&mut self) {
        let facts = self.facts;
        let all: Vec<(Kind, &Listener)> = facts.listeners.iter().map(|listener| (self.kind(listener), listener)).collect();
        // Tunnels first: others may lead through them.
        for (_, listener) in all.iter().filter(|(kind, _)| *kind == Kind::Tunnel) {
            self.tunnel(listener);
        }
        self.databases(&all);
        let (mut unknown, mut unseen) = (0, Vec::new());
        for (kind, listener) in all {
            match kind {
                Kind::Memcached => self.memcached(&listener.at),
                Kind::Rabbitmq => self.rabbitmq(listener),
                Kind::Search => self.search(&listener.at),
                Kind::Redis => self.redis(&listener.at),
                // Those of the web are looked at by nginx's name.
                Kind::Unknown if listener.owner.is_none() => unseen.extend(listener.at.port().filter(|port| !matches!(port, 80 | 443))),
                Kind::Unknown if listener.at.port().is_some() => {
                    unknown += 1;
                    if unknown <= MAX_UNKNOWN {
                        self.unknown(listener);
                    }
                }
                _ => {}
            }
        }
        if unknown > MAX_UNKNOWN {
            self.found.unseen.push(format!("{} more ports of programs that are not known here", unknown - MAX_UNKNOWN));
        }
        self.unseen(&unseen);
    }

    /// Says of all ports whose owner is not seen in one line: each by itself would hide what is worth reading.
    fn unseen(&mut self, ports: &[u16]) {
        if ports.is_empty() {
            return;
        }
        let named: Vec<String> = ports.iter().take(MAX_UNSEEN).map(u16::to_string).collect();
        let more = if ports.len() > MAX_UNSEEN { " …" } else { "" };
        let (counted, whose) = if ports.len() == 1 { ("port", "it is") } else { ("ports", "they are") };
        self.found.unseen.push(format!(
            "{} {counted} ({}{more}): whose {whose} is not seen; run this command as root",
            ports.len(),
            named.join(", ")
        ));
    }

    fn memcached(&mut self, at: &At) {
        let address = quoted(&at.to_string());
        let name = self.add(
            "memcached",
            format!("memcached: {{address: {address}}}"),
            format!("memcached at {at}: its counters (canary: true would also send a value through it)"),
        );
        let of_site =
            self.settings().is_some_and(|settings| settings.caches.iter().any(|cache| cache.locations.iter().any(|one| named(one, at))));
        if of_site && self.names.cache.named.is_none() {
            self.names.cache.named = Some(name.clone());
        }
        self.names.cache.all.push(name);
    }

    /// Watches a tunnel in the protocol that its far port is known for; by its near end only where that is none.
    fn tunnel(&mut self, listener: &Listener) {
        let (at, Some(port)) = (&listener.at, listener.at.port()) else { return };
        let far_end = listener.owner.as_ref().and_then(|owner| tunnel::far_end(&owner.command, port));
        let far = match &far_end {
            Some((host, port)) => format!("{host}:{port}"),
            None => "an end that its command line does not name".to_owned(),
        };
        let (name, address) = (format!("tunnel-{port}"), quoted(&at.to_string()));
        // Django knows what it speaks through it, whatever the ports.
        let mysql = matches!(far_end, Some((_, 3306))).then_some(Dialect::Mysql);
        let speaks = self.database_at(port).or_else(|| far_end.and_then(|(_, port)| Dialect::of_port(port))).or(mysql);
        // To ask a MySQL costs it a refused login: that is for somebody to decide.
        let name = if let Some(speaks) = speaks.filter(|speaks| *speaks != Dialect::Mysql).map(Dialect::as_str) {
            let body = format!("tunnel: {{address: {address}, speaks: {speaks}}}, interval: 30s");
            self.add(&name, body, format!("ssh tunnel at {at} to {far}: whether its far end says the first bytes of {speaks}"))
        } else {
            let name =
                self.add(&name, format!("tcp: {{address: {address}}}"), format!("ssh tunnel at {at} to {far}: whether its near end opens"));
            let speaks = speaks.unwrap_or(Dialect::Generic);
            let line = format!("tunnel: {{address: {address}, speaks: {}}}, interval: 30s", speaks.as_str());
            let what = format!("ssh tunnel at {at}: its near end, not its far end");
            let how = if speaks == Dialect::Generic {
                "put what it speaks in place of generic, by which silence is a failure (docs/probes/tunnel.md), and take the commented line instead"
            } else {
                "take the commented line instead; what it costs the MySQL: docs/probes/tunnel.md"
            };
            self.half(Some(line), what, how.to_owned());
            name
        };
        self.names.tunnels.push((port, name));
    }

    fn rabbitmq(&mut self, listener: &Listener) {
        let (facts, at) = (self.facts, &listener.at);
        let Some(port) = at.port() else { return };
        let host = if let At::Tcp(address) = at { address.ip().to_string() } else { return };
        let celery = self.settings().and_then(|settings| settings.celery.as_ref());
        let vhost = celery.map(|celery| vhost(&celery.broker.path)).filter(|_| self.broker_here() == Some(port));
        let queues = self.queues();
        let (secret, there) = self.secret("rabbitmq");
        let mut body = format!("rabbitmq: {{host: {}, port: {port}", quoted(&host));
        if let Some(vhost) = vhost.as_ref().filter(|vhost| *vhost != "/") {
            body += &format!(", vhost: {}", quoted(vhost));
        }
        body += &format!(", username: proctor, password_file: {}", quoted(&secret));
        if !queues.is_empty() {
            body += &format!(", queues: {}", list(&queues));
        }
        // The plugin of a container on another port is asked by hand.
        if facts.listeners.iter().any(|other| other.at.port() == Some(15692)) && port == 5672 {
            body += ", prometheus: \"http://127.0.0.1:15692\"";
        }
        body += "}";
        let about = format!("RabbitMQ at {at}");
        if there {
            let name = self.add("rabbitmq", body, format!("{about}: its queues and their consumers, and whether it takes messages"));
            self.remember_broker(name, port);
            return;
        }
        let name =
            self.add("rabbitmq", format!("tcp: {{address: {}}}", quoted(&at.to_string())), format!("{about}: whether the port opens"));
        self.remember_broker(name, port);
        let vhost = vhost.filter(|vhost| is_word(vhost)).unwrap_or_else(|| "/".to_owned());
        let ctl = self.inside(at).unwrap_or_default() + "rabbitmqctl";
        let command = format!(
            "{} && {ctl} add_user proctor < {secret} && {ctl} set_permissions -p {vhost} proctor '^amq\\.gen-.*$' '^(amq\\.default|amq\\.gen-.*|celery\\.pidbox)$' '^(amq\\.gen-.*|celeryev)$'",
            self.make_password(&secret)
        );
        self.half(Some(body), format!("{about}: its port, not its queues, consumers, alarms, and nothing of Celery"), command);
    }

    /// The broker of Celery is the one that Django names, where it names one.
    fn remember_broker(&mut self, name: String, port: u16) {
        if self.broker().is_none() || self.broker_here() == Some(port) {
            self.names.rabbitmq = Some(name);
        }
    }

    /// Returns the queues that workers take from, as far as that can be seen, else those that Django names.
    pub(super) fn queues(&self) -> Vec<String> {
        let workers: Vec<Vec<String>> = self.facts.processes.iter().filter_map(programs::queues).collect();
        let named = self.settings().and_then(|settings| settings.celery.as_ref()).map(|celery| celery.queues.clone());
        let mut queues: Vec<String> = workers.iter().flatten().cloned().collect();
        // A worker without -Q takes from those that the settings declare.
        if workers.is_empty() || workers.iter().any(Vec::is_empty) {
            queues.extend(named.into_iter().flatten());
        }
        queues.retain(|queue| !queue.is_empty() && queue.len() <= 200 && !queue.chars().any(char::is_control));
        queues.sort();
        queues.dedup();
        queues.truncate(50);
        queues
    }

    fn search_of(&self, port: u16) -> Option<&super::super::django::Search> {
        let fits = |search: &&super::super::django::Search| is_here(&search.place.host) && search.place.port.unwrap_or(9200) == port;
        self.settings()?.search.iter().find(fits)
    }

    fn search(&mut self, at: &At) {
        let search = at.port().and_then(|port| self.search_of(port)).cloned();
        let about = format!("Elasticsearch at {at}");
        let scheme = search.as_ref().map_or("http", |search| if search.place.scheme == "https" { "https" } else { "http" });
        let url = quoted(&format!("{scheme}://{at}"));
        let tcp = format!("tcp: {{address: {}}}", quoted(&at.to_string()));
        let Some(search) = search.filter(|search| !search.index.is_empty()) else {
            self.add("search", tcp, format!("{about}: whether the port opens"));
            // Not asked: whether it speaks TLS cannot be seen from here, nor which index the site uses.
            let line = format!("elasticsearch: {{url: {url}, index: haystack}}");
            self.half(
                Some(line),
                format!("{about}: its port, not its documents"),
                "put the site's index in place of haystack, and take the commented line instead".into(),
            );
            return;
        };
        let index = quoted(&search.index);
        if search.login || search.place.has_password || scheme == "https" {
            let (secret, _) = self.secret("elasticsearch");
            let later = format!("elasticsearch: {{url: {url}, index: {index}, username: proctor, password_file: {}}}", quoted(&secret));
            self.add("search", tcp, format!("{about}: whether the port opens"));
            let command = format!("{} and make its user and role as docs/probes/elasticsearch.md says", self.make_password(&secret));
            self.half(Some(later), format!("{about}: its port, not its documents: it wants a login or TLS"), command);
        } else {
            self.add(
                "search",
                format!("elasticsearch: {{url: {url}, index: {index}}}"),
                format!("{about}: a document out of the index {}", search.index),
            );
        }
    }

    fn redis(&mut self, at: &At) {
        let celery = self.settings().and_then(|settings| settings.celery.as_ref());
        let broker = celery.is_some_and(|celery| celery.broker.scheme.starts_with("redis"));
        let use_ = if broker { ", the broker of Celery" } else { "" };
        self.unwatched(
            format!("Redis at {at}{use_}: there is no probe for it"),
            format!("redis: {{tcp: {{address: {}, send: \"PING\\r\\n\", expect: \"PONG|NOAUTH\"}}}}", quoted(&at.to_string())),
        );
    }

    fn unknown(&mut self, listener: &Listener) {
        let at = &listener.at;
        let name = match listener.owner.as_ref().map_or("", |owner| owner.name.as_str()) {
            "docker-proxy" => {
                at.port().and_then(|port| self.facts.containers.published.get(&port)).map_or("a container", |(name, _)| name.as_str())
            }
            "beam.smp" => "beam.smp (Erlang; RabbitMQ's broker, perhaps)",
            name => name,
        };
        let what = format!("{name} at {at}: not a service that is known here");
        self.unwatched(what, format!("NAME: {{tcp: {{address: {}}}}}", quoted(&at.to_string())));
    }
}

/// Says whether it is a transport of Celery that speaks AMQP.
pub(super) fn is_amqp(scheme: &str) -> bool {
    matches!(scheme, "amqp" | "amqps" | "pyamqp")
}

/// Says whether a host of the settings is this one.
pub(super) fn is_here(host: &str) -> bool {
    matches!(host, "" | "localhost" | "0.0.0.0") || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// Returns the virtual host of an AMQP URL by its path.
fn vhost(path: &str) -> String {
    match path.strip_prefix('/') {
        None | Some("" | "/") => "/".to_owned(),
        Some(vhost) => vhost.to_owned(),
    }
}

/// Says whether a location of the settings leads there.
fn named(location: &str, at: &At) -> bool {
    match at {
        At::Unix(path) => location.strip_prefix("unix:").unwrap_or(location) == path.display().to_string(),
        At::Tcp(address) => {
            location.trim().rsplit_once(':').is_some_and(|(host, port)| is_here(host) && port.parse() == Ok(address.port()))
        }
    }
}

fn kind_of_socket(listener: &Listener) -> Kind {
    let At::Unix(path) = &listener.at else { return Kind::Unknown };
    let file = path.file_name().unwrap_or_default().to_string_lossy();
    match listener.owner.as_ref() {
        Some(owner) if programs::is(owner, "gunicorn") && !file.ends_with(".ctl") => Kind::Gunicorn,
        Some(owner) if owner.name == "memcached" => Kind::Memcached,
        Some(owner) if owner.name == "postgres" => Kind::Postgres,
        None if file.starts_with(".s.PGSQL.") => Kind::Postgres,
        Some(owner) if matches!(owner.name.as_str(), "mariadbd" | "mysqld") && file != "mysqlx.sock" => Kind::Mysql,
        None if file == "mysqld.sock" => Kind::Mysql,
        _ => Kind::Unknown,
    }
}
