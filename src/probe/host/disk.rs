//! Space and inodes of the file systems that matter, each once.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, join_all};
use procfs::process::MountInfo;
use tokio::time::timeout;

use super::grower::Growers;
use crate::model::{Failure, Family, Reason};
use crate::probe::{Looking, Probe, Recorder};

static AVAILABLE: Family = Family::gauge("node_filesystem_avail_bytes", "Bytes that users without privileges may still write");
static FREE: Family = Family::gauge("node_filesystem_free_bytes", "Bytes that are free, those kept for root included");
static SIZE: Family = Family::gauge("node_filesystem_size_bytes", "How large the file system is");
static FILES: Family = Family::gauge("node_filesystem_files", "How many inodes the file system has");
static FILES_FREE: Family = Family::gauge("node_filesystem_files_free", "How many inodes are free");
static READONLY: Family = Family::gauge("node_filesystem_readonly", "Whether the file system may not be written to");

/// How long one file system may take to answer: one on a dead server does not hold up the others.
const WITHIN: Duration = Duration::from_secs(2);
/// What is left is short below this share and this size; below the second, also where the share is larger on a tiny one.
const SHORT_SHARE: f64 = 0.05;
const SHORT_BYTES: f64 = 10.0 * 1024.0 * 1024.0 * 1024.0;
/// Free inodes are short below this share.
const SHORT_FILES: f64 = 0.02;
/// File systems that hold no data, or are full by nature.
const NONE: [&str; 8] = ["squashfs", "iso9660", "erofs", "proc", "sysfs", "cgroup2", "devtmpfs", "autofs"];

/// The file systems under some folders.
pub(super) struct Disks {
    paths: Vec<PathBuf>,
    /// Those that were named must be there.
    named: Vec<PathBuf>,
    mounts: Looking,
    /// One look at a time for each mount.
    looking: Mutex<BTreeMap<PathBuf, Looking>>,
    growers: Arc<Growers>,
    searching: Looking,
}

/// One file system that is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Mount {
    point: PathBuf,
    device: String,
    kind: String,
}

/// What a file system says.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Space {
    available: f64,
    free: f64,
    size: f64,
    files: f64,
    files_free: f64,
    readonly: bool,
}

impl Disks {
    pub(super) fn new(paths: impl IntoIterator<Item = PathBuf>, named: Vec<PathBuf>) -> Self {
        Self {
            paths: paths.into_iter().collect(),
            named,
            mounts: Looking::default(),
            looking: Mutex::default(),
            growers: Arc::default(),
            searching: Looking::default(),
        }
    }

    async fn ask(&self, rec: &mut Recorder) -> Result<(), Failure> {
        rec.waiting(Reason::AnswerTimeout, "waiting for the list of mounts");
        let (paths, named) = (self.paths.clone(), self.named.clone());
        let (mounts, missing) = self.mounts.at(move || find(&paths, &named)).await??;
        let mut wrong: Vec<(Reason, String)> =
            missing.iter().map(|path| (Reason::Missing, format!("{}: no such folder", path.display()))).collect();
        let asked = mounts.into_iter().map(|mount| async {
            let looking = self.looking.lock().unwrap_or_else(PoisonError::into_inner).entry(mount.point.clone()).or_default().clone();
            let point = mount.point.clone();
            let space = timeout(WITHIN, looking.at(move || space(&point))).await;
            (mount, space)
        });
        rec.waiting(Reason::AnswerTimeout, "waiting for the file systems");
        for (mount, space) in join_all(asked).await {
            let point = mount.point.display().to_string();
            let space = match space {
                Ok(Ok(Ok(space))) => space,
                Ok(Ok(Err(why))) => {
                    wrong.push((Reason::Unavailable, format!("{point}: {why}")));
                    continue;
                }
                Ok(Err(failure)) => return Err(failure),
                Err(_) => {
                    wrong.push((Reason::Unavailable, format!("{point}: the file system ({}) does not answer: it hangs", mount.kind)));
                    continue;
                }
            };
            let labels = [("device", mount.device.as_str()), ("fstype", mount.kind.as_str()), ("mountpoint", point.as_str())];
            for (family, value) in [
                (&AVAILABLE, space.available),
                (&FREE, space.free),
                (&SIZE, space.size),
                (&FILES, space.files),
                (&FILES_FREE, space.files_free),
                (&READONLY, f64::from(u8::from(space.readonly))),
            ] {
                rec.set_with(family, &labels, value);
            }
            let Some(what) = space.short(&point) else { continue };
            wrong.push((Reason::Saturated, what));
            let (growers, point) = (self.growers.clone(), mount.point);
            rec.waiting(Reason::AnswerTimeout, "looking for what grows");
            let grown = self.searching.at(move || growers.of(&point)).await?;
            grown.iter().for_each(|line| rec.evidence(line));
        }
        let Some((reason, _)) = wrong.first() else { return Ok(()) };
        Err(Failure::new(*reason, wrong.iter().map(|(_, what)| what.as_str()).collect::<Vec<_>>().join("; ")))
    }
}

