//! `proctor init` on the real services, and on a Django project that is well or is not.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use proctor::discover::django;

use super::support::docker::Container;
use super::support::gunicorn::venv;
use super::support::memcached::memcached;
use super::support::nginx::Nginx;
use super::support::process::{Process, eventually, free_port, install, program};
use super::support::rabbitmq::Rabbitmq;
use super::support::site::Markup;
use super::support::systemd::{Unit, bus, stack, systemctl};
use super::support::tunnel::{Mariadb, Postgres, Tunnel, as_user};

/// What must be read nowhere.
const SECRET: &str = "hunter2-canary";

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// A small Django project in a folder of its own, that of `nobody` where we are root.
struct Project {
    folder: tempfile::TempDir,
    python: PathBuf,
}

impl Project {
    /// Makes one with these lines in its settings.
    fn new(settings: &str) -> Option<Self> {
        let python = venv()?.join("bin/python");
        let folder = tempfile::tempdir().expect("a folder");
        let this = Self { folder, python };
        this.write(
            "manage.py",
            "#!/usr/bin/env python3\nimport os, sys\nos.environ.setdefault('DJANGO_SETTINGS_MODULE', 'site_settings')\n\
             from django.core.management import execute_from_command_line\nexecute_from_command_line(sys.argv)\n",
        );
        this.write(
            "site_settings.py",
            &format!(
                "SECRET_KEY = '{SECRET}'\nDEBUG = False\nINSTALLED_APPS = []\nROOT_URLCONF = 'site_settings'\nurlpatterns = []\n{settings}"
            ),
        );
        this.write("wsgi.py", "import os\nos.environ['DJANGO_SETTINGS_MODULE'] = 'site_settings'\nfrom django.core.wsgi import get_wsgi_application\napplication = get_wsgi_application()\n");
        if rustix::process::geteuid().is_root() {
            let whole = Command::new("chown").args(["-R", "nobody"]).arg(this.folder.path()).status().expect("chown runs");
            assert!(whole.success());
        }
        Some(this)
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.folder.path().join(name), text).expect("is written");
    }

    /// Runs `proctor init` on it, writing there.
    fn init(&self, to: &Path, more: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_proctor"));
        command.args(["init", "--output"]).arg(to).arg("--django").arg(self.folder.path()).arg("--python").arg(&self.python);
        command.args(more).output().expect("it runs")
    }

    /// Returns what is in its folder.
    fn files(&self) -> Vec<String> {
        let mut names: Vec<String> = std::fs::read_dir(self.folder.path())
            .expect("a folder")
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }
}

/// A memcached.
struct Cache {
    port: u16,
    process: Process,
    folder: tempfile::TempDir,
}

impl Cache {
    async fn start() -> Option<Self> {
        let (folder, port) = (tempfile::tempdir().expect("a folder"), free_port());
        let process = memcached(folder.path(), port)?;
        eventually("memcached listens", Duration::from_secs(30), || async {
            tokio::net::TcpStream::connect(("127.0.0.1", port)).await.ok()
        })
        .await;
        Some(Self { port, process, folder })
    }
}

/// Runs Proctor with a configuration; returns its exit code and what it said.
fn proctor(config: &Path, arguments: &[&str], env: &[(&str, &Path)]) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_proctor"));
    let output = command.arg("--config").arg(config).args(arguments).envs(env.iter().copied()).output().expect("it runs");
    (output.status.code(), said(&output))
}

