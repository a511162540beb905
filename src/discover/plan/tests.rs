use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::super::containers::Containers;
use super::super::django::{Cache, Celery, Database, Mail, Place, Project, Search, Settings};
use super::super::programs::process;
use super::super::sockets::{At, Listener, Process};
use super::super::units::{Service, Units};
use super::super::{Nginx, cron, nginx, write};
use super::*;
use crate::config::Config;

fn listener(at: &str, owner: Option<Process>) -> Listener {
    let at = at.strip_prefix("unix:").map_or_else(|| At::Tcp(at.parse().expect("an address")), |path| At::Unix(path.into()));
    let inside = owner.as_ref().and_then(super::super::programs::inside);
    Listener { at, owner, inside }
}

/// CourSys as it is: systemd and docker side by side.
fn coursys() -> Facts {
    let python = "/coursys/venv/bin/python /coursys/venv/bin/";
    let gunicorn = process(&format!("{python}gunicorn --bind 127.0.0.1:8000 courses.wsgi"));
    let worker = process(&format!("{python}celery -A courses worker -Q email,fast -n email@h"));
    let mut beat = process(&format!("{python}celery -A courses beat --schedule /coursys/status/celerybeat-schedule"));
    beat.folder = Some("/coursys".into());
    let proxy = |port: u16, inside: u16| {
        process(&format!("/usr/bin/docker-proxy -proto tcp -host-port {port} -container-ip 172.18.0.2 -container-port {inside}"))
    };
    let service = |name: &str, active: &str| Service { name: name.into(), active: active.into(), kind: "simple".into(), folder: None };
    let servers = nginx::parse(
        "server { listen 80 default_server; location = /nginx_status { stub_status; } }
         server { listen 80; server_name coursys.example.org; return 301 https://$host$request_uri; }
         server { listen 443 ssl; server_name coursys.example.org other.example.org; }",
    );
    Facts {
        listeners: vec![
            listener("127.0.0.1:22", Some(process("sshd"))),
            listener("127.0.0.1:80", Some(process("nginx: master process /usr/sbin/nginx"))),
            listener("127.0.0.1:443", Some(process("nginx: master process /usr/sbin/nginx"))),
            listener("127.0.0.1:4711", None),
            listener("127.0.0.1:5432", None),
            listener("unix:/run/postgresql/.s.PGSQL.5432", None),
            listener("127.0.0.1:5672", Some(proxy(5672, 5672))),
            listener("127.0.0.1:6379", Some(process("redis-server"))),
            listener("127.0.0.1:8000", Some(gunicorn.clone())),
            listener("127.0.0.1:9200", Some(proxy(9200, 9200))),
            listener("127.0.0.1:11211", Some(proxy(11211, 11211))),
            listener("127.0.0.1:11212", Some(process("memcached"))),
            listener("127.0.0.1:15672", Some(proxy(15672, 15672))),
            listener("127.0.0.1:50000", Some(process("ssh -N -L 50000:reports.example.org:50000 jump"))),
            listener("127.0.0.1:50001", Some(process("ssh -N -L 50001:web:8080 jump"))),
        ],
        processes: vec![gunicorn, worker, beat],
        units: Units {
            services: vec![
                service("celery.service", "active"),
                service("gunicorn.service", "active"),
                service("markup.service", "inactive"),
            ],
            timers: vec!["certbot.timer".into()],
            unseen: None,
        },
        containers: Containers {
            engine: Some("unix:/run/docker.sock".into()),
            projects: BTreeMap::from([(
                "coursys".to_owned(),
                vec!["elasticsearch".to_owned(), "memcached".to_owned(), "rabbitmq".to_owned()],
            )]),
            published: BTreeMap::from([(5672, ("coursys-rabbitmq-1".to_owned(), 5672))]),
            ..Containers::default()
        },
        nginx: vec![Nginx { file: "/etc/nginx/nginx.conf".into(), servers, denied: Vec::new(), pid_file: Some("/run/nginx.pid".into()) }],
        cron: (
            cron::parse("30 2 * * * root /usr/local/bin/backup --all\n@daily root mysqldump -phunter2 x\n", true, "/etc/cron.d/site"),
            vec![PathBuf::from("/var/spool/cron/crontabs")],
        ),
        certificates: Some(("/etc/letsencrypt/live".into(), true)),
        django: Django::None,
        user: ("proctor".into(), true),
        secrets: ("/etc/proctor".into(), BTreeSet::new()),
        host: "coursys-1".into(),
    }
}

fn with_django(mut facts: Facts) -> Facts {
    // The project is only named in commands here.
    let file = tempfile::NamedTempFile::new().expect("a file");
    let mut project = Project::at(file.path(), (Some(Path::new("/coursys/venv/bin/python")), None), Some("root")).expect("it is there");
    project.manage = "/coursys/manage.py".into();
    let place = |scheme: &str, host: &str, port: u16, path: &str| Place {
        scheme: scheme.into(),
        host: host.into(),
        port: Some(port),
        path: path.into(),
        ..Place::default()
    };
    let settings = Settings {
        version: "4.2.30".into(),
        folder: "/coursys".into(),
        admins: vec!["Ann <ann@example.org>".into(), "nobody".into()],
        server_email: "coursys@example.org".into(),
        subject_prefix: "[CourSys] ".into(),
        mail: Mail {
            backend: "django.core.mail.backends.smtp.EmailBackend".into(),
            host: "mail.example.org".into(),
            port: 587,
            tls: "starttls".into(),
            username: "coursys".into(),
            has_password: true,
            mailers: false,
        },
        caches: vec![Cache { backend: "x".into(), locations: vec!["127.0.0.1:11211".into()] }],
        databases: vec![Database {
            alias: "default".into(),
            engine: "django.db.backends.postgresql".into(),
            name: "coursys".into(),
            ..Database::default()
        }],
        celery: Some(Celery {
            broker: place("amqp", "localhost", 5672, "/myvhost"),
            queues: vec!["celery".into()],
            scheduled: 3,
            ..Celery::default()
        }),
        search: vec![Search { place: place("http", "localhost", 9200, "/"), index: "haystack".into(), login: false }],
        hosts: vec!["coursys.example.org".into(), "localhost".into()],
        ..Settings::default()
    };
    facts.django = Django::Said(Box::new(settings), Box::new(project));
    facts
}

fn loads(text: &str) -> Config {
    Config::from_text(Path::new("proctor.yml"), text).unwrap_or_else(|problems| panic!("{text}{problems:?}"))
}

#[test]
fn a_host_alone_gives_a_configuration_and_three_lists() {
    let found = plan(&coursys());
    let text = write::text(&found);
    loads(&text);
    assert!(!text.contains("hunter2"));
    insta::assert_snapshot!(text);
}

#[test]
fn with_django_it_is_the_configuration_of_the_site() {
    let text = write::text(&plan(&with_django(coursys())));
    loads(&text);
    insta::assert_snapshot!(text);
}

#[test]
fn every_line_that_stands_ready_loads_in_place_of_its_own() {
    let mut facts = with_django(coursys());
    let opened = facts.secrets.0.join("rabbitmq-password");
    facts.secrets.1.insert(opened);
    let found = plan(&facts);
    let celery = found.entries.iter().find(|entry| entry.name == "celery").expect("it is there");
    assert!(celery.later.is_none() && celery.body.contains("queues: [\"email\", \"fast\"]"), "{celery:?}");
    let lines: Vec<String> = found
        .entries
        .iter()
        .map(|entry| entry.later.as_ref().map_or_else(|| entry.line().expect("something"), |later| entry.with(later)))
        .map(|line| format!("  {line}\n"))
        .collect();
    loads(&format!("probes:\n{}", lines.concat()));
    let actions: Vec<String> = found.actions.iter().map(|action| format!("  {action}\n")).collect();
    assert!(!actions.is_empty());
    loads(&format!("actions:\n{}", actions.concat()));
    for half in &found.unwatched {
        let Some((_, line)) = half.command.split_once(" under probes: ") else { continue };
        loads(&format!("probes:\n  {line}\n"));
    }
}

#[test]
fn texts_of_others_stay_texts() {
    let mut facts = with_django(coursys());
    if let Django::Said(settings, _) = &mut facts.django {
        let evil = "\"}}\nactions: {x".to_owned();
        settings.subject_prefix = evil.clone();
        settings.hosts = vec![evil.clone(), "coursys.example.org".into()];
        settings.mail.host = evil.clone();
        settings.server_email = evil.clone();
        settings.databases[0].name = evil.clone();
        settings.search[0].index = evil.clone();
        if let Some(celery) = &mut settings.celery {
            celery.broker.path = format!("/{evil}");
            celery.queues = vec![evil.clone()];
        }
    }
    facts.processes.clear();
    facts.containers.projects = BTreeMap::from([("p\"}\nx: {".to_owned(), vec!["s".to_owned()])]);
    let text = write::text(&plan(&facts));
    assert!(!text.lines().any(|line| line.starts_with("actions")), "{text}");
    loads(&text);
    assert!(text.contains("is not written: expected a name of letters"), "docker allows no such name: {text}");
}

#[test]
fn only_what_django_lets_in_is_asked_for_pages() {
    let found = plan(&with_django(coursys()));
    let nginx = found.entries.iter().find(|entry| entry.name == "nginx").expect("it is there");
    assert!(nginx.body.contains("sites: [\"https://coursys.example.org/\"]"), "{nginx:?}");
    assert!(nginx.later.as_ref().is_some_and(|later| later.contains("other.example.org")), "{nginx:?}");
    let found = plan(&coursys());
    assert!(found.entries.iter().all(|entry| !entry.body.contains("sites:") && !entry.body.contains("host_header")));
}

#[test]
fn of_a_backend_that_is_no_smtp_the_relay_counts_only_where_there_is_one() {
    let relay = |host: &str, here: bool| {
        let mut facts = with_django(coursys());
        if let Django::Said(settings, _) = &mut facts.django {
            settings.server_email = "root@localhost".into();
            settings.mail = Mail {
                backend: "djcelery_email.backends.CeleryEmailBackend".into(),
                host: host.into(),
                port: 25,
                tls: "none".into(),
                ..Mail::default()
            };
        }
        facts.listeners.extend(here.then(|| listener("127.0.0.1:25", None)));
        let found = plan(&facts);
        assert!(found.unseen.iter().any(|line| line.contains("SERVER_EMAIL is root@localhost")), "{:?}", found.unseen);
        loads(&write::text(&found));
        found.notify.join("\n").contains("\n  smtp: ")
    };
    assert!(relay("mail.example.org", false) && relay("localhost", true) && !relay("localhost", false));
}

#[test]
fn what_differs_is_said_and_nothing_where_nothing_does() {
    use super::super::compare::differences;
    let facts = with_django(coursys());
    let config = loads(&write::text(&plan(&facts)));
    let same = differences(&config, &plan(&facts), &facts);
    assert!(same.new.is_empty() && same.gone.is_empty(), "{same:?}");
    let mut other = with_django(coursys());
    other.listeners.retain(|listener| listener.at.port() != Some(11212));
    other.listeners.push(listener("127.0.0.1:11213", Some(process("memcached"))));
    other.units.services[0].name = "celery2.service".into();
    let differs = differences(&config, &plan(&other), &other);
    let new: Vec<&str> = differs.new.iter().map(|(_, what)| what.as_str()).collect();
    let gone: Vec<&str> = differs.gone.iter().map(|(_, what)| what.as_str()).collect();
    assert_eq!(new, ["port 11213", "unit celery2.service"]);
    assert_eq!(gone, ["nothing listens at port 11212 of this host", "celery.service is neither enabled nor runs"]);
}

fn entry<'a>(found: &'a Found, name: &str) -> &'a Entry {
    found.entries.iter().find(|entry| entry.name == name).unwrap_or_else(|| panic!("{name}: {:?}", found.entries))
}

