//! Certificates on disk: PEM files, found by patterns in every run, so that a new one needs no reload.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use rustls::crypto::ring::sign::any_supported_type;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;
use rustls::sign::CertifiedKey;

use super::facts::{Facts, told};
use super::renewal::{self, Renewal};
use super::{record_dates, record_remaining};
use crate::changes::{Change, Changes, Kind};
use crate::client::secret::{self, SecretError};
use crate::client::net;
use crate::client::process::{self, own_user};
use crate::model::{Failure, Family, Reason, Sight, Timestamp};
use crate::probe::{Looking, Probe, Recorder};
use crate::tasks;

/// The most files of one look.
const MAX_FILES: usize = 100;
/// The largest file, in bytes, and the most certificates in one.
const MAX_BYTES: u64 = 256 * 1024;
const MAX_CERTIFICATES: usize = 32;
/// The largest key, in bytes.
const MAX_KEY: u64 = 64 * 1024;

static KEY_MATCHES: Family =
    Family::gauge("certificate_key_matches", "Whether the key beside the file belongs to its certificate; absent where the key may not be read");
static OVERDUE: Family = Family::gauge(
    "certificate_renewal_overdue_seconds",
    "How long ago the certificate of the file should have been renewed, by the configuration of its client (certbot, acme.sh); negative until then, absent where that is not known",
);

/// The files of some patterns.
pub(super) struct Disk {
    patterns: Vec<String>,
    /// One look at a time: a network file system that hangs takes one thread, not one in every run.
    looking: Looking,
}

/// What was found.
#[derive(Debug, Default)]
pub(super) struct Look {
    pub(super) bundles: Vec<Bundle>,
    /// What may not be read, with what would open it.
    pub(super) denied: Option<Denied>,
    /// What is no certificate, or is not there.
    pub(super) broken: Vec<Failure>,
}

/// One file.
#[derive(Debug)]
pub(super) struct Bundle {
    pub(super) path: PathBuf,
    /// In the order of the file, each once; at least one.
    pub(super) chain: Vec<Facts>,
    /// When the file was written, where the file system says it.
    pub(super) written: Option<Timestamp>,
    /// Whether the key belongs to the first certificate; nothing where there is none that may be read.
    key_matches: Option<bool>,
    /// What its client's configuration says of its renewal; nothing where no client is seen.
    renewal: Option<Renewal>,
}

/// Something that may not be read.
#[derive(Clone, Debug)]
pub(super) struct Denied {
    pub(super) what: PathBuf,
    pub(super) remedy: String,
}

impl Disk {
    pub(super) fn new(patterns: Vec<String>) -> Self {
        Self { patterns, looking: Looking::default() }
    }

    /// Looks at all files, in a thread that may block.
    pub(super) async fn look(&self) -> Look {
        let patterns = self.patterns.clone();
        let looked = self.looking.at(move || look(&patterns)).await;
        looked.unwrap_or_else(|failure| Look { broken: vec![failure], ..Look::default() })
    }

    /// Says what is looked at.
    pub(super) fn told(&self) -> String {
        self.patterns.join(", ")
    }
}

fn look(patterns: &[String]) -> Look {
    let mut look = Look::default();
    let mut files = 0;
    for pattern in patterns {
        let before = files;
        for path in matching(pattern) {
            files += 1;
            if files > MAX_FILES {
                let what = format!("{pattern}: more than {MAX_FILES} files: the rest is not looked at");
                look.broken.push(Failure::new(Reason::TooLarge, what));
                return look;
            }
            look.add(path);
        }
        if files == before {
            look.broken.push(Failure::new(Reason::Missing, format!("{pattern}: expected at least one file, found none")));
        }
    }
    look
}