/// The settings of a site on these ports.
fn settings(broker: u16, memcached: u16, more: &str) -> String {
    format!(
        r#"
ADMINS = [("Ann", "ann@example.org"), ("Böb, the admin", "bob@example.org"), ("Ann again", "ann@EXAMPLE.org")]
SERVER_EMAIL = "coursys@example.org"
EMAIL_SUBJECT_PREFIX = "[CourSys] "
EMAIL_HOST = "mail.example.org"
EMAIL_PORT = 587
EMAIL_USE_TLS = True
EMAIL_HOST_USER = "coursys"
EMAIL_HOST_PASSWORD = "{SECRET}"
ALLOWED_HOSTS = ["coursys.example.org", ".other.example.org"]
CACHES = {{"default": {{"BACKEND": "django.core.cache.backends.memcached.PyMemcacheCache", "LOCATION": "127.0.0.1:{memcached}"}},
          "more": {{"BACKEND": "django.core.cache.backends.redis.RedisCache", "LOCATION": "redis://:{SECRET}@127.0.0.1:6399/1"}}}}
DATABASES = {{"default": {{"ENGINE": "django.db.backends.postgresql", "NAME": "coursys", "USER": "coursys", "PASSWORD": "{SECRET}",
                         "HOST": "db.example.org", "PORT": 5433}}}}
CELERY_BROKER_URL = "amqp://coursys:{SECRET}@127.0.0.1:{broker}/myvhost"
CELERY_TASK_ROUTES = {{"a.*": {{"queue": "email"}}, "b.*": "fast"}}
CELERY_BEAT_SCHEDULE = {{"tick": {{"task": "a.tick", "schedule": 60}}}}
HAYSTACK_CONNECTIONS = {{"default": {{"ENGINE": "x", "URL": "http://elastic:{SECRET}@search.example.org:9200/", "INDEX_NAME": "haystack"}}}}
{more}
"#
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn init_finds_the_services_and_the_django_site_and_what_it_prints_opens_the_rest() {
    let Some(rabbitmq) = Rabbitmq::start(false).await else { return };
    let (Some(nginx), Some(tunnel)) = (Nginx::start().await, Tunnel::to(&["sshd"]).await) else { return };
    let Some(cache) = Cache::start().await else { return };
    rabbitmq.ctl(&["add_vhost", "myvhost"]);
    let Some(project) = Project::new(&settings(rabbitmq.port, cache.port, "")) else { return };
    rabbitmq.user("service", "myvhost", [".*", ".*", ".*"]);
    let Some(_markup) = Markup::start(&format!("amqp://service:pw-service@127.0.0.1:{}/myvhost", rabbitmq.port), "").await else { return };
    let gunicorn = free_port();
    let mut command = Command::new(&project.python);
    command
        .args(["-m", "gunicorn", "--chdir"])
        .arg(project.folder.path())
        .args(["--bind", &format!("127.0.0.1:{gunicorn}"), "wsgi:application"])
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("GUNICORN_CMD_ARGS", "--no-control-socket");
    let folder = tempfile::tempdir().expect("a folder");
    let _gunicorn = Process::start(&mut command, &folder.path().join("gunicorn.log"));
    eventually("gunicorn listens", Duration::from_secs(60), || async {
        tokio::net::TcpStream::connect(("127.0.0.1", gunicorn)).await.ok()
    })
    .await;
    let before = project.files();
    let file = folder.path().join("etc/proctor.yml");
    let output = project.init(&file, &[]);
    let printed = said(&output);
    assert_eq!(output.status.code(), Some(0), "{printed}");
    assert_eq!(project.files(), before, "nothing is written beside the site's code");
    let text = std::fs::read_to_string(&file).expect("it is written");
    for line in [
        format!("memcached: {{address: \"127.0.0.1:{}\"}}", cache.port),
        format!("tcp: {{address: \"127.0.0.1:{}\"}}", rabbitmq.port),
        format!("gunicorn: {{listen: \"127.0.0.1:{gunicorn}\", host_header: \"coursys.example.org\"}}"),
        format!("status: \"http://127.0.0.1:{}/nginx_status\", sites: [\"https://coursys.example.org:{}/\"]", nginx.http, nginx.https),
        format!("\"http://coursys.example.org:{}/\": \"https://coursys.example.org/\"", nginx.http),
        format!("tunnel-{port}: {{tcp: {{address: \"127.0.0.1:{port}\"}}}}", port = tunnel.ports[0]),
        format!("\"coursys.example.org:{}\"", nginx.https),
        "{tcp: {address: \"db.example.org:5433\"}}".to_owned(),
        "database: \"coursys\"".to_owned(),
        "admins: [\"Ann <ann@example.org>\", \"\\\"Böb, the admin\\\" <bob@example.org>\"]".to_owned(),
        "from: \"coursys@example.org\"".to_owned(),
        "subject_prefix: \"[CourSys] \"".to_owned(),
        "smtp: {host: \"mail.example.org\", port: 587, tls: starttls, username: \"coursys\", password_file: ".to_owned(),
        "vhost: \"myvhost\", username: proctor, password_file: ".to_owned(),
        "celery: {celery: {via: rabbitmq".to_owned(),
        "# service that renders markup (markup.py), by its queue".to_owned(),
        "# markup: {markup: {via: rabbitmq".to_owned(),
        "site: {name: \"coursys\"}".to_owned(),
        format!("/manage.py, as {}", if rustix::process::geteuid().is_root() { "nobody" } else { "" }),
    ] {
        assert!(text.contains(&line), "{line}\nin\n{text}");
    }
    assert!(!text.contains(SECRET) && !printed.contains(SECRET), "{text}{printed}");
    for list in ["\nWatched:\n", "\nHalf watched; ", "\nNot watched; "] {
        assert!(printed.contains(list), "{list} in {printed}");
    }
    let (code, checked) = proctor(&file, &["config", "check"], &[]);
    assert!(code == Some(0) && checked.contains("is right"), "{checked}");

    // A second time it leaves the file alone.
    let again = project.init(&file, &[]);
    assert!(again.status.code() == Some(2) && said(&again).contains("exists and stays as it is"), "{}", said(&again));
    assert_eq!(std::fs::read_to_string(&file).expect("is there"), text);

    // What is found works.
    let own = folder.path().join("own.yml");
    let of = |port: u16| {
        text.lines().find(|line| !line.trim_start().starts_with('#') && line.contains(&format!(":{port}"))).expect("is found").to_owned()
    };
    let name = |line: &str| line.trim_start().split(": ").next().expect("a name").to_owned();
    let lines: Vec<String> = [cache.port, rabbitmq.port, gunicorn, nginx.http].map(of).to_vec();
    let whole = |lines: &[String]| {
        let bare = |line: &String| {
            line.split(", depends_on: ").next().map(|head| if head.len() < line.len() { format!("{head}}}") } else { head.to_owned() })
        };
        format!("probes:\n{}\n", lines.iter().filter_map(bare).collect::<Vec<_>>().join("\n"))
    };
    std::fs::write(&own, whole(&lines)).expect("is written");
    // The redirect leads where nobody is, and is not followed.
    let ca = nginx.ca_file();
    let (code, checked) = proctor(&own, &["check"], &[("SSL_CERT_FILE", &ca)]);
    assert_eq!(code, Some(0), "{checked}\n{}", whole(&lines));

    // The command that is printed for RabbitMQ opens it, and the line beside it then works, with Celery's.
    let command =
        printed.lines().find(|line| line.contains("rabbitmqctl add_user proctor <") && line.contains("myvhost")).expect("a command");
    let ran = rabbitmq.shell(command);
    assert!(ran.status.success(), "{command}: {}", said(&ran));
    let secret = file.with_file_name("rabbitmq-password");
    assert_eq!(secret.metadata().expect("it is made").permissions().mode() & 0o007, 0);
    let full = text
        .lines()
        .find(|line| line.trim_start().starts_with("# rabbitmq") && line.contains(&format!("port: {}", rabbitmq.port)))
        .expect("a line");
    let full = full.replacen("# ", "", 1).split(", queues:").next().expect("a line").to_owned() + "}}";
    std::fs::write(&own, format!("probes:\n{full}\n")).expect("is written");
    let (code, checked) = proctor(&own, &["check"], &[]);
    assert!(code == Some(0) && checked.starts_with("ok "), "{checked}\n{full}");
    assert!(name(&full).starts_with("rabbitmq"));
    let markup = text.lines().find(|line| line.trim_start().starts_with("# markup: ")).expect("a line").replacen("# ", "", 1);
    std::fs::write(&own, format!("probes:\n{full}\n{markup}\n")).expect("is written");
    let (code, checked) = proctor(&own, &["check"], &[]);
    assert!(code == Some(0) && checked.contains("All 2 targets are well."), "{checked}\n{markup}");

    // The host as it is now, against the file; then a service less and one more.
    let diff = |file: &Path| {
        let (code, text) = proctor(file, &["init", "--diff", "--no-django"], &[]);
        (code, text)
    };
    let (_, same) = diff(&file);
    let ours = [cache.port, rabbitmq.port, gunicorn, nginx.http, tunnel.ports[0]];
    for port in ours {
        assert!(!same.contains(&port.to_string()), "{port} is neither new nor gone: {same}");
    }
    let gone = cache.port;
    drop(cache);
    let more = Cache::start().await.expect("it is installed");
    let (code, differs) = diff(&file);
    assert_eq!(code, Some(1), "{differs}");
    let words = differs.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(words.contains(&format!("nothing listens at port {gone} of this host")), "{differs}");
    assert!(words.contains(&format!("memcached: {{address: \"127.0.0.1:{}\"}}", more.port)), "{differs}");
    assert_eq!(std::fs::read_to_string(&file).expect("is there"), text, "it writes nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_commands_that_are_printed_for_databases_open_them() {
    let (Some(postgres), Some(mariadb)) = (Postgres::start(false).await, Mariadb::start(&[]).await) else { return };
    postgres.let_in("host all proctor 127.0.0.1/32 scram-sha-256");
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("proctor.yml");
    let output =
        Command::new(env!("CARGO_BIN_EXE_proctor")).args(["init", "--no-django", "--output"]).arg(&file).output().expect("it runs");
    let printed = said(&output);
    assert!(output.status.success(), "{printed}");
    let text = std::fs::read_to_string(&file).expect("it is written");
    let clients = [
        (postgres.port, "psql", format!("psql -X -q -v ON_ERROR_STOP=1 -h 127.0.0.1 -p {} -U postgres", postgres.port)),
        (mariadb.port, "mysql", format!("mariadb --no-defaults -u root -S {}", mariadb.socket().display())),
    ];
    for (port, program, client) in clients {
        // What stands beside the server's name is its port; the command comes in the line after what is missing.
        let lines: Vec<&str> = printed.lines().collect();
        let at =
            lines.iter().position(|line| line.contains("SQL at 127.0.0.1:") && line.contains(&format!(":{port}"))).expect("it is listed");
        let command = lines[at..].iter().find(|line| line.contains("head -c 18")).expect("a command");
        let (before, _) = command.rsplit_once('|').expect("it ends with the client");
        assert!(command.rsplit_once('|').expect("a pipe").1.contains(program), "{command}");
        let ran = Command::new("sh").args(["-c", &format!("{before} | {client}")]).output().expect("sh runs");
        assert!(ran.status.success() && ran.stderr.is_empty(), "{before}: {}", said(&ran));
        let full = text
            .lines()
            .find(|line| line.trim_start().starts_with("# ") && line.contains(&format!("127.0.0.1:{port}\"")) && line.contains("username"))
            .expect("a line");
        let own = folder.path().join("own.yml");
        std::fs::write(&own, format!("probes:\n{}\n", full.replacen("# ", "", 1))).expect("is written");
        let (code, checked) = proctor(&own, &["check"], &[]);
        assert!(code == Some(0) && checked.starts_with("ok "), "{checked}\n{full}");
    }
}

#[tokio::test]
async fn celery_says_its_queues_as_the_app_of_the_project_has_them_and_no_password_is_on_a_command_line() {
    let more = format!(
        "INSTALLED_APPS = ['site_app']\nCELERY_BROKER_URL = 'amqp://u:{SECRET}@127.0.0.1:5699//'\nCELERY_TASK_DEFAULT_QUEUE = 'batch'\n\
         CELERY_BEAT_SCHEDULER = 'django_celery_beat.schedulers:DatabaseScheduler'\n"
    );
    let Some(project) = Project::new(&more) else { return };
    std::fs::create_dir(project.folder.path().join("site_app")).expect("a folder");
    project.write(
        "site_app/__init__.py",
        "from celery import Celery\napp = Celery('site')\napp.config_from_object('django.conf:settings', namespace='CELERY')\napp.autodiscover_tasks()\n",
    );
    project.write("site_app/tasks.py", "from celery import shared_task\n@shared_task(queue='sims')\ndef simulate(): pass\n");
    let owner = if rustix::process::geteuid().is_root() { Some("nobody") } else { None };
    let asked = django::Project::at(project.folder.path(), (Some(&project.python), None), owner).expect("it can be run");
    let settings = asked.ask(Duration::from_secs(60)).await.expect("it answers");
    let celery = settings.celery.clone().expect("it has a broker");
    assert_eq!(celery.queues, ["batch", "sims"]);
    assert_eq!((celery.broker.port, celery.broker.path.as_str(), celery.broker.has_password), (Some(5699), "//", true));
    assert!(celery.scheduler.starts_with("django_celery_beat") && settings.unknown.is_empty(), "{settings:?}");
    assert!(!format!("{settings:?}").contains(SECRET), "{settings:?}");

    // While it runs, nothing of it is on a command line.
    project.write("site_app/__init__.py", "import time\ntime.sleep(3600)\n");
    let folder = tempfile::tempdir().expect("a folder");
    let mut command = Command::new(env!("CARGO_BIN_EXE_proctor"));
    command
        .args(["init", "--output"])
        .arg(folder.path().join("proctor.yml"))
        .arg("--django")
        .arg(project.folder.path())
        .arg("--python")
        .arg(&project.python);
    let _init = Process::start(&mut command, &folder.path().join("log"));
    let lines = || {
        let pids = std::fs::read_dir("/proc").expect("it is there").flatten();
        pids.filter_map(|pid| Some((pid.path(), std::fs::read(pid.path().join("cmdline")).ok()?)))
            .map(|(pid, line)| (pid, String::from_utf8_lossy(&line).into_owned()))
            .collect::<Vec<_>>()
    };
    let here = project.folder.path().to_owned();
    let runs = || async {
        lines()
            .into_iter()
            .find(|(pid, line)| line.contains("PROCTOR_SCRIPT") && std::fs::read_link(pid.join("cwd")).is_ok_and(|cwd| cwd == here))
    };
    let (_, line) = eventually("manage.py runs", Duration::from_secs(30), runs).await;
    assert!(!line.contains(SECRET), "{line}");
}

#[test]
fn admins_of_django_6_and_its_mailers_are_read() {
    let more = format!(
        "ADMINS = ['ann@example.org', '\"Böb\" <bob@example.org>', 'no address', 'x@example.org\\nBcc: y@example.org']\n\
         MAILERS = {{'default': {{'BACKEND': 'django.core.mail.backends.smtp.EmailBackend', 'OPTIONS': {{'host': 'relay.example.org', 'use_ssl': True, 'username': 'u', 'password': '{SECRET}'}}}}}}\n"
    );
    let Some(project) = Project::new(&settings(1, 1, &more)) else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("proctor.yml");
    let output = project.init(&file, &[]);
    let printed = said(&output);
    assert_eq!(output.status.code(), Some(0), "{printed}");
    let text = std::fs::read_to_string(&file).expect("it is written");
    assert!(text.contains("admins: [ann@example.org, \"Böb <bob@example.org>\"]"), "{text}");
    assert!(text.contains("smtp: {host: \"relay.example.org\", port: 465, tls: tls, username: \"u\", password_file: "), "{text}");
    assert!(printed.contains("settings.MAILERS[\"default\"][\"OPTIONS\"][\"password\"]"), "{printed}");
    assert!(!text.contains(SECRET) && !printed.contains(SECRET));
    let (code, checked) = proctor(&file, &["config", "check"], &[]);
    assert_eq!(code, Some(0), "{checked}");
}

#[test]
fn the_command_that_is_printed_for_the_password_of_the_mails_takes_it_from_django() {
    let Some(project) = Project::new(&settings(1, 1, "")) else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("proctor.yml");
    let printed = said(&project.init(&file, &[]));
    let command = printed.lines().find(|line| line.contains("EMAIL_HOST_PASSWORD")).expect("a command").trim();
    // Where the tests run there is no sudo; the rest is as it is printed.
    let (_, rest) = command.split_once("sudo -u ").expect("as its owner");
    let (_, rest) = rest.split_once(' ').expect("a user");
    let ran = Command::new("sh").args(["-c", rest]).env("PYTHONDONTWRITEBYTECODE", "1").output().expect("it runs");
    assert!(ran.status.success(), "{rest}: {}", said(&ran));
    let secret = folder.path().join("smtp-password");
    assert_eq!(std::fs::read_to_string(&secret).expect("it is made").trim_end(), SECRET);
    assert_eq!(secret.metadata().expect("it is made").mode() & 0o007, 0);
}

#[test]
fn a_django_that_is_dead_hangs_or_prints_without_end_is_told_in_one_line_and_the_host_is_written_all_the_same() {
    let hang = "import time\nprint('garbage', flush=True)\ntime.sleep(3600)\n";
    // Its child must not outlive it, nor may what it prints fill the memory.
    let flood = "import os, subprocess\nprint('x' * 100)\nsubprocess.Popen(['sleep', 'CHILD'])\nwhile True: os.write(1, b'{\"version\": \"x\"}' * 1000)\n";
    let cases: [(&str, &str, &[&str]); 7] = [
        ("raise RuntimeError('postgres://u:hunter2-canary@db')\n", "does not start as", &["RuntimeError (", "site_settings.py, line 6)"]),
        ("import os\nX = os.environ['COURSYS_KEY']\n", "does not start as", &["KeyError: 'COURSYS_KEY'"]),
        ("import nowhere\n", "does not start as", &["ModuleNotFoundError: No module named 'nowhere'"]),
        ("import os\nos._exit(3)\n", "Python ended with status 3", &[]),
        ("import sys\nsys.exit('hunter2-canary')\n", "does not start as", &["SystemExit"]),
        (hang, "did not say what its settings are within 3s and was killed", &[]),
        (flood, "did not say what its settings are within 3s and was killed", &[]),
    ];
    let child = format!("{}", 1_000_000 + std::process::id());
    for (lines, why, more) in cases {
        let Some(project) = Project::new(&lines.replace("CHILD", &child)) else { return };
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("proctor.yml");
        let limit: &[&str] = if why.contains("3s") { &["--django-timeout", "3s"] } else { &[] };
        let output = project.init(&file, limit);
        let printed = said(&output);
        assert_eq!(output.status.code(), Some(0), "{lines}: {printed}");
        let words = printed.split_whitespace().collect::<Vec<_>>().join(" ");
        for wanted in [&[why], more].concat() {
            assert!(words.contains(wanted), "{wanted}: {printed}");
        }
        let text = std::fs::read_to_string(&file).expect("it is written");
        assert!(text.contains("host: {host: {}") && text.contains("# notify:"), "{text}");
        assert!(!text.contains(SECRET) && !printed.contains(SECRET), "{printed}");
        let (code, checked) = proctor(&file, &["config", "check"], &[]);
        assert_eq!(code, Some(0), "{checked}");
    }
    let left = || Command::new("pgrep").args(["-f", &format!("^sleep {child}$")]).output().expect("pgrep runs").stdout;
    // It was killed; that it is gone may take a moment.
    let begin = std::time::Instant::now();
    while !left().is_empty() {
        assert!(begin.elapsed() < Duration::from_secs(30), "a child of the project is left");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn garbage_of_the_project_disturbs_nothing_and_what_it_names_cannot_leave_its_quotes() {
    let more = "import sys\nprint('{\"failed\": \"garbage\"}')\nprint('noise', file=sys.stderr)\n\
                EMAIL_SUBJECT_PREFIX = '\"]}\\nactions: {}'\nALLOWED_HOSTS = ['a\"}: b', '*']\nEMAIL_HOST = 'x; rm -rf /'\n\
                CELERY_TASK_ROUTES = {'x': {'queue': '\"}, evil: {'}}\nCACHES = {'default': {'LOCATION': 5}}\n";
    let Some(project) = Project::new(&settings(1, 1, more)) else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("proctor.yml");
    let output = project.init(&file, &[]);
    let printed = said(&output);
    assert_eq!(output.status.code(), Some(0), "{printed}");
    assert!(printed.contains("caches (TypeError)"), "{printed}");
    let text = std::fs::read_to_string(&file).expect("it is written");
    assert!(!text.contains("\nactions:") && !text.contains("rm -rf"), "{text}");
    let (code, checked) = proctor(&file, &["config", "check"], &[]);
    assert_eq!(code, Some(0), "{checked}");
}

#[test]
fn manage_py_runs_as_its_owner_and_never_as_root_by_itself() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root can become others");
        return;
    }
    let more = "import os\nALLOWED_HOSTS = ['uid%d.example.org' % os.getuid(), 'gid%d.example.org' % os.getgid(), 'groups%d.example.org' % len(os.getgroups()), 'home%s.example.org' % len(os.environ.get('ROOTS', ''))]\n";
    let Some(project) = Project::new(&settings(1, 1, more)) else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let site = |name: &str, more: &[&str]| {
        let file = folder.path().join(name);
        let printed = said(&project.init(&file, more));
        (std::fs::read_to_string(&file).unwrap_or_default(), printed)
    };
    let (text, printed) = site("owner.yml", &[]);
    assert!(text.contains("name: \"uid65534\""), "{printed}{text}");
    assert!(Command::new("chown").args(["-R", "root"]).arg(project.folder.path()).status().expect("chown runs").success());
    let (text, printed) = site("root.yml", &[]);
    let words = printed.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(words.contains("belongs to root and was not run") && words.contains("--django-user NAME"), "{printed}");
    assert!(!text.contains("uid0"), "{text}");
    assert!(Command::new("chmod").args(["-R", "a+rX"]).arg(project.folder.path()).status().expect("chmod runs").success());
    let (text, printed) = site("other.yml", &["--django-user", "nobody"]);
    assert!(text.contains("name: \"uid65534\""), "{printed}{text}");
}

#[test]
fn a_user_without_rights_gets_a_configuration_and_is_told_what_was_not_seen() {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o777)).expect("is set");
    let binary = folder.path().join("proctor");
    install(Path::new(env!("CARGO_BIN_EXE_proctor")), &binary);
    let file = folder.path().join("proctor.yml");
    let output = as_user("nobody", &binary).args(["init", "--output"]).arg(&file).output().expect("it runs");
    let printed = said(&output);
    assert_eq!(output.status.code(), Some(0), "{printed}");
    let (code, checked) = proctor(&file, &["config", "check"], &[]);
    assert_eq!(code, Some(0), "{checked}");
    let shut = folder.path().join("proctor/x.yml");
    let output = as_user("nobody", &binary).args(["init", "--output"]).arg(&shut).output().expect("it runs");
    assert!(output.status.code() == Some(2) && said(&output).contains("cannot write "), "{}", said(&output));
}

/// Runs a script of the shell where nothing else runs and listens, with these words as its `$1`, `$2` …; `listens PORT`
/// waits until somebody does.
fn alone(script: &str, words: &[&Path]) -> Option<Output> {
    const LISTENS: &str = "ip link set lo up\nlistens() {\n  n=0\n  until grep -q \":$(printf %04X \"$1\") 00000000:0000 0A\" /proc/net/tcp; do\n\
                           n=$((n + 1)); [ $n -lt 600 ]; sleep 0.1\n  done\n}\n";
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root can make a place of its own");
        return None;
    }
    let mut command = Command::new(program("unshare")?);
    program("ip")?;
    command.args(["--net", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-euc"]).arg(format!("{LISTENS}{script}")).arg("sh");
    command.args(words).env("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/nowhere").env("DOCKER_HOST", "unix:///nowhere");
    Some(command.output().expect("it runs"))
}

#[test]
fn manage_py_is_found_where_the_site_runs_and_of_several_none_is_run() {
    let (Some(one), Some(other)) = (Project::new(&settings(1, 1, "")), Project::new(&settings(1, 1, ""))) else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let init = |runs: &str| {
        let file = folder.path().join(format!("{}.yml", runs.len()));
        let words = [Path::new(env!("CARGO_BIN_EXE_proctor")), &file, &one.python, one.folder.path(), other.folder.path(), folder.path()];
        let script = format!(
            "export PYTHONDONTWRITEBYTECODE=1 GUNICORN_CMD_ARGS=--no-control-socket\n\
             runs() {{ \"$python\" -m gunicorn --chdir \"$2\" --bind 127.0.0.1:$1 wsgi:application >\"$log/$1\" 2>&1 & listens $1; }}\n\
             proctor=$1 file=$2 python=$3 one=$4 other=$5 log=$6\n{runs}\n\"$proctor\" init --output \"$file\" --python \"$python\"\n"
        );
        let output = alone(&script, &words)?;
        let printed = said(&output).split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(output.status.code(), Some(0), "{printed}");
        Some((std::fs::read_to_string(&file).expect("it is written"), printed))
    };
    let Some((text, printed)) = init("runs 8000 \"$one\"") else { return };
    let manage = |project: &Project| project.folder.path().join("manage.py").display().to_string();
    assert!(text.contains(&format!(" at {}, as nobody.", manage(&one))), "{printed}\n{text}");
    assert!(text.contains("from: \"coursys@example.org\"") && text.contains("host_header: \"coursys.example.org\""), "{text}");
    assert!(!text.contains(SECRET) && !printed.contains(SECRET), "{text}{printed}");
    let (text, printed) = init("runs 8000 \"$one\"; runs 8001 \"$other\"").expect("it could before");
    assert!(
        printed.contains("several manage.py were found, and none was run (") && printed.contains("name one by --django PATH"),
        "{printed}"
    );
    assert!(printed.contains(&manage(&one)) && printed.contains(&manage(&other)) && text.contains("# notify:"), "{printed}");
    let (text, printed) = init("").expect("it could before");
    assert!(printed.contains("no manage.py was found where gunicorn and Celery run: name it by --django PATH"), "{printed}");
    assert!(text.contains("host: {host: {}"), "{text}");
}

#[test]
fn the_web_port_of_proctor_itself_is_known_to_users_who_do_not_see_its_owner() {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o777)).expect("is set");
    std::fs::copy(env!("CARGO_BIN_EXE_proctor"), folder.path().join("proctor")).expect("is copied");
    let text = "web: {listen: \"127.0.0.1:9123\"}\ncontrol: {socket: \"FOLDER/control.sock\"}\nstate: {path: \"FOLDER/state.db\"}\nprobes: {host: {host: {}}}\n";
    std::fs::write(folder.path().join("own.yml"), text.replace("FOLDER", &folder.path().display().to_string())).expect("is written");
    let script = "cd \"$1\"\n\
                  as() { user=$1 group=$2; shift 2; exec setpriv --reuid=$user --regid=$group --clear-groups -- \"$@\"; }\n\
                  (as games games ./proctor --config own.yml serve >log 2>&1) &\n\
                  (as man man memcached -l 127.0.0.1 -p 9124 -U 0 >log.other 2>&1) &\n\
                  listens 9123; listens 9124\n\
                  (as nobody nogroup ./proctor init --output new.yml)\n";
    let (Some(_), Some(output)) = (program("memcached"), alone(script, &[folder.path()])) else { return };
    let log = std::fs::read_to_string(folder.path().join("log")).unwrap_or_default();
    let printed = said(&output).split_whitespace().collect::<Vec<_>>().join(" ");
    assert_eq!(output.status.code(), Some(0), "{printed}\n{log}");
    assert!(printed.contains("1 port (9124): whose it is is not seen") && !printed.contains("9123"), "{printed}");
}