impl Probe for Disks {
    fn run<'a>(&'a self, rec: &'a mut Recorder) -> BoxFuture<'a, Result<(), Failure>> {
        self.ask(rec).boxed()
    }
}

impl Space {
    /// Says what is short, if something is. The rules have the same bounds and more.
    fn short(&self, point: &str) -> Option<String> {
        if self.readonly || self.size <= 0.0 {
            return None;
        }
        let share = self.available / self.size;
        if share < SHORT_SHARE && self.available < SHORT_BYTES {
            let (free, size) = (bytes(self.available), bytes(self.size));
            return Some(format!("{point}: {free} of {size} are left ({:.1} %)", share * 100.0));
        }
        // Some file systems have no fixed number of inodes, and say 0.
        let files = self.files_free / self.files;
        (self.files > 0.0 && files < SHORT_FILES)
            .then(|| format!("{point}: {} of {} inodes are left: many small files ({:.1} %)", self.files_free, self.files, files * 100.0))
    }
}

/// Prints a number of bytes for people.
pub(super) fn bytes(bytes: f64) -> String {
    let units = ["bytes", "KiB", "MiB", "GiB", "TiB"];
    let (mut value, mut unit) = (bytes, 0);
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{value} {}", units[unit]) } else { format!("{value:.1} {}", units[unit]) }
}

/// Finds the mount of each path, each file system once; and which of those that were named are not there.
fn find(paths: &[PathBuf], named: &[PathBuf]) -> Result<(Vec<Mount>, Vec<PathBuf>), Failure> {
    let all = procfs::process::Process::myself()
        .and_then(|me| me.mountinfo())
        .map_err(|error| Failure::new(Reason::Internal, format!("/proc/self/mountinfo: {error}")))?
        .0;
    let (mut found, mut missing): (Vec<(Mount, String)>, Vec<PathBuf>) = (Vec::new(), Vec::new());
    for path in paths {
        // Links lead elsewhere: docker's root is often one. Only the mount table is asked before it is known to answer.
        let real = path.canonicalize();
        if real.is_err() {
            if named.contains(path) {
                missing.push(path.clone());
            }
            continue;
        }
        let real = real.unwrap_or_default();
        let Some(info) = mount_of(&all, &real) else { continue };
        let one = Mount {
            point: info.mount_point.clone(),
            device: info.mount_source.clone().unwrap_or_default(),
            kind: info.fs_type.clone(),
        };
        let skip = NONE.contains(&one.kind.as_str());
        if !skip && !found.iter().any(|(_, device)| *device == info.majmin) {
            found.push((one, info.majmin.clone()));
        }
    }
    Ok((found.into_iter().map(|(mount, _)| mount).collect(), missing))
}

/// Returns the mount that holds a path: the longest that it begins with, and of several the last, which covers the others.
fn mount_of<'a>(all: &'a [MountInfo], path: &Path) -> Option<&'a MountInfo> {
    all.iter().filter(|info| path.starts_with(&info.mount_point)).max_by_key(|info| info.mount_point.components().count())
}

fn space(point: &Path) -> Result<Space, String> {
    let of = rustix::fs::statvfs(point).map_err(|error| error.to_string())?;
    let blocks = |blocks: u64| blocks as f64 * of.f_frsize as f64;
    Ok(Space {
        available: blocks(of.f_bavail),
        free: blocks(of.f_bfree),
        size: blocks(of.f_blocks),
        files: of.f_files as f64,
        files_free: of.f_ffree as f64,
        readonly: of.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn space_is_short_by_share_and_size_and_inodes_by_share() {
        const G: f64 = 1024.0 * 1024.0 * 1024.0;
        let space = |available: f64, size: f64| Space { available, free: available, size, files: 100.0, files_free: 50.0, readonly: false };
        assert_eq!(space(5.0 * G, 20.0 * G).short("/"), None);
        assert_eq!(space(0.9 * G, 20.0 * G).short("/").as_deref(), Some("/: 921.6 MiB of 20.0 GiB are left (4.5 %)"));
        assert_eq!(space(90.0 * G, 2000.0 * G).short("/"), None, "4.5 % of a large disk is plenty");
        assert!(space(9.0 * G, 2000.0 * G).short("/").is_some());
        assert!(Space { files_free: 1.0, ..space(5.0 * G, 20.0 * G) }.short("/").expect("is short").contains("inodes"));
        assert_eq!(Space { files: 0.0, files_free: 0.0, ..space(5.0 * G, 20.0 * G) }.short("/"), None);
        assert_eq!(Space { readonly: true, ..space(0.0, 20.0 * G) }.short("/"), None, "nothing can fill it");
        assert_eq!(bytes(17.0), "17 bytes");
    }
}
