//! What command lines say: which program it is, where it listens, which queues it takes from. Pure.

use std::path::{Path, PathBuf};

use super::sockets::{At, Process};
use crate::probe::tunnel;

/// How many words from the first on may hold the program, behind an interpreter and its options.
const FIRST: usize = 4;
/// Where Proctor listens unless its configuration names another port.
const PROCTOR: u16 = 9797;

/// Says whether a process is this program, run by itself or by Python.
pub fn is(process: &Process, program: &str) -> bool {
    let first = || process.command.iter().take(FIRST);
    let named = |word: &String| Path::new(word.trim_end_matches(':')).file_name().is_some_and(|name| name == program);
    let python = || process.command.first().is_some_and(|word| is_python(word));
    let module = || first().zip(first().skip(1)).any(|(flag, word)| flag == "-m" && word == program);
    process.command.first().is_some_and(named) || (python() && (first().skip(1).take(1).any(named) || module()))
}

fn is_python(word: &str) -> bool {
    Path::new(word).file_name().is_some_and(|name| name.to_string_lossy().starts_with("python"))
}

/// Says whether it is a Proctor that watches.
pub fn is_proctor(process: &Process) -> bool {
    process.name == "proctor" && process.command.iter().any(|word| word == "serve")
}

/// Returns the Python that runs a process, by its whole path.
pub fn python(process: &Process) -> Option<PathBuf> {
    process.command.first().filter(|word| word.starts_with('/') && is_python(word)).map(PathBuf::from)
}

/// Returns the values of an option: `-b X`, `-bX`, `--bind X`, `--bind=X`.
pub fn options<'a>(command: &'a [String], short: &str, long: &str) -> Vec<&'a str> {
    let mut found = Vec::new();
    let mut words = command.iter().map(String::as_str);
    while let Some(word) = words.next() {
        if word == short || word == long {
            found.extend(words.next());
        } else if let Some(value) = word.strip_prefix(long).and_then(|rest| rest.strip_prefix('=')) {
            found.push(value);
        } else if let Some(value) = word.strip_prefix(short).filter(|_| short.len() == 2 && !word.starts_with("--")) {
            found.push(value);
        }
    }
    found.into_iter().map(|value| value.trim_end_matches(')')).collect()
}

/// Says whether a process must be the one that listens there, though its sockets may not be seen.
pub fn claims(process: &Process, at: &At) -> bool {
    let Some(port) = at.port() else {
        return is(process, "gunicorn") && options(&process.command, "-b", "--bind").contains(&at.to_string().as_str());
    };
    match process.name.as_str() {
        "ssh" | "autossh" => tunnel::far_end(&process.command, port).is_some(),
        "proctor" => port == PROCTOR && is_proctor(process),
        "docker-proxy" => options(&process.command, "-host-port", "-host-port").contains(&port.to_string().as_str()),
        _ => is(process, "gunicorn") && options(&process.command, "-b", "--bind").iter().any(|bind| bind.ends_with(&format!(":{port}"))),
    }
}

/// Returns the port inside the container that a `docker-proxy` leads to.
pub fn inside(process: &Process) -> Option<u16> {
    let port = || options(&process.command, "-container-port", "-container-port").first()?.parse().ok();
    if process.name == "docker-proxy" { port() } else { None }
}

/// Says whether a name is one of what renders markup.
pub fn names_markup(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    name.contains("markup") || name.contains("markdown")
}

/// Returns the script of a service that renders markup, in whatever language; a `puma` says it in its title.
pub fn markup(process: &Process) -> Option<&str> {
    let (first, rest) = process.command.split_first()?;
    let interpreter = Path::new(first).file_name()?.to_string_lossy();
    let script = |word: &&str| {
        let of_script = [".rb", ".ru", ".py", ".js"].iter().any(|end| word.ends_with(end));
        names_markup(word) && (of_script || word.starts_with('['))
    };
    let mut names = rest.iter().take(2 * FIRST).map(|word| word.rsplit('/').next().unwrap_or_default());
    names.find(script).filter(|_| ["ruby", "puma", "rackup", "python", "node"].iter().any(|known| interpreter.starts_with(known)))
}

