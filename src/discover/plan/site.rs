//! The site itself: Celery, gunicorn, nginx and its certificates, and who is mailed.

use std::collections::BTreeSet;

use super::super::nginx::{Server, is_name, status};
use super::super::sockets::At;
use super::super::{Django, Nginx, programs};
use super::ports::{AMQP, Kind, is_amqp, is_here};
use super::{Plan, is_word, list, quoted};
use crate::notify::Mailbox;

/// The most pages and names that are written down for one nginx.
const MAX_SITES: usize = 20;

impl Plan<'_> {
    /// Says how a service that renders markup would be asked: neither its queue nor its path shows, and one more question
    /// is for somebody to decide.
    pub(super) fn markup(&mut self) {
        const MORE: &str = "(docs/probes/markup.md)";
        let facts = self.facts;
        let listening: Vec<&At> =
            facts.listeners.iter().filter(|listener| self.kind(listener) == Kind::Markup).map(|listener| &listener.at).collect();
        for at in &listening {
            let about = format!("service that renders markup, at {at}");
            self.add("markup", format!("tcp: {{address: {}}}", quoted(&at.to_string())), format!("{about}: whether the port opens"));
            self.half(
                Some(format!("markup: {{url: {}}}", quoted(&format!("http://{at}/markdown2html")))),
                format!("{about}: its port, not its answers"),
                format!("put the path of its questions in place of /markdown2html, and take the commented line instead {MORE}"),
            );
        }
        let containers = facts.containers.projects.values().flatten().chain(&facts.containers.others);
        let units = facts.units.services.iter().filter(|unit| unit.active == "active").map(|unit| &unit.name);
        let named = containers.chain(units).find(|name| programs::names_markup(name)).map(String::as_str);
        // Of a command line no more than the script: the rest may hold a password.
        let Some(seen) = facts.processes.iter().find_map(programs::markup).or(named).filter(|_| listening.is_empty()) else { return };
        let about = format!("service that renders markup ({seen}), by its queue");
        if let Some(via) = self.names.rabbitmq.clone() {
            self.add("markup", String::new(), about.clone());
            self.half(
                Some(format!("markup: {{via: {via}}}")),
                format!("{about}: not at all yet"),
                format!("open RabbitMQ as above, and take the commented line instead, with queue: if it is not markdown2html_queue {MORE}"),
            );
        } else {
            self.unwatched(
                format!("{about}: there is no broker here"),
                format!("name its broker as rabbitmq, then under probes: markup: {{markup: {{via: rabbitmq}}}} {MORE}"),
            );
        }
    }

    pub(super) fn celery(&mut self) {
        let facts = self.facts;
        let workers = facts.processes.iter().any(|process| programs::queues(process).is_some());
        let celery = self.settings().and_then(|settings| settings.celery.clone());
        let queues = self.queues();
        let other = celery.as_ref().map(|celery| celery.broker.scheme.clone()).filter(|scheme| !is_amqp(scheme) && !scheme.is_empty());
        if let Some(scheme) = other {
            self.unwatched(
                format!("Celery: its broker speaks {}, and it is asked over RabbitMQ only", scheme.chars().take(20).collect::<String>()),
                "celery: a heartbeat that a task of the site sends (docs/probes/heartbeat.md), and its units under systemd".to_owned(),
            );
        } else if workers || celery.is_some() {
            let body = format!("celery: {{via: {}, queues: {}}}", self.names.rabbitmq.as_deref().unwrap_or("rabbitmq"), list(&queues));
            let about = format!("Celery's workers, by their queues: {}", queues.join(", "));
            let open = self
                .names
                .rabbitmq
                .as_ref()
                .is_some_and(|name| self.found.entries.iter().any(|entry| entry.name == *name && entry.later.is_none()));
            if open {
                let name = self.add("celery", body, about);
                self.names.celery = Some(name);
            } else if self.names.rabbitmq.is_some() {
                self.add("celery", String::new(), about.clone());
                self.half(
                    Some(body),
                    format!("{about}: not at all yet"),
                    "open RabbitMQ as above, and take the commented line instead".to_owned(),
                );
            } else {
                self.unwatched(
                    format!("{about}: {}", self.no_broker()),
                    "name it under probes: as rabbitmq (docs/probes/rabbitmq.md), then celery: {via: rabbitmq}".to_owned(),
                );
            }
        }
        self.beat(celery.as_ref().map(|celery| (celery.scheduler.as_str(), celery.scheduled)));
    }

    /// Says why no broker was found.
    fn no_broker(&self) -> String {
        let unknown = "their broker's address could not be found out:";
        match (&self.facts.django, self.broker()) {
            (_, Some(broker)) if is_here(&broker.host) => {
                format!("their broker is at port {} of this host, and no RabbitMQ is seen there", broker.port.unwrap_or(AMQP))
            }
            (_, Some(broker)) => format!("their broker is not on this host, but {}:{}", broker.host, broker.port.unwrap_or(AMQP)),
            (Django::None, None) => format!("{unknown} Django was not asked"),
            (Django::Failed(_), None) => format!("{unknown} Django did not say its settings"),
            (Django::Said(..), None) => {
                format!("{unknown} Django's settings name none as manage.py runs here; is it in the environment of the workers' service?")
            }
        }
    }

    fn beat(&mut self, settings: Option<(&str, usize)>) {
        let facts = self.facts;
        let files: BTreeSet<String> =
            facts.processes.iter().filter_map(programs::schedule).map(|path| path.display().to_string()).collect();
        let database = facts.processes.iter().any(programs::database_scheduler)
            || settings.is_some_and(|(scheduler, _)| scheduler.contains("django_celery_beat"));
        if database {
            self.unwatched(
                "beat, whose schedule is in the site's database".to_owned(),
                format!(
                    "beat: {{beat: {{database: {}}}}} once that probe may log in",
                    self.names.database.named.as_deref().unwrap_or("NAME")
                ),
            );
        } else if !files.is_empty() {
            let files: Vec<String> = files.into_iter().take(20).collect();
            let name = self.add(
                "beat",
                format!("beat: {{files: {}}}", list(&files)),
                format!("celerybeat: whether it writes its schedule ({})", files.join(", ")),
            );
            self.needs(&name, self.names.celery.clone());
        } else if settings.is_some_and(|(_, scheduled)| scheduled > 0) {
            self.unwatched(
                "celerybeat: there are periodic tasks, and no beat is seen to run here".to_owned(),
                "beat: {beat: {files: [/path/of/celerybeat-schedule]}}".to_owned(),
            );
        }
    }

    /// Returns the names under which the site may be asked: for every other one Django mails its admins.
    fn hosts(&self) -> Vec<&str> {
        let settings = self.settings();
        let hosts = settings.into_iter().flat_map(|settings| settings.hosts.iter()).map(String::as_str);
        hosts.filter(|host| is_name(host)).collect()
    }

    /// Says whether Django lets a name in.
    fn allows(&self, name: &str) -> bool {
        let settings = self.settings();
        settings.into_iter().flat_map(|settings| settings.hosts.iter()).any(|host| {
            let under = host.strip_prefix('.').is_some_and(|domain| name == domain || name.ends_with(host.as_str()) && !domain.is_empty());
            host == "*" || host.eq_ignore_ascii_case(name) || under
        })
    }

    pub(super) fn gunicorn(&mut self) {
        let facts = self.facts;
        let all: Vec<_> = facts.listeners.iter().filter(|listener| self.kind(listener) == Kind::Gunicorn).collect();
        let folder = self.settings().map(|settings| settings.folder.clone());
        let hosts = self.hosts();
        // A name that nginx has is one that users ask for.
        let of_nginx =
            |host: &&&str| facts.nginx.iter().flat_map(|nginx| &nginx.servers).any(|server| server.names.iter().any(|name| name == *host));
        let own = |host: &&&str| host.contains('.');
        let host = hosts.iter().find(of_nginx).or_else(|| hosts.iter().find(own)).or(hosts.first()).map(|host| (*host).to_owned());
        for listener in &all {
            let at = &listener.at;
            let listen = quoted(&at.to_string());
            // Another site's gunicorn knows other names.
            let here = listener
                .owner
                .as_ref()
                .and_then(programs::folder)
                .map(|of| folder.as_ref().is_some_and(|folder| of.starts_with(folder) || folder.starts_with(&of)));
            let this = here.unwrap_or(all.len() == 1);
            let name = match host.as_ref().filter(|_| this) {
                Some(host) => self.add(
                    "gunicorn",
                    format!("gunicorn: {{listen: {listen}, host_header: {}}}", quoted(host)),
                    format!("gunicorn at {at}: whether a worker answers, and how many connections wait"),
                ),
                None => {
                    let name =
                        self.add("gunicorn", format!("tcp: {{address: {listen}}}"), format!("gunicorn at {at}: whether the port opens"));
                    self.half(
                        Some(format!("gunicorn: {{listen: {listen}, host_header: www.example.org}}")),
                        format!("gunicorn at {at}: its port, not whether a worker answers"),
                        "put one of Django's ALLOWED_HOSTS in place of www.example.org (for every other name Django mails its admins), and take the commented line instead".to_owned(),
                    );
                    name
                }
            };
            if this && folder.is_some() && self.names.gunicorn.named.is_none() {
                self.names.gunicorn.named = Some(name.clone());
            }
            self.names.gunicorn.all.push(name.clone());
            // Of another site's gunicorn Django's settings say nothing.
            let other = folder.is_some() && !this;
            let needs = [("databases", &self.names.database), ("caches", &self.names.cache)];
            let sure = needs.map(|(part, need)| need.sure(self.said(part)).filter(|_| !other));
            let maybe = needs.iter().zip(&sure).filter(|(_, sure)| sure.is_none()).flat_map(|((_, need), _)| need.all.clone()).collect();
            sure.into_iter().for_each(|on| self.needs(&name, on));
            self.may_need(&name, maybe);
        }
    }

    pub(super) fn nginx(&mut self) {
        let facts = self.facts;
        let ports: BTreeSet<At> =
            facts.listeners.iter().filter(|listener| self.kind(listener) == Kind::Nginx).map(|listener| listener.at.clone()).collect();
        let mut asked = BTreeSet::new();
        for nginx in &facts.nginx {
            self.found.unseen.extend(nginx.denied.iter().map(|denied| format!("of nginx's configuration {denied}")));
            self.one_nginx(nginx, &mut asked);
        }
        for at in ports.iter().filter(|at| at.port().is_some_and(|port| !asked.contains(&port))) {
            let port = at.port().unwrap_or_default();
            self.add(
                &format!("nginx-{port}"),
                format!("tcp: {{address: {}}}", quoted(&at.to_string())),
                format!("nginx at {at}: whether the port opens"),
            );
        }
        // A web server whose owner may not be seen.
        for listener in facts.listeners.iter().filter(|listener| listener.owner.is_none() && matches!(listener.at.port(), Some(80 | 443))) {
            if self.kind(listener) == Kind::Unknown
                && !ports.contains(&listener.at)
                && !asked.contains(&listener.at.port().unwrap_or_default())
            {
                let at = &listener.at;
                self.add(
                    &format!("web-{}", at.port().unwrap_or_default()),
                    format!("tcp: {{address: {}}}", quoted(&at.to_string())),
                    format!("a web server at {at}: whether the port opens"),
                );
            }
        }
    }

    fn one_nginx(&mut self, nginx: &Nginx, asked: &mut BTreeSet<u16>) {
        let (mut sites, mut likely, mut redirects) = (Vec::new(), Vec::new(), Vec::new());
        let mut address = None;
        for server in &nginx.servers {
            for name in &server.names {
                let Some((url, port)) = page(server, name) else { continue };
                let here = server.listens.iter().find(|listen| listen.port == port).and_then(|listen| listen.address);
                address.get_or_insert_with(|| here.map_or_else(|| "127.0.0.1".to_owned(), |ip| ip.to_string()));
                if let Some(target) = server.redirects_to(name) {
                    redirects.push(format!("{}: {}", quoted(&url), quoted(&target)));
                    asked.insert(port);
                } else if server.redirect.is_none() && server.status.is_none() {
                    if self.allows(name) {
                        asked.insert(port);
                        sites.push(url);
                    } else {
                        likely.push(url);
                    }
                }
            }
        }
        for urls in [&mut sites, &mut likely, &mut redirects] {
            urls.sort();
            urls.dedup();
            urls.truncate(MAX_SITES);
        }
        let counters = status(&nginx.servers);
        asked.extend(counters.as_ref().and_then(|url| crate::client::http::Url::parse(url).ok()).map(|url| url.port()));
        let body = |sites: &[String]| {
            let mut parts: Vec<String> = Vec::new();
            parts.extend(counters.as_ref().map(|url| format!("status: {}", quoted(url))));
            if !sites.is_empty() {
                parts.push(format!("sites: {}", list(sites)));
            }
            if !redirects.is_empty() {
                parts.push(format!("redirects: {{{}}}", redirects.join(", ")));
            }
            if let Some(address) = address.as_ref().filter(|_| !sites.is_empty() || !redirects.is_empty()) {
                parts.push(format!("address: {}", quoted(address)));
            }
            parts.extend(nginx.pid_file.as_ref().map(|path| format!("pid_file: {}", quoted(&path.display().to_string()))));
            format!("nginx: {{{}}}", parts.join(", "))
        };
        let active = !sites.is_empty() || !redirects.is_empty() || counters.is_some() || nginx.pid_file.is_some();
        if !active && likely.is_empty() {
            return;
        }
        let about = format!("nginx ({}): {}", nginx.file.display(), about(&counters, &sites, redirects.len()));
        let whole: Vec<String> = sites.iter().chain(&likely).cloned().collect();
        let name = self.add("nginx", if active { body(&sites) } else { String::new() }, about);
        if !likely.is_empty() {
            self.half(
                Some(body(&whole)),
                format!("nginx ({}): not the pages {}", nginx.file.display(), likely.join(", ")),
                "see that these names are among Django's ALLOWED_HOSTS (for every other name Django mails its admins), and take the commented line instead".to_owned(),
            );
        }
        let gunicorn = self.names.gunicorn.sure(false);
        let maybe = if gunicorn.is_none() { self.names.gunicorn.all.clone() } else { Vec::new() };
        self.needs(&name, gunicorn);
        self.may_need(&name, maybe);
    }

    pub(super) fn notify(&mut self) {
        let (settings, project) = match &self.facts.django {
            Django::Said(settings, project) => (settings, project),
            Django::Failed(_) => {
                self.found.unseen.push("who is to be mailed: name it under notify: (docs/mail.md)".to_owned());
                return;
            }
            Django::None => return,
        };
        let mut admins: Vec<Mailbox> = Vec::new();
        for admin in settings.admins.iter().filter_map(|admin| Mailbox::parse(admin)).take(50) {
            if !admins.iter().any(|known| known.same_box(&admin)) {
                admins.push(admin);
            }
        }
        if admins.is_empty() {
            self.found
                .unseen
                .push("who is to be mailed: Django's ADMINS names nobody; name somebody under notify: (docs/mail.md)".to_owned());
            return;
        }
        let mut lines =
            vec!["notify:".to_owned(), format!("  admins: {}", list(&admins.iter().map(ToString::to_string).collect::<Vec<_>>()))];
        match Mailbox::parse(&settings.server_email) {
            Some(from) => {
                if from.domain() == "localhost" {
                    self.found.unseen.push(format!(
                        "who the mails are from: Django's SERVER_EMAIL is {from}, which most relays refuse; set notify: from"
                    ));
                }
                lines.push(format!("  from: {}", quoted(&from.to_string())));
            }
            None => self.found.unseen.push("who the mails are from: Django's SERVER_EMAIL is no address; set notify: from".to_owned()),
        }
        let prefix = &settings.subject_prefix;
        if !prefix.chars().any(char::is_control) && prefix.chars().count() <= 100 {
            lines.push(format!("  subject_prefix: {}", quoted(prefix)));
        }
        let mail = &settings.mail;
        let smtp = mail.backend.ends_with("smtp.EmailBackend");
        // Of another backend, such as one that sends by Celery, the default of EMAIL_HOST says nothing; a relay here does.
        let named = smtp || !matches!(mail.host.as_str(), "" | "localhost");
        let relay_here = || self.facts.listeners.iter().any(|listener| listener.at.port() == Some(mail.port));
        let host = is_word(&mail.host) && mail.port != 0 && (named || relay_here());
        let login = !mail.username.is_empty() && mail.has_password;
        let local = matches!(mail.host.as_str(), "localhost" | "127.0.0.1" | "::1");
        if !host || (login && mail.tls == "none" && !local) {
            let why = if host {
                "Django logs in without TLS, which Proctor does not: set notify: smtp"
            } else {
                "Django's own backend is no SMTP, and no relay is named; set notify: smtp"
            };
            self.found.unseen.push(format!("the way of the mails: {why} (docs/mail.md)"));
            lines.push("  # smtp: {host: mail.example.org, port: 25}   # until there is one, mails wait".to_owned());
        } else {
            let mut relay = format!(
                "host: {}, port: {}, tls: {}",
                quoted(&mail.host),
                mail.port,
                if matches!(mail.tls.as_str(), "starttls" | "tls") { &mail.tls } else { "none" }
            );
            if login {
                let (secret, there) = self.secret("smtp");
                relay += &format!(", username: {}, password_file: {}", quoted(&mail.username), quoted(&secret));
                if !there {
                    let setting = if mail.mailers {
                        "settings.MAILERS[\"default\"][\"OPTIONS\"][\"password\"]"
                    } else {
                        "settings.EMAIL_HOST_PASSWORD"
                    };
                    let manage = project.manage.display();
                    let command = format!(
                        "sudo -u {} {} {manage} shell -v 0 -c 'from django.conf import settings; print({setting})' | {}",
                        project.user(),
                        project.python.display(),
                        self.keep(&secret)
                    );
                    self.found.half.push(super::Half {
                        what: format!("mails by {}:{}: its password has to be in {secret}", mail.host, mail.port),
                        command,
                    });
                }
            }
            lines.push(format!("  smtp: {{{relay}}}"));
        }
        self.found.notify = lines;
    }
}

/// Returns the page of a name, and the port at which its server has it: over TLS where it speaks that.
fn page(server: &Server, name: &str) -> Option<(String, u16)> {
    let listen = server.listens.iter().find(|listen| listen.tls).or(server.listens.first())?;
    let (scheme, usual) = if listen.tls { ("https", 443) } else { ("http", 80) };
    let port = if listen.port == usual { String::new() } else { format!(":{}", listen.port) };
    Some((format!("{scheme}://{name}{port}/"), listen.port))
}

fn about(counters: &Option<String>, sites: &[String], redirects: usize) -> String {
    let mut parts = Vec::new();
    parts.extend((!sites.is_empty()).then(|| format!("the pages {}", sites.join(", "))));
    parts.extend((redirects > 0).then(|| format!("{redirects} redirects")));
    parts.extend(counters.as_ref().map(|_| "its counters".to_owned()));
    if parts.is_empty() { "its processes and whether they have its configuration".to_owned() } else { parts.join(", ") }
}
