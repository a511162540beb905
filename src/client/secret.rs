//! Files that are read when they are needed: secrets, and certificates of authorities.
//!
//! A secret is read at every use, so that changing the file is enough to change the secret.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use super::net::Trust;
use crate::model::Secret;

/// The largest secret, in bytes.
pub const MAX_SECRET: u64 = 64 * 1024;
/// The largest file of certificates, in bytes.
const MAX_CERTIFICATES: u64 = 4 * 1024 * 1024;

/// Why a file is not taken.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// It cannot be opened or read.
    #[error("cannot read {}", path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// It is a folder, a FIFO, a device.
    #[error("{} is no regular file", path.display())]
    Kind {
        /// Which file.
        path: PathBuf,
    },
    /// Every user of the host can read it.
    #[error("{0} can be read by every user of this host: run chmod o-r {0}", path.display())]
    WorldReadable {
        /// Which file.
        path: PathBuf,
    },
    /// It is larger than its limit.
    #[error("{} is larger than {limit} bytes", path.display())]
    TooLarge {
        /// Which file.
        path: PathBuf,
        /// The limit.
        limit: u64,
    },
    /// It holds nothing, or no text, or no certificate.
    #[error("{} {what}", path.display())]
    Content {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        what: &'static str,
    },
}

/// Reads a secret file; one newline at its end is cut.
///
/// # Errors
/// [`SecretError`], which names the file and never holds what is in it. A file that every user can read is refused,
/// except under `/run/secrets` and `$CREDENTIALS_DIRECTORY`, whose folders are closed instead.
pub fn read(path: &Path) -> Result<Secret, SecretError> {
    let credentials = std::env::var_os("CREDENTIALS_DIRECTORY").filter(|dir| !dir.is_empty()).map(PathBuf::from);
    let closed = [Some(PathBuf::from("/run/secrets")), credentials];
    let bytes = bounded(path, MAX_SECRET, |mode, real| mode & 0o004 == 0 || closed.iter().flatten().any(|dir| real.starts_with(dir)))?;
    let content = |what| SecretError::Content { path: path.to_owned(), what };
    let text = String::from_utf8(bytes).map_err(|_| content("is no UTF-8 text"))?;
    let text = text.strip_suffix('\n').map_or(text.as_str(), |text| text.strip_suffix('\r').unwrap_or(text));
    if text.is_empty() {
        return Err(content("is empty: expected a secret in it"));
    }
    Ok(Secret::new(text.to_owned()))
}

/// Returns whom to trust: the authorities of a PEM file, or where none is named the host's own.
///
/// # Errors
/// [`SecretError`].
pub fn trust(ca_file: Option<&Path>) -> Result<Trust, SecretError> {
    let Some(path) = ca_file else { return Ok(Trust::system()) };
    Ok(Trust::only(certificates(path, &regular(path, MAX_CERTIFICATES)?)?))
}

/// Returns the certificates in a PEM text that was read from `path`, in their order; keys and all else are passed over.
///
/// # Errors
/// [`SecretError::Content`] where it is no PEM, or holds no certificate.
pub fn certificates(path: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, SecretError> {
    let content = |what| SecretError::Content { path: path.to_owned(), what };
    let found: Vec<CertificateDer<'static>> =
        CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>().map_err(|_| content("is not PEM"))?;
    if found.is_empty() { Err(content("holds no certificate")) } else { Ok(found) }
}

/// Reads a regular file of at most `limit` bytes; a FIFO, a device or a folder is refused at once.
///
/// # Errors
/// [`SecretError`].
pub fn regular(path: &Path, limit: u64) -> Result<Vec<u8>, SecretError> {
    bounded(path, limit, |_, _| true)
}

/// Reads a regular file; `allowed` judges its mode and its path without links.
fn bounded(path: &Path, limit: u64, allowed: impl Fn(u32, &Path) -> bool) -> Result<Vec<u8>, SecretError> {
    let failed = |source: io::Error| SecretError::Io { path: path.to_owned(), source };
    // Without NONBLOCK, opening a FIFO that nobody writes to would hang.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
    let file = File::from(rustix::fs::open(path, flags, Mode::empty()).map_err(|errno| failed(errno.into()))?);
    let stat = rustix::fs::fstat(&file).map_err(|errno| failed(errno.into()))?;
    if !rustix::fs::FileType::from_raw_mode(stat.st_mode).is_file() {
        return Err(SecretError::Kind { path: path.to_owned() });
    }
    if !allowed(stat.st_mode, &path.canonicalize().map_err(failed)?) {
        return Err(SecretError::WorldReadable { path: path.to_owned() });
    }
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > limit {
        return Err(SecretError::TooLarge { path: path.to_owned(), limit });
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_secret_is_read_only_from_a_file_that_keeps_it() {
        let dir = tempfile::tempdir().expect("a folder");
        let write = |name: &str, content: &[u8], mode: u32| {
            let path = dir.path().join(name);
            std::fs::write(&path, content).expect("is written");
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("is set");
            path
        };
        for (content, secret) in [(b"hunter2\n".as_slice(), "hunter2"), (b" a b \r\n", " a b "), (b"x", "x"), (b"a\n\n", "a\n")] {
            assert_eq!(read(&write("good", content, 0o640)).expect("is a secret").expose(), secret);
        }
        for (content, mode, said) in [
            (b"hunter2".as_slice(), 0o644, "can be read by every user of this host: run chmod o-r"),
            (b"", 0o600, "is empty"),
            (b"\n", 0o600, "is empty"),
            (b"\xff", 0o600, "is no UTF-8 text"),
            (&[b'x'; 70_000], 0o600, "is larger than 65536 bytes"),
        ] {
            let said_now = read(&write("bad", content, mode)).expect_err(said).to_string();
            assert!(said_now.contains(said) && said_now.contains("/bad") && !said_now.contains("hunter2"), "{said_now}");
        }
        let fifo = dir.path().join("fifo");
        assert!(std::process::Command::new("mkfifo").arg(&fifo).status().expect("mkfifo runs").success());
        for path in [&fifo, dir.path(), Path::new("/dev/zero")] {
            assert!(matches!(read(path), Err(SecretError::Kind { .. })), "{}", path.display());
        }
        assert!(matches!(read(&dir.path().join("none")), Err(SecretError::Io { .. })));
        // A link from a closed folder's name to an open file does not open it.
        let open = write("open", b"x", 0o644);
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&open, &link).expect("is linked");
        assert!(matches!(read(&link), Err(SecretError::WorldReadable { .. })));
    }

    #[test]
    fn authorities_come_from_pem_or_are_refused() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("ca.pem");
        for content in ["", "garbage", "-----BEGIN CERTIFICATE-----\n!!!\n-----END CERTIFICATE-----\n"] {
            std::fs::write(&path, content).expect("is written");
            assert!(trust(Some(&path)).is_err(), "{content}");
        }
        let signed = rcgen::generate_simple_self_signed(["relay".to_owned()]).expect("is signed");
        std::fs::write(&path, signed.cert.pem()).expect("is written");
        trust(Some(&path)).expect("is taken");
    }
}
