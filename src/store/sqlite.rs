//! The state in one SQLite file: one connection, on one thread.
//!
//! WAL with `synchronous=FULL`: what was committed survives a crash and a power loss. One connection only, since
//! SQLite's WAL-reset defect needs two. A file that is no longer a database is set aside under a dated name.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rusqlite::{Connection, OpenFlags};

use super::{StoreError, Table};
use crate::tasks;

/// The newest version of the schema, and the steps that lead to it.
const MIGRATIONS: [&str; 1] = [include_str!("schema/1.sql")];
/// The largest write-ahead log that is left lying after a checkpoint, in bytes.
const WAL_LIMIT: u32 = 1 << 20;

/// The rows of every table.
pub(super) type Rows = BTreeMap<(Table, String), String>;
/// One change: a body to write, or none to remove.
pub(super) type Change = (Table, String, Option<String>);

/// What a file held.
#[derive(Debug, Default)]
pub(super) struct Loaded {
    pub(super) rows: Rows,
    /// Rows that were damaged.
    pub(super) dropped: u64,
    /// Lines for the mail.
    pub(super) notices: Vec<String>,
    /// Why the file cannot be written, if so.
    pub(super) failure: Option<String>,
}

/// The open file.
#[derive(Debug)]
pub(super) struct Disk(Connection);