/// Returns the files of a pattern, and what of it may not be read, as a path that will fail to be.
fn matching(pattern: &str) -> Box<dyn Iterator<Item = PathBuf>> {
    let special = |text: &str| text.contains(['*', '?', '[']);
    if !special(pattern) {
        return Box::new(std::iter::once(PathBuf::from(pattern)));
    }
    // The crate passes over what it may not look into where no part of it is special.
    let plain: PathBuf = Path::new(pattern).components().take_while(|part| !part.as_os_str().to_str().is_some_and(special)).collect();
    if plain.metadata().is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied) {
        return Box::new(std::iter::once(plain));
    }
    // The last part by itself where it is a plain name: the crate passes over a link that leads nowhere.
    let (folders, name) = match pattern.rsplit_once('/') {
        Some((folders, name)) if !special(name) => (folders, Some(name.to_owned())),
        _ => (pattern, None),
    };
    // The pattern was read when the configuration was; one that is wrong gives nothing, which is said.
    let found = glob::glob(folders).into_iter().flatten();
    Box::new(found.filter_map(move |found| match (found, &name) {
        (Err(error), _) => Some(error.path().to_owned()),
        (Ok(folder), Some(name)) => {
            let path = folder.join(name);
            match path.symlink_metadata() {
                Err(error) if error.kind() != io::ErrorKind::PermissionDenied => None,
                _ => Some(path),
            }
        }
        (Ok(path), None) => (!path.is_dir()).then_some(path),
    }))
}

impl Look {
    fn add(&mut self, path: PathBuf) {
        match bundle(&path) {
            Ok(bundle) => self.bundles.push(bundle),
            Err(SecretError::Io { source, .. }) if source.kind() == io::ErrorKind::PermissionDenied => {
                self.denied.get_or_insert_with(|| Denied { remedy: remedy(&path), what: path });
            }
            Err(error) => {
                let reason = match &error {
                    SecretError::Io { source, .. } if source.kind() == io::ErrorKind::NotFound => Reason::Missing,
                    SecretError::TooLarge { .. } => Reason::TooLarge,
                    SecretError::Content { .. } => Reason::Certificate,
                    _ => Reason::Mismatch,
                };
                self.broken.push(Failure::new(reason, net::chain(&error)));
            }
        }
    }

    /// Returns what may not be read and what opens it.
    pub(super) fn unseen(&self) -> Option<(String, String)> {
        let denied = self.denied.as_ref()?;
        Some((format!("what is in {}: it may not be read", denied.what.display()), format!("run: {}", denied.remedy)))
    }
}

fn bundle(path: &Path) -> Result<Bundle, SecretError> {
    let content = |what| SecretError::Content { path: path.to_owned(), what };
    let pem = secret::regular(path, MAX_BYTES)?;
    let ders = secret::certificates(path, &pem)?;
    if ders.len() > MAX_CERTIFICATES {
        return Err(content("holds more than 32 certificates: this is no server's chain"));
    }
    let mut chain: Vec<Facts> = Vec::new();
    for der in &ders {
        // The same certificate twice would be the same series twice.
        if !chain.iter().any(|known| known.der == *der) {
            chain.push(Facts::read(der).ok_or_else(|| content("holds what is no certificate"))?);
        }
    }
    // A combined file, as haproxy has it, holds its key itself.
    let key = PrivateKeyDer::from_pem_slice(&pem).ok().or_else(|| {
        let beside = secret::regular(&key_beside(path)?, MAX_KEY).ok()?;
        PrivateKeyDer::from_pem_slice(&beside).ok()
    });
    let key_matches = key.and_then(|key| any_supported_type(&key).ok()).and_then(|key| {
        match CertifiedKey::new(vec![chain.first()?.der.clone()], key).keys_match() {
            Ok(()) => Some(true),
            Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::KeyMismatch)) => Some(false),
            Err(_) => None,
        }
    });
    let written = std::fs::metadata(path).ok().map(|of| Timestamp::from_secs(std::os::unix::fs::MetadataExt::mtime(&of)));
    let renewal = chain.first().and_then(|leaf| renewal::of(path, leaf, tasks::wall_now()));
    Ok(Bundle { path: path.to_owned(), chain, written, key_matches, renewal })
}

/// Returns where the key of a certificate lies by custom: certbot's `privkey.pem`, else `NAME.key`.
fn key_beside(path: &Path) -> Option<PathBuf> {
    match path.file_name()?.to_str()? {
        "fullchain.pem" | "cert.pem" => Some(path.with_file_name("privkey.pem")),
        "chain.pem" => None,
        _ => Some(path.with_extension("key")).filter(|key| key != path),
    }
}