fn settings_of(facts: &mut Facts) -> &mut Settings {
    let Django::Said(settings, _) = &mut facts.django else { panic!("Django was asked") };
    settings
}

#[test]
fn a_gunicorn_depends_only_on_what_django_names_or_on_the_only_one() {
    let on = |facts: &Facts| {
        let found = plan(facts);
        let gunicorn = entry(&found, "gunicorn");
        (gunicorn.depends_on.clone(), gunicorn.maybe.clone(), write::text(&found))
    };
    // Django names other addresses than those that listen here: they are another site's.
    let mut facts = with_django(coursys());
    settings_of(&mut facts).databases[0].port = "6432".into();
    settings_of(&mut facts).caches[0].locations = vec!["127.0.0.1:11299".into()];
    let (sure, maybe, text) = on(&facts);
    assert_eq!((sure.len(), maybe), (0, ["postgresql", "memcached", "memcached-2"].map(str::to_owned).to_vec()));
    assert!(text.contains("  # depends_on: [postgresql, memcached, memcached-2]   # if it uses it\n"), "{text}");
    loads(&text);
    // It names the second memcached.
    settings_of(&mut facts).caches[0].locations = vec!["localhost:11212".into()];
    assert_eq!(on(&facts).0, ["memcached-2"]);
    // A socket in another folder is another server.
    settings_of(&mut facts).databases[0] = Database {
        engine: "django.db.backends.postgresql".into(),
        host: "/srv/other".into(),
        alias: "default".into(),
        ..Database::default()
    };
    assert_eq!(on(&facts).0, ["memcached-2"]);
    settings_of(&mut facts).databases[0].host = "/run/postgresql".into();
    assert_eq!(on(&facts).0, ["postgresql", "memcached-2"]);
    // Of another site's gunicorn these settings say nothing.
    for listener in &mut facts.listeners {
        if let Some(owner) = listener.owner.as_mut().filter(|owner| owner.command.iter().any(|word| word.ends_with("gunicorn"))) {
            owner.folder = Some("/srv/other".into());
        }
    }
    assert_eq!(on(&facts).0.len(), 0);
    // Without Django the only one of a kind is taken, one of several is not.
    let (sure, maybe, _) = on(&coursys());
    assert_eq!((sure, maybe), (vec!["postgresql".to_owned()], vec!["memcached".to_owned(), "memcached-2".to_owned()]));
}

