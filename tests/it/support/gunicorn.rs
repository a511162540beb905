//! gunicorn with sync workers and the small Django site of `tests/stack/site`.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::{TcpStream, UnixStream};

use super::process::{Process, eventually, free_port};

/// Returns the Python environment that holds gunicorn and Django: `$PROCTOR_VENV`, else the stack's; where there is
/// none the test fails under `REQUIRE_SERVICES=1` and says that it is skipped elsewhere.
pub(crate) fn venv() -> Option<PathBuf> {
    let given = std::env::var_os("PROCTOR_VENV").map(PathBuf::from);
    let found = given.into_iter().chain([PathBuf::from("/tmp/proctor-stack/venv")]).find(|venv| venv.join("bin/gunicorn").is_file());
    if found.is_none() {
        assert!(std::env::var_os("REQUIRE_SERVICES").is_none(), "gunicorn is not installed: run tests/stack install, or set PROCTOR_VENV");
        eprintln!("skipped: gunicorn is not installed: run tests/stack install, or set PROCTOR_VENV");
    }
    found
}

/// Where it listens.
#[derive(Clone, Debug)]
pub(crate) enum Listen {
    /// A port of 127.0.0.1.
    Tcp(u16),
    /// A socket in the file system.
    Unix(PathBuf),
}

/// As `--bind` wants it.
impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(port) => write!(f, "127.0.0.1:{port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// A running gunicorn.
pub(crate) struct Gunicorn {
    /// The arbiter and, in its group, the workers.
    pub(crate) process: Process,
    /// Where it listens.
    pub(crate) listen: Listen,
    folder: tempfile::TempDir,
    more: Vec<String>,
    old: Option<PathBuf>,
}

/// Returns where gunicorn 20 lies, as the stack installs it beside the other.
pub(crate) fn gunicorn20() -> Option<PathBuf> {
    let stack = std::env::var_os("PROCTOR_STACK").map_or_else(|| PathBuf::from("/tmp/proctor-stack"), PathBuf::from);
    let found = Some(stack.join("gunicorn20")).filter(|folder| folder.join("gunicorn").is_dir());
    if found.is_none() {
        assert!(std::env::var_os("REQUIRE_SERVICES").is_none(), "gunicorn 20 is not installed: run tests/stack/stack install");
        eprintln!("skipped: gunicorn 20 is not installed: run tests/stack/stack install");
    }
    found
}

impl Gunicorn {
    /// Starts it on a free port with 3 sync workers and a backlog of 5.
    pub(crate) async fn tcp() -> Option<Self> {
        Self::start(&venv()?, |_| Listen::Tcp(free_port()), &[], None).await
    }

    /// Starts it on a socket in the file system.
    pub(crate) async fn unix() -> Option<Self> {
        Self::start(&venv()?, |folder| Listen::Unix(folder.join("gunicorn.sock")), &[], None).await
    }

    /// Starts it on a free port with more arguments, in which `FOLDER` stands for its folder; `old` is where another
    /// version lies.
    pub(crate) async fn with(more: &[&str], old: Option<PathBuf>) -> Option<Self> {
        Self::start(&venv()?, |_| Listen::Tcp(free_port()), more, old).await
    }

    async fn start(venv: &Path, listen: impl Fn(&Path) -> Listen, more: &[&str], old: Option<PathBuf>) -> Option<Self> {
        let folder = tempfile::tempdir().expect("a folder can be made");
        let listen = listen(folder.path());
        let more: Vec<String> = more.iter().map(|word| word.replace("FOLDER", &folder.path().display().to_string())).collect();
        let process = Self::launch(venv, &listen, folder.path(), (&more, old.as_deref()), &[]);
        let mut gunicorn = Self { process, listen, folder, more, old };
        gunicorn.ready().await;
        Some(gunicorn)
    }

    /// Kills it and starts it again on the same address, with more variables in its environment.
    pub(crate) async fn restart(&mut self, env: &[(&str, &str)]) {
        self.process.kill();
        let how = (self.more.as_slice(), self.old.as_deref());
        self.process = Self::launch(&venv().expect("it ran before"), &self.listen, self.folder.path(), how, env);
        self.ready().await;
    }

    fn launch(venv: &Path, listen: &Listen, folder: &Path, (more, old): (&[String], Option<&Path>), env: &[(&str, &str)]) -> Process {
        let mut command = Command::new(venv.join("bin/python"));
        if let Some(old) = old {
            command.env("PYTHONPATH", old);
        } else if !more.iter().any(|word| word == "--control-socket") {
            command.env("GUNICORN_CMD_ARGS", "--no-control-socket");
        }
        command
            .args(["-m", "gunicorn", "--workers", "3", "--backlog", "5", "--timeout", "120", "--access-logfile", "-"])
            .args(more)
            .args(["--access-logformat", "ACCESS %(m)s %({host}i)s%(U)s %(s)s %(a)s", "--worker-tmp-dir"])
            .arg(folder)
            .args([
                "--chdir",
                concat!(env!("CARGO_MANIFEST_DIR"), "/tests/stack/site"),
                "--bind",
                &listen.to_string(),
                "coursys:application",
            ])
            .env("SITE_MAIL", folder.join("mail"))
            .env("SITE_CRASH", folder.join("crash"))
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .envs(env.iter().copied());
        Process::start(&mut command, &folder.join("log"))
    }

    async fn ready(&mut self) {
        eventually("all three gunicorn workers have booted", Duration::from_secs(60), || async {
            (self.log().matches("Booting worker").count() >= 3
                && self.get("/healthcheck").await.is_ok_and(|answer| answer.starts_with("HTTP/1.")))
            .then_some(())
        })
        .await;
    }

    /// Its folder; while there is a file `crash` in it, workers die as they start.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// What it printed: one line `ACCESS GET coursys.example.org/ 200 Proctor/0.1.0` per request, and its errors.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// How many mails Django has sent to ADMINS.
    pub(crate) fn mails(&self) -> usize {
        std::fs::read_dir(self.folder.path().join("mail")).map_or(0, Iterator::count)
    }

    /// Sends a request of the site and reads the whole answer.
    pub(crate) async fn get(&self, path: &str) -> std::io::Result<String> {
        use tokio::io::AsyncReadExt;
        let mut connection = self.ask(path).await?;
        let mut answer = String::new();
        connection.read_to_string(&mut answer).await?;
        Ok(answer)
    }

    /// Sends a request of the site and keeps the connection: `/slow?s=30` keeps a worker busy.
    pub(crate) async fn ask(&self, path: &str) -> std::io::Result<Box<dyn Connection>> {
        let mut connection: Box<dyn Connection> = match &self.listen {
            Listen::Tcp(port) => Box::new(TcpStream::connect(("127.0.0.1", *port)).await?),
            Listen::Unix(path) => Box::new(UnixStream::connect(path).await?),
        };
        let request = format!("GET {path} HTTP/1.0\r\nHost: coursys.example.org\r\n\r\n");
        connection.write_all(request.as_bytes()).await?;
        Ok(connection)
    }
}

/// A connection to it.
pub(crate) trait Connection: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send {}

impl<T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send> Connection for T {}