/// Returns the one command that lets this user read a file. Keys stay closed: certbot gives each its own mode 0600.
fn remedy(path: &Path) -> String {
    let user = own_user();
    let folders: Vec<&Path> = path.ancestors().collect();
    if let Some(live) = folders.iter().find(|folder| folder.file_name().is_some_and(|name| name == "live" || name == "archive")) {
        // What lies in `live` are links into `archive`; both are closed together.
        let (live, archive) = (live.with_file_name("live"), live.with_file_name("archive"));
        return format!("setfacl -m u:{user}:rx {} {}", live.display(), archive.display());
    }
    process::remedy(path)
}

/// The files of one pattern.
pub(super) struct Files {
    disk: Arc<Disk>,
    changes: Changes,
    /// The certificate that was last found in each file.
    last: Mutex<BTreeMap<PathBuf, Facts>>,
}

impl Files {
    pub(super) fn new(disk: Arc<Disk>, changes: Changes) -> Self {
        Self { disk, changes, last: Mutex::default() }
    }

    /// Records which files hold another certificate than in the run before.
    fn compare(&self, bundles: &[Bundle]) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let leaves = bundles.iter().filter_map(|bundle| Some((bundle.path.clone(), bundle.chain.first()?.clone())));
        let now: BTreeMap<PathBuf, Facts> = leaves.collect();
        for (path, leaf) in &now {
            if let Some(before) = last.get(path).filter(|before| before.der != leaf.der) {
                let until = Timestamp::from_secs(leaf.not_after);
                let lost = leaf.lacks(before);
                let (kind, wrong) = match lost.as_slice() {
                    [] if leaf.not_before >= before.not_before => (Kind::Renewed, String::new()),
                    [] => (Kind::Replaced, ", an older one than before".to_owned()),
                    lost => (Kind::Replaced, format!(", and not for {} any more", told(lost))),
                };
                let (subject, detail) = (format!("certificate {}", path.display()), format!("now for {}, until {until}{wrong}", leaf.subject));
                self.changes.record(Change { at: tasks::now(), kind, subject, detail });
            }
        }
        *last = now;
    }
}

impl Probe for Files {
    fn run<'a>(&'a self, rec: &'a mut Recorder) -> BoxFuture<'a, Result<(), Failure>> {
        async move {
            rec.waiting(Reason::AnswerTimeout, format!("reading {}", self.disk.told()));
            let look = self.disk.look().await;
            self.compare(&look.bundles);
            if let Some((missing, remedy)) = look.unseen() {
                let nothing = look.bundles.is_empty();
                rec.sight(if nothing { Sight::Blind { missing, remedy } } else { Sight::Partial { missing, remedy } });
            }
            for bundle in &look.bundles {
                record(rec, bundle);
            }
            match look.broken.as_slice() {
                [] => Ok(()),
                [only] => Err(only.clone()),
                [first, rest @ ..] => Err(Failure::new(first.reason, format!("{first}; and {} more", rest.len()))),
            }
        }
        .boxed()
    }
}

fn record(rec: &mut Recorder, bundle: &Bundle) {
    let now = tasks::now();
    let path = bundle.path.to_string_lossy();
    for (index, certificate) in bundle.chain.iter().enumerate() {
        let labels = [
            ("filepath", path.as_ref()),
            ("position", if index == 0 { "leaf" } else { "intermediate" }),
            ("serial_number", certificate.serial.as_str()),
            ("subject_CN", certificate.subject.as_str()),
            ("issuer_CN", certificate.issuer.as_str()),
        ];
        record_dates(rec, &labels, certificate, now);
    }
    let labels = [("filepath", path.as_ref())];
    if let Some(leaf) = bundle.chain.first() {
        record_remaining(rec, &labels, leaf, now);
    }
    if let Some(matches) = bundle.key_matches {
        rec.set_with(&KEY_MATCHES, &labels, f64::from(u8::from(matches)));
    }
    if let Some(renewal) = &bundle.renewal {
        renewal.evidence.iter().for_each(|line| rec.evidence(line));
        if let Some(due) = renewal.due {
            rec.set_with(&OVERDUE, &labels, now.as_secs_f64() - due.as_secs_f64());
        }
    }
}