#[test]
fn units_of_systemd_and_services_of_compose_are_found() {
    let (Some(bus), Some(socket)) = (bus(), stack("docker.sock")) else { return };
    let unit = Unit::new("backup.service", &["[Service]", "ExecStart=/bin/sleep infinity", "[Install]", "WantedBy=multi-user.target"]);
    let timer =
        Unit::new("report.timer", &["[Timer]", "OnCalendar=daily", "Unit=proctor-well.service", "[Install]", "WantedBy=timers.target"]);
    systemctl(&["daemon-reload"]);
    unit.systemctl("enable");
    timer.systemctl("enable");
    unit.systemctl("start");
    let project = format!("init{}", std::process::id());
    let labels = [format!("com.docker.compose.project={project}"), "com.docker.compose.service=web".to_owned()];
    let _container = Container::start(&socket, "init", &["--label", &labels[0], "--label", &labels[1]], &["sleep", "3600"]);
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("proctor.yml");
    let mut command = Command::new(env!("CARGO_BIN_EXE_proctor"));
    command.args(["init", "--no-django", "--output"]).arg(&file).env("DBUS_SYSTEM_BUS_ADDRESS", format!("unix:path={}", bus.display()));
    let output = command.env("DOCKER_HOST", format!("unix://{}", socket.display())).output().expect("it runs");
    let text = std::fs::read_to_string(&file).unwrap_or_default();
    for one in [&unit, &timer] {
        one.systemctl("disable");
    }
    let units = text.lines().find(|line| line.starts_with("  units: ")).unwrap_or_default();
    assert!(units.contains(&unit.0) && units.contains(&timer.0), "{}{text}", said(&output));
    assert!(text.contains(&format!("project: \"{project}\", services: [\"web\"]")), "{text}");
    let (code, checked) = proctor(&file, &["config", "check"], &[]);
    assert_eq!(code, Some(0), "{checked}");
}

#[test]
fn a_comparison_with_an_output_says_how_its_file_is_named() {
    let output = Command::new(env!("CARGO_BIN_EXE_proctor")).args(["init", "--diff", "--output", "x.yml"]).output().expect("it runs");
    assert!(output.status.code() == Some(2) && said(&output).contains("proctor init --diff --config x.yml"), "{}", said(&output));
}

#[test]
fn a_configuration_that_watches_nothing_is_right_and_warned_of() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("empty.yml");
    std::fs::write(&file, "").expect("is written");
    let (code, text) = proctor(&file, &["config", "check"], &[]);
    assert!(code == Some(0) && text.contains("warning: it names no probes, so nothing is watched"), "{text}");
    std::fs::write(&file, "probes: {r: {rabbitmq: {port: 0}}}\n").expect("is written");
    let (code, text) = proctor(&file, &["config", "check"], &[]);
    assert!(code == Some(1) && text.contains("expected a port from 1 to 65535"), "{text}");
}