#[test]
fn a_broker_is_where_django_says_whatever_its_port_and_an_erlang_of_no_known_purpose_is_not_lost() {
    let at = |port: u16, owner: Option<&str>, broker: Option<Place>| {
        let mut facts = with_django(coursys());
        facts.listeners.retain(|listener| !matches!(listener.at.port(), Some(5672 | 15672)));
        let owner = owner.map(process);
        facts.listeners.push(listener(&format!("127.0.0.1:{port}"), owner.clone()));
        facts.listeners.push(listener("127.0.0.1:25672", owner));
        let celery = &mut settings_of(&mut facts).celery;
        match broker {
            Some(broker) => celery.as_mut().expect("a broker").broker = broker,
            None => *celery = None,
        }
        plan(&facts)
    };
    let place = |host: &str, port: u16| Some(Place { scheme: "amqp".into(), host: host.into(), port: Some(port), ..Place::default() });
    let not_watched = |found: &Found| found.unwatched.iter().map(|half| half.what.clone()).collect::<Vec<_>>().join("\n");
    for owner in [Some("beam.smp"), None, Some("haproxy")] {
        let found = at(32841, owner, place("127.0.0.2", 32841));
        assert!(entry(&found, "rabbitmq").body.contains("127.0.0.1:32841"), "{owner:?}");
        assert!(entry(&found, "celery").later.as_ref().is_some_and(|later| later.contains("via: rabbitmq")));
    }
    let found = at(32841, Some("beam.smp"), None);
    let told = not_watched(&found);
    assert!(told.contains("beam.smp (Erlang; RabbitMQ's broker, perhaps) at 127.0.0.1:32841") && !told.contains("25672"), "{told}");
    assert!(told.contains("their broker's address could not be found out: Django's settings name none"), "{told}");
    let told = not_watched(&at(32841, Some("beam.smp"), place("mq.example.org", 5672)));
    assert!(told.contains("their broker is not on this host, but mq.example.org:5672"), "{told}");
    // Another port of a broker that is found is nothing by itself.
    let told = not_watched(&at(5672, Some("beam.smp"), place("localhost", 5672)));
    assert!(!told.contains("beam.smp"), "{told}");
    let mut facts = with_django(coursys());
    facts.listeners.push(listener("127.0.0.1:6432", None));
    settings_of(&mut facts).databases[0].host = "127.0.0.1".into();
    settings_of(&mut facts).databases[0].port = "6432".into();
    assert_eq!(entry(&plan(&facts), "postgresql-2").body, "tcp: {address: \"127.0.0.1:6432\"}", "by Django's word");
    facts.listeners.push(listener("127.0.0.1:11219", None));
    settings_of(&mut facts).caches[0] =
        Cache { backend: "django.core.cache.backends.memcached.PyMemcacheCache".into(), locations: vec!["localhost:11219".into()] };
    assert_eq!(entry(&plan(&facts), "gunicorn").depends_on, ["postgresql-2", "memcached-3"]);
}