/// Returns the queues that a worker of Celery takes from; nothing where it is none, the default queue where none is named.
pub fn queues(process: &Process) -> Option<Vec<String>> {
    let title = process.command.first().is_some_and(|word| word.starts_with("[celeryd:"));
    let worker = process.command.iter().any(|word| word.trim_start_matches('(') == "worker");
    if !worker || !(title || is(process, "celery")) {
        return None;
    }
    let named: Vec<String> =
        options(&process.command, "-Q", "--queues").iter().flat_map(|list| list.split(',')).map(str::to_owned).collect();
    Some(named.into_iter().filter(|queue| !queue.is_empty()).collect())
}

/// Returns where a beat of Celery keeps its schedule: as its command line says, else in its folder. Nothing where it is no
/// beat, or where that cannot be known.
pub fn schedule(process: &Process) -> Option<PathBuf> {
    let beat = is(process, "celery") && process.command.iter().any(|word| word == "beat" || word == "-B" || word == "--beat");
    let named = || options(&process.command, "-s", "--schedule").first().map_or("celerybeat-schedule", |name| name).to_owned();
    let path = beat.then(|| folder(process).map_or_else(|| PathBuf::from(named()), |folder| folder.join(named())))?;
    path.is_absolute().then_some(path)
}

/// Says whether it is a beat whose schedule is in the site's database.
pub fn database_scheduler(process: &Process) -> bool {
    is(process, "celery")
        && process.command.iter().any(|word| word == "beat")
        && options(&process.command, "-S", "--scheduler").iter().any(|class| class.contains("django"))
}

/// Returns the folder of a site's process: where it is, else where its command line sends it.
pub fn folder(process: &Process) -> Option<PathBuf> {
    let told = || ["--chdir", "--workdir"].iter().find_map(|flag| options(&process.command, flag, flag).first().copied());
    process.folder.clone().or_else(|| told().map(PathBuf::from).filter(|folder| folder.is_absolute()))
}

/// Returns the configuration of an nginx; the usual one where its command line names none.
pub fn nginx_configuration(process: &Process) -> PathBuf {
    let named = options(&process.command, "-c", "-c").first().map_or(Path::new("nginx.conf"), |name| Path::new(*name)).to_owned();
    let prefix = options(&process.command, "-p", "-p").first().map_or(Path::new("/etc/nginx"), |name| Path::new(*name)).to_owned();
    prefix.join(named)
}

