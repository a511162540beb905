//! Looks at the host and writes down what can be watched by looking only (invariant 10).
//!
//! What comes out is YAML that goes through the configuration's own loader, so that there is one way in. Nothing is
//! sent to a service whose owner is not known: a web page asked with a wrong Host would make Django mail its admins.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::Path;

use procfs::net::TcpState;

use crate::client::docker::Docker;
use crate::client::net::Endpoint;
use crate::probe::tunnel::{self, Dialect};

/// The most processes whose sockets are looked at, and the most listening ports that are told.
const MAX_PROCESSES: usize = 20_000;
const MAX_PORTS: usize = 64;

/// What was found.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// The entries under `probes:`, as YAML; empty where nothing was found.
    pub probes: String,
    /// What is watched, one line each.
    pub watched: Vec<String>,
    /// What is there but not watched, or only half, and why, one line each.
    pub left_out: Vec<String>,
}

/// A port on which something listens.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Port {
    address: SocketAddr,
    /// Name and command line of the owner; nothing where it is another user's and may not be seen.
    owner: Option<(String, Vec<String>)>,
}

/// Where certbot keeps the certificates that are in use.
const CERTBOT: &str = "/etc/letsencrypt/live";

/// Looks at the listening sockets of this host, and for certificates.
pub fn look() -> Found {
    let mut found = Found::default();
    for port in listening() {
        found.add_port(&port);
    }
    found.add_certificates(Path::new(CERTBOT));
    found.add_docker(&Docker::of_this_host());
    found
}

impl Found {
    fn add(&mut self, name: &str, entry: &str, told: String) {
        // Two of a kind: memcached, memcached-2, …
        let taken = |name: &str| self.probes.contains(&format!("  {name}: {{"));
        let unique = (1..).map(|n| if n == 1 { name.to_owned() } else { format!("{name}-{n}") }).find(|name| !taken(name));
        // Writing to a String cannot fail.
        let written = unique.map(|name| writeln!(self.probes, "  {name}: {{{entry}}}"));
        debug_assert!(matches!(written, Some(Ok(()))));
        self.watched.push(told);
    }

    /// Adds certbot's certificates where there are some; which names are served, the files do not say for sure.
    fn add_certificates(&mut self, live: &Path) {
        // A folder that may not be read is watched too: the probe then says the line that opens it.
        let empty = std::fs::read_dir(live).is_ok_and(|entries| !entries.flatten().any(|entry| entry.path().is_dir()));
        if !live.is_dir() || empty {
            return;
        }
        let files = format!("{}/*/fullchain.pem", live.display());
        self.add(
            "certificates",
            &format!("certificate: {{files: [\"{files}\"]}}"),
            format!("certificates in {files}: how long they are valid"),
        );
        self.left_out.push(format!(
            "whether the certificates in {} are those that are served; name where, under probes: (certificate: {{served: [\"NAME:443\"]}})",
            live.display()
        ));
    }

    /// Adds docker where its socket lets us in; one elsewhere than on this host is not looked for.
    fn add_docker(&mut self, docker: &Docker) {
        let Ok(Endpoint::Unix(socket)) = docker.endpoint() else { return };
        let at = socket.display();
        match UnixStream::connect(socket) {
            Ok(_) => self.add(
                "docker",
                &format!("docker: {{engine: \"unix:{at}\"}}"),
                format!("docker at {at}: every container that docker itself is to restart"),
            ),
            Err(error) if error.kind() == ErrorKind::PermissionDenied => self.left_out.push(format!(
                "the containers of docker at {at}: the user of Proctor may not use its socket; a socket proxy is the careful way (docs/probes/docker.md)"
            )),
            Err(_) => {}
        }
    }

