//! What of the site works behind its broker: the markup service, beat, a worker.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::gunicorn::venv;
use super::process::{Process, eventually};

const SITE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/stack/site");

/// The stand-in for the markup service.
pub(crate) struct Markup {
    /// The service.
    pub(crate) process: Process,
    url: String,
    folder: tempfile::TempDir,
}

impl Markup {
    /// Starts it; `wrong` is what it does wrong, as `tests/stack/site/markup.py` says, nothing for nothing.
    pub(crate) async fn start(url: &str, wrong: &str) -> Option<Self> {
        venv()?;
        let folder = tempfile::tempdir().expect("a folder can be made");
        let markup = Self { process: Self::launch(url, wrong, folder.path()), url: url.to_owned(), folder };
        markup.ready().await;
        Some(markup)
    }

    /// Ends it and starts it anew, with something else wrong.
    pub(crate) async fn restart(&mut self, wrong: &str) {
        self.process.kill();
        self.process = Self::launch(&self.url, wrong, self.folder.path());
        self.ready().await;
    }

    fn launch(url: &str, wrong: &str, folder: &Path) -> Process {
        let python = venv().expect("it was there before").join("bin/python");
        let mut command = Command::new(python);
        command.arg(format!("{SITE}/markup.py")).arg(url).env("SITE_MARKUP", wrong);
        Process::start(&mut command, &folder.join("log"))
    }

    async fn ready(&self) {
        let log = self.folder.path().join("log");
        wait_for(&log, "ready").await;
    }
}

/// beat or a worker of the app `periodic`.
pub(crate) struct Celery {
    /// The process and its children.
    pub(crate) process: Process,
    log: PathBuf,
}

impl Celery {
    /// Starts beat with its schedule in this file, kept as `storage` says.
    pub(crate) fn beat(broker: &str, schedule: &Path, storage: &str) -> Option<Self> {
        let schedule = schedule.display().to_string();
        Self::start(broker, storage, &["beat", "--pidfile=", "--loglevel", "info", "--schedule", &schedule])
    }

    /// Starts a worker of the queue `fast`.
    pub(crate) fn worker(broker: &str) -> Option<Self> {
        let arguments = ["worker", "--queues", "fast", "--hostname", "fast@%h", "--concurrency", "1", "--loglevel", "info"];
        Self::start(broker, "dumb", &arguments)
    }

    /// Starts beat of the site `scheduled`, whose schedule is in this database, such as `postgresql:PORT`, in tables that
    /// Django makes.
    pub(crate) fn scheduled(database: &str) -> Option<Self> {
        let bin = venv()?.join("bin");
        let mut migrate = Command::new(bin.join("django-admin"));
        migrate.args(["migrate", "--settings", "scheduled", "--pythonpath", SITE]);
        let output = migrate.env("SITE_DATABASE", database).env("PYTHONDONTWRITEBYTECODE", "1").output().expect("Django is beside celery");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let log = tempfile::Builder::new().suffix(".log").tempfile().expect("a file can be made").into_temp_path().keep().expect("is kept");
        let mut command = Command::new(bin.join("celery"));
        command
            .args(["--workdir", SITE, "--app", "scheduled", "beat", "--pidfile=", "--loglevel", "info"])
            .args(["--scheduler", "django_celery_beat.schedulers:DatabaseScheduler"])
            .env("SITE_DATABASE", database)
            .env("PYTHONDONTWRITEBYTECODE", "1");
        Some(Self { process: Process::start(&mut command, &log), log })
    }

    fn start(broker: &str, storage: &str, arguments: &[&str]) -> Option<Self> {
        let celery = venv()?.join("bin/celery");
        if !celery.is_file() {
            assert!(std::env::var_os("REQUIRE_SERVICES").is_none(), "celery is not installed: run tests/stack install");
            eprintln!("skipped: celery is not installed");
            return None;
        }
        let log = tempfile::Builder::new().suffix(".log").tempfile().expect("a file can be made").into_temp_path().keep().expect("is kept");
        let mut command = Command::new(celery);
        command
            .args(["--workdir", SITE, "--app", "periodic"])
            .args(arguments)
            .env("SITE_BROKER", broker)
            .env("SITE_STORAGE", storage)
            .env("C_FORCE_ROOT", "1")
            .env("PYTHONDONTWRITEBYTECODE", "1");
        Some(Self { process: Process::start(&mut command, &log), log })
    }

    /// Waits until it has printed this.
    pub(crate) async fn said(&self, what: &str) {
        wait_for(&self.log, what).await;
    }

    /// Ends it as `celery multi` does, by a signal to the main process alone, and waits.
    pub(crate) fn stop(mut self) {
        let told = Command::new("kill").args(["-TERM", &self.process.pid().to_string()]).status().expect("kill runs");
        assert!(told.success(), "it was running");
        self.process.wait();
    }
}

impl Drop for Celery {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.log);
    }
}

async fn wait_for(log: &Path, what: &str) {
    eventually(what, Duration::from_secs(180), || async {
        let text = std::fs::read_to_string(log).unwrap_or_default();
        assert!(!text.contains("Traceback"), "{text}");
        text.contains(what).then_some(())
    })
    .await;
}