#[cfg(test)]
pub(super) fn process(line: &str) -> Process {
    let command: Vec<String> = line.split(' ').map(str::to_owned).collect();
    let name = Path::new(&command[0]).file_name().expect("a program").to_string_lossy().chars().take(15).collect();
    Process { name, command, folder: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_known_by_their_command_lines() {
        for (line, program) in [
            ("/srv/venv/bin/python3 /srv/venv/bin/gunicorn --bind 127.0.0.1:8000 app", "gunicorn"),
            ("/usr/bin/python3.11 -m gunicorn -b :8000", "gunicorn"),
            ("gunicorn: master [coursys]", "gunicorn"),
            ("python -m celery worker", "celery"),
            ("/srv/venv/bin/python /srv/venv/bin/celery -A courses beat", "celery"),
            ("nginx: master process /usr/sbin/nginx", "nginx"),
        ] {
            assert!(is(&process(line), program), "{line}");
        }
        for (line, program) in [("vim gunicorn", "gunicorn"), ("grep celery worker", "celery"), ("/usr/bin/python3 x.py celery", "celery")]
        {
            assert!(!is(&process(line), program), "{line}");
        }
        assert_eq!(python(&process("/srv/venv/bin/python3 x")), Some("/srv/venv/bin/python3".into()));
        assert_eq!(python(&process("gunicorn: master")), None);
    }

    #[test]
    fn who_listens_is_said_by_command_lines() {
        let tcp = |port: u16| At::Tcp(([127, 0, 0, 1], port).into());
        let proxy =
            process("/usr/bin/docker-proxy -proto tcp -host-ip 0.0.0.0 -host-port 5673 -container-ip 172.17.0.2 -container-port 5672");
        assert!(claims(&proxy, &tcp(5673)) && !claims(&proxy, &tcp(5672)));
        assert_eq!(inside(&proxy), Some(5672));
        let gunicorn = process("/v/bin/python /v/bin/gunicorn -b 127.0.0.1:8000 --bind=unix:/run/g.sock app");
        assert!(claims(&gunicorn, &tcp(8000)) && !claims(&gunicorn, &tcp(800)) && claims(&gunicorn, &At::Unix("/run/g.sock".into())));
        assert!(claims(&process("ssh -N -L 50000:db:50000 jump"), &tcp(50000)));
        assert!(!claims(&process("vim 127.0.0.1:8000"), &tcp(8000)));
        assert!(claims(&process("/usr/bin/proctor serve"), &tcp(9797)) && !claims(&process("/usr/bin/proctor init"), &tcp(9797)));
    }

    #[test]
    fn workers_and_beats_say_what_they_work_on() {
        let of = |line: &str| queues(&process(line));
        assert_eq!(of("/v/bin/python -m celery -A courses worker -Q batch,email -n batch@h"), Some(vec!["batch".into(), "email".into()]));
        assert_eq!(of("/v/bin/python /v/bin/celery worker --queues=sims"), Some(vec!["sims".into()]));
        assert_eq!(of("[celeryd: fast@h:MainProcess] -active- (worker -l info -Q fast)"), Some(vec!["fast".into()]));
        assert_eq!((of("/v/bin/celery worker"), of("/v/bin/celery beat")), (Some(vec![]), None));
        let mut beat = process("/v/bin/python /v/bin/celery -A courses beat -s data/schedule");
        assert_eq!(schedule(&beat), None, "where it is may not be seen");
        beat.folder = Some("/coursys".into());
        assert_eq!(schedule(&beat), Some("/coursys/data/schedule".into()));
        assert_eq!(schedule(&process("/v/bin/celery beat --schedule=/x/y")), Some("/x/y".into()));
        assert!(database_scheduler(&process("celery beat --scheduler django_celery_beat.schedulers:DatabaseScheduler")));
    }

    #[test]
    fn a_service_that_renders_markup_is_known_by_its_script() {
        let of = |line: &str| markup(&process(line)).map(str::to_owned);
        for (line, script) in [
            ("ruby /srv/markdown2html-server.rb amqp://u:hunter2@mq", "markdown2html-server.rb"),
            ("/usr/local/bin/ruby -W0 markup.rb", "markup.rb"),
            ("puma 6.4.2 (tcp://0.0.0.0:4567) [ruby-markup]", "[ruby-markup]"),
            ("/v/bin/python /site/markup.py", "markup.py"),
        ] {
            assert_eq!(of(line).as_deref(), Some(script), "{line}");
        }
        for line in ["vim /srv/markdown2html-server.rb", "python /markup/manage.py runserver", "ruby server.rb --markup", "ruby"] {
            assert_eq!(of(line), None, "{line}");
        }
    }

    #[test]
    fn the_configuration_of_nginx_is_where_its_command_line_says() {
        let of = |line: &str| nginx_configuration(&process(line)).display().to_string();
        assert_eq!(of("nginx: master process /usr/sbin/nginx -g daemon on; master_process on;"), "/etc/nginx/nginx.conf");
        assert_eq!(of("nginx: master process nginx -p /srv/web -c site.conf"), "/srv/web/site.conf");
        assert_eq!(of("nginx: master process nginx -c /tmp/n.conf"), "/tmp/n.conf");
    }
}