    /// Watches a tunnel in the protocol that its far port is known for; by its near end only where that is none.
    fn add_tunnel(&mut self, address: SocketAddr, command_line: &[String], tcp: &str) {
        let number = address.port();
        let far_end = tunnel::far_end(command_line, number);
        let name = format!("tunnel-{number}");
        let far = match &far_end {
            Some((host, port)) => format!("{host}:{port}"),
            None => "an end that its command line does not name".to_owned(),
        };
        let Some(speaks) = far_end.and_then(|(_, port)| Dialect::of_port(port)).map(Dialect::as_str) else {
            self.add(&name, tcp, format!("ssh tunnel at {address} to {far}: whether its near end opens"));
            self.left_out.push(format!(
                "the far end of the ssh tunnel at {address}: say what it speaks (tunnel: {{address: \"{address}\", speaks: …}})"
            ));
            return;
        };
        self.add(
            &name,
            &format!("tunnel: {{address: \"{address}\", speaks: {speaks}}}, interval: 30s"),
            format!("ssh tunnel at {address} to {far}: whether its far end says the first bytes of {speaks}"),
        );
    }

    fn add_port(&mut self, port: &Port) {
        let address = reachable(port.address);
        let owner = port.owner.as_ref().map_or("", |(name, _)| name.as_str());
        let number = port.address.port();
        let tcp = format!("tcp: {{address: \"{address}\"}}");
        match (owner, number) {
            ("memcached", _) | ("" | "docker-proxy", 11211) => {
                self.add(
                    "memcached",
                    &format!("memcached: {{address: \"{address}\"}}"),
                    format!("memcached at {address}: its counters (canary: true would also send a value through it)"),
                );
            }
            ("ssh" | "autossh", _) => self.add_tunnel(address, port.owner.as_ref().map_or(&[], |(_, line)| line), &tcp),
            ("nginx", _) => {
                self.add(&format!("nginx-{number}"), &tcp, format!("nginx at {address}: whether the port opens"));
                self.left_out
                    .push(format!("nginx at {address}: its pages; name its sites under probes: (nginx: {{sites: [\"https://…/\"]}})"));
            }
            (name, _) if name.starts_with("gunicorn") => {
                self.add("gunicorn", &tcp, format!("gunicorn at {address}: whether the port opens"));
                self.left_out.push(format!("gunicorn at {address}: whether a worker answers; it needs the site's own name (gunicorn: {{listen: \"{address}\", host_header: …}}), else Django mails its admins about a wrong one"));
            }
            ("postgres", _) | ("" | "docker-proxy", 5432) => {
                self.add("postgresql", &tcp, format!("PostgreSQL at {address}: whether the port opens"))
            }
            ("mariadbd" | "mysqld", _) | ("" | "docker-proxy", 3306) => {
                self.add("mysql", &tcp, format!("MySQL at {address}: whether the port opens"))
            }
            ("beam.smp", 5672) | ("" | "docker-proxy", 5672) => {
                self.add("rabbitmq", &tcp, format!("RabbitMQ at {address}: whether the port opens"))
            }
            ("java", 9200) | ("" | "docker-proxy", 9200) => {
                self.add("elasticsearch", &tcp, format!("Elasticsearch at {address}: whether the port opens"));
                // Not asked: whether it speaks TLS cannot be seen from here, nor which index the site uses.
                self.left_out.push(format!("the documents of Elasticsearch at {address}; name the index under probes: (elasticsearch: {{url: \"http://{address}\", index: …}})"));
            }
            ("", 80 | 443) => {
                self.add(&format!("web-{number}"), &tcp, format!("a web server at {address}: whether the port opens"));
                self.left_out.push(format!("the web server at {address}: its pages; name its sites under probes:"));
            }
            ("proctor" | "sshd" | "systemd", _) => {}
            ("", _) => self
                .left_out
                .push(format!("port {address}: its owner is another user's and may not be seen; name it under probes: as tcp or http")),
            (name, _) => {
                self.left_out.push(format!("{name} at {address}: not a service that is known here; name it under probes: as tcp or http"))
            }
        }
    }
}

/// Returns the address at which a listener can be reached from this host.
fn reachable(address: SocketAddr) -> SocketAddr {
    let mut address = address;
    if address.ip().is_unspecified() {
        address.set_ip(if address.is_ipv4() { std::net::Ipv4Addr::LOCALHOST.into() } else { std::net::Ipv6Addr::LOCALHOST.into() });
    }
    address
}