/// Why a file cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum DiskError {
    #[error("the state was written by a newer Proctor (version {0})")]
    TooNew(u32),
    #[error("it is damaged: {0}")]
    Damaged(String),
    #[error(transparent)]
    Sql(#[from] rusqlite::Error),
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

impl DiskError {
    /// Says whether the file itself is at fault, and not the disk under it.
    fn is_damage(&self) -> bool {
        use rusqlite::ErrorCode::{DatabaseCorrupt, NotADatabase};
        match self {
            Self::Damaged(_) => true,
            Self::Sql(error) => {
                matches!(error.sqlite_error_code(), Some(DatabaseCorrupt | NotADatabase))
                    // A schema that lost a table or column through a flipped bit.
                    || matches!(error, rusqlite::Error::SqliteFailure(_, Some(text)) if text.contains("malformed") || text.starts_with("no such"))
            }
            Self::TooNew(_) | Self::Io(_) => false,
        }
    }
}

/// Opens the file and reads all of it. Whatever is wrong with the disk or the file becomes a failure or a notice.
///
/// # Errors
/// [`StoreError::TooNew`].
pub(super) fn open(path: &Path) -> Result<(Option<Disk>, Loaded), StoreError> {
    let mut loaded = Loaded::default();
    let mut disk = Disk::open(path).and_then(|disk| disk.load(&mut loaded).map(|()| disk));
    if disk.as_ref().is_err_and(DiskError::is_damage) {
        disk = set_aside(path, &mut loaded, disk.err().as_ref()).map_err(DiskError::from).and_then(|()| {
            let fresh = Disk::open(path)?;
            // What could still be read of the damaged file is kept.
            fresh.replace(&loaded.rows)?;
            Ok(fresh)
        });
    }
    match disk {
        Ok(disk) => Ok((Some(disk), loaded)),
        Err(DiskError::TooNew(found)) => Err(StoreError::TooNew { path: path.to_owned(), found, known: MIGRATIONS.len() as u32 }),
        Err(error) => {
            // A read-only mount: what is known is better than nothing.
            if let Ok(disk) = Disk::open_read_only(path) {
                drop(disk.load(&mut loaded));
            }
            loaded.failure = Some(error.to_string());
            Ok((None, loaded))
        }
    }
}

/// Renames a damaged file and what belongs to it, and notes where it is.
fn set_aside(path: &Path, loaded: &mut Loaded, why: Option<&DiskError>) -> std::io::Result<()> {
    let stamp = tasks::wall_now().to_jiff().strftime("%Y%m%d-%H%M%S").to_string();
    let name = |n: u32| if n == 0 { format!("corrupt-{stamp}") } else { format!("corrupt-{stamp}-{n}") };
    let with = |end: &str| PathBuf::from(format!("{}{end}", path.display()));
    let aside = (0..1000).map(name).find(|name| !with(&format!(".{name}")).exists()).unwrap_or_else(|| name(0));
    fs::rename(path, with(&format!(".{aside}")))?;
    for end in ["-wal", "-shm"] {
        match fs::rename(with(end), with(&format!("{end}.{aside}"))) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    let why = why.map(ToString::to_string).unwrap_or_default();
    loaded.notices.push(format!(
        "The state was damaged ({why}). It was set aside as {}; what could still be read was kept.",
        with(&format!(".{aside}")).display()
    ));
    Ok(())
}

impl Disk {
    /// Opens or makes the file and brings its schema up to date.
    pub(super) fn open(path: &Path) -> Result<Self, DiskError> {
        if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty() && !folder.exists()) {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        }
        let connection = Connection::open(path)?;
        connection.execute_batch(&format!(
            "PRAGMA locking_mode=EXCLUSIVE; PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA journal_size_limit={WAL_LIMIT}; PRAGMA wal_autocheckpoint=200; PRAGMA cache_size=-256; PRAGMA cell_size_check=ON;"
        ))?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
        let version: u32 = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
        let Some(steps) = MIGRATIONS.get(version as usize..) else { return Err(DiskError::TooNew(version)) };
        for (number, step) in steps.iter().enumerate() {
            connection.execute_batch(&format!("BEGIN; {step}; PRAGMA user_version={}; COMMIT;", version as usize + number + 1))?;
        }
        let check: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
        if check == "ok" { Ok(Self(connection)) } else { Err(DiskError::Damaged(check)) }
    }

    fn open_read_only(path: &Path) -> Result<Self, DiskError> {
        let uri = format!("file:{}?immutable=1", path.display());
        Ok(Self(Connection::open_with_flags(uri, OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI)?))
    }

    /// Reads every row; a damaged one is dropped and noted.
    fn load(&self, loaded: &mut Loaded) -> Result<(), DiskError> {
        for table in Table::ALL {
            let mut statement = self.0.prepare(&format!("SELECT key, body, crc FROM {}", table.name()))?;
            let mut rows = statement.query([])?;
            while let Some(row) = rows.next()? {
                let text = |column| row.get_ref(column).ok().and_then(|value| value.as_str().ok().map(str::to_owned));
                let crc = row.get_ref(2).ok().and_then(|value| value.as_i64().ok());
                match (text(0), text(1)) {
                    (Some(key), Some(body)) if crc == Some(checksum(table, &key, &body)) => {
                        loaded.rows.insert((table, key), body);
                    }
                    _ => {
                        loaded.dropped += 1;
                        loaded.notices.push(format!("A damaged record of the state was left out ({}).", table.name()));
                    }
                }
            }
        }
        Ok(())
    }

    /// Makes changes durable together.
    pub(super) fn apply<'a>(&mut self, changes: impl IntoIterator<Item = &'a Change>) -> Result<(), DiskError> {
        let transaction = self.0.transaction()?;
        for (table, key, body) in changes {
            match body {
                Some(body) => write(&transaction, *table, key, body)?,
                None => drop(transaction.prepare_cached(&format!("DELETE FROM {} WHERE key = ?1", table.name()))?.execute([key])?),
            }
        }
        Ok(transaction.commit()?)
    }

    /// Writes all rows in place of what is there.
    pub(super) fn replace(&self, rows: &Rows) -> Result<(), DiskError> {
        let transaction = self.0.unchecked_transaction()?;
        for table in Table::ALL {
            transaction.execute(&format!("DELETE FROM {}", table.name()), [])?;
        }
        for ((table, key), body) in rows {
            write(&transaction, *table, key, body)?;
        }
        Ok(transaction.commit()?)
    }
}

fn write(connection: &Connection, table: Table, key: &str, body: &str) -> Result<(), rusqlite::Error> {
    let sql = format!("INSERT OR REPLACE INTO {} (key, body, crc) VALUES (?1, ?2, ?3)", table.name());
    connection.prepare_cached(&sql)?.execute((key, body, checksum(table, key, body))).map(drop)
}

/// CRC32 over table, key and body: SQLite itself does not notice a flipped bit.
fn checksum(table: Table, key: &str, body: &str) -> i64 {
    let mut hasher = crc32fast::Hasher::new();
    for part in [table.name(), key, body] {
        hasher.update(part.as_bytes());
        hasher.update(&[0xff]);
    }
    i64::from(hasher.finalize())
}
