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