/// Returns who listens on this host, by address, lowest port first. What may not be seen has no owner.
fn listening() -> Vec<Port> {
    let sockets = procfs::net::tcp().into_iter().chain(procfs::net::tcp6()).flatten().filter(|entry| entry.state == TcpState::Listen);
    let mut by_inode: HashMap<u64, SocketAddr> = sockets.map(|entry| (entry.inode, entry.local_address)).collect();
    let mut ports: BTreeMap<(u16, bool), Port> = BTreeMap::new();
    let mut add = |address: SocketAddr, owner| {
        // The same port on IPv4 and IPv6 is one service: IPv4 stands for both.
        let key = (address.port(), reachable(address).ip().is_loopback());
        let better = ports.get(&key).is_none_or(|known: &Port| known.address.is_ipv6() && address.is_ipv4());
        if better {
            ports.insert(key, Port { address, owner });
        }
    };
    for process in procfs::process::all_processes().into_iter().flatten().flatten().take(MAX_PROCESSES) {
        let Ok(descriptors) = process.fd() else { continue };
        for descriptor in descriptors.flatten() {
            if let procfs::process::FDTarget::Socket(inode) = descriptor.target
                && let Some(address) = by_inode.remove(&inode)
            {
                let name = process.stat().map(|stat| stat.comm).unwrap_or_default();
                add(address, Some((name, process.cmdline().unwrap_or_default())));
            }
        }
    }
    for address in by_inode.into_values() {
        add(address, None);
    }
    ports.into_values().take(MAX_PORTS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificates_of_certbot_are_watched_where_there_are_some() {
        let folder = tempfile::tempdir().expect("a folder");
        let found = || {
            let mut found = Found::default();
            found.add_certificates(&folder.path().join("live"));
            found
        };
        assert_eq!(found().probes, "");
        std::fs::create_dir(folder.path().join("live")).expect("a folder");
        std::fs::write(folder.path().join("live/README"), "").expect("is written");
        assert_eq!(found().probes, "");
        std::fs::create_dir(folder.path().join("live/site")).expect("a folder");
        let found = found();
        let file = format!("{}/live/*/fullchain.pem", folder.path().display());
        assert_eq!(found.probes, format!("  certificates: {{certificate: {{files: [\"{file}\"]}}}}\n"));
        assert_eq!((found.watched.len(), found.left_out.len()), (1, 1));
    }

    #[test]
    fn docker_is_watched_where_its_socket_lets_us_in() {
        let folder = tempfile::tempdir().expect("a folder");
        let socket = folder.path().join("docker.sock");
        let found = || {
            let mut found = Found::default();
            found.add_docker(&Docker::at(&socket));
            found
        };
        assert!(found().probes.is_empty() && found().left_out.is_empty(), "there is none");
        let listener = std::os::unix::net::UnixListener::bind(&socket).expect("a socket");
        let entry = format!("  docker: {{docker: {{engine: \"unix:{}\"}}}}\n", socket.display());
        assert_eq!((found().probes, found().watched.len()), (entry, 1));
        drop(listener);
        assert!(found().probes.is_empty(), "what listened there is gone");
    }

    #[test]
    fn what_is_not_known_is_said_and_nothing_is_asked_of_it() {
        let mut found = Found::default();
        let port = |name: Option<&str>, number: u16| Port {
            address: SocketAddr::from(([0, 0, 0, 0], number)),
            owner: name.map(|line| {
                let line: Vec<String> = line.split(' ').map(str::to_owned).collect();
                (line[0].clone(), line)
            }),
        };
        for (name, number) in [
            (Some("memcached"), 11211),
            (Some("memcached"), 11212),
            (Some("gunicorn"), 8000),
            (Some("redis-server"), 6379),
            (Some("ssh -N -L 50000:reports.example.org:50000 jump"), 50000),
            (Some("ssh -N -L 3307:db:3306 -L 8080:web:80 jump"), 3307),
            (Some("ssh -N -L 3307:db:3306 -L 8080:web:80 jump"), 8080),
            (Some("ssh -N jump"), 9000),
            (Some("java"), 9200),
            (None, 4711),
            (Some("sshd"), 22),
        ] {
            found.add_port(&port(name, number));
        }
        insta::assert_snapshot!(format!("{}---\n{}\n---\n{}", found.probes, found.watched.join("\n"), found.left_out.join("\n")));
    }
}