#[test]
fn a_service_that_renders_markup_is_found_by_its_script_container_or_unit_and_asked_only_once_somebody_wants_it() {
    let later = |facts: &Facts| {
        let found = plan(facts);
        let text = write::text(&found);
        loads(&text);
        assert!(!text.contains("hunter2"), "{text}");
        let markup = found.entries.iter().find(|entry| entry.name == "markup").map(|entry| (entry.body.clone(), entry.later.clone()));
        (markup, found.unwatched.iter().any(|half| half.what.contains("renders markup")))
    };
    assert_eq!(later(&coursys()), (None, false), "a unit that does not run is told as such");
    let via = |name: &str| (Some((String::new(), Some(format!("markup: {{via: {name}}}")))), false);
    let mut facts = coursys();
    facts.processes.push(process("ruby markdown2html-server.rb amqp://u:hunter2@mq"));
    assert_eq!(later(&facts), via("rabbitmq"));
    let mut facts = coursys();
    facts.units.services[2].active = "active".into();
    assert_eq!(later(&facts), via("rabbitmq"));
    let mut facts = coursys();
    facts.containers.others.push("ruby-markup".into());
    assert_eq!(later(&facts), via("rabbitmq"));
    facts.listeners.retain(|listener| listener.at.port() != Some(5672));
    assert_eq!(later(&facts), (None, true), "without a broker");
    // It is asked over HTTP, by itself or as a container.
    let http = (
        Some(("tcp: {address: \"127.0.0.1:4567\"}".to_owned(), Some("markup: {url: \"http://127.0.0.1:4567/markdown2html\"}".to_owned()))),
        false,
    );
    for owner in [Some(process("ruby /srv/markup.rb")), Some(process("/usr/bin/docker-proxy -host-port 4567 -container-port 80")), None] {
        let mut facts = coursys();
        facts.containers.published.insert(4567, ("coursys-markup-1".into(), 80));
        facts.processes.extend(owner.clone());
        facts.listeners.push(listener("127.0.0.1:4567", owner));
        assert_eq!(later(&facts), http);
    }
}

#[test]
fn ports_whose_owner_is_not_seen_are_one_line() {
    let mut facts = coursys();
    facts.listeners.extend((0..34).map(|n| listener(&format!("127.0.0.1:{}", 40000 + n), None)));
    let found = plan(&facts);
    let told: Vec<&String> = found.unseen.iter().filter(|line| line.contains("whose they are is not seen")).collect();
    assert_eq!(
        told,
        [
            "35 ports (4711, 40000, 40001, 40002, 40003, 40004, 40005, 40006, 40007, 40008 …): whose they are is not seen; run this command as root"
        ]
    );
    assert!(!found.unwatched.iter().any(|half| half.what.contains("4711")));
}

#[test]
fn a_tunnel_speaks_what_its_far_port_or_django_says() {
    let mut facts = with_django(coursys());
    for (port, far) in [(50002, 5432), (50003, 1433), (50004, 3306), (50005, 22), (50006, 7777)] {
        let ssh = process(&format!("ssh -N -L {port}:db:{far} jump"));
        facts.listeners.push(listener(&format!("127.0.0.1:{port}"), Some(ssh)));
    }
    settings_of(&mut facts).databases[0].host = "127.0.0.1".into();
    settings_of(&mut facts).databases[0].port = "50006".into();
    let found = plan(&facts);
    for (port, speaks) in [(50000, "db2"), (50002, "postgres"), (50003, "mssql"), (50005, "ssh"), (50006, "postgres")] {
        let tunnel = entry(&found, &format!("tunnel-{port}"));
        assert!(tunnel.body.contains(&format!("speaks: {speaks}}}")) && tunnel.later.is_none(), "{tunnel:?}");
    }
    // It costs a MySQL a refused login, so that somebody has to want it.
    let mysql = entry(&found, "tunnel-50004");
    assert!(mysql.body.starts_with("tcp: ") && mysql.later.as_ref().is_some_and(|later| later.contains("speaks: mysql}")), "{mysql:?}");
    assert_eq!(entry(&found, "gunicorn").depends_on, ["tunnel-50006", "memcached"]);
    loads(&write::text(&found));
}

#[test]
fn more_ports_of_unknown_programs_than_are_listed_are_counted() {
    let mut facts = coursys();
    facts.listeners.extend((0..45).map(|n| listener(&format!("127.0.0.1:{}", 40000 + n), Some(process("daemon")))));
    let found = plan(&facts);
    assert_eq!(found.unwatched.iter().filter(|half| half.what.starts_with("daemon at ")).count(), 40);
    assert!(found.unseen.contains(&"5 more ports of programs that are not known here".to_owned()), "{:?}", found.unseen);
}
