//! Files that are either there completely or not at all: tmp -> fsync -> rename -> fsync(folder).
//!
//! A failed fsync aborts the process: Linux reports it once and drops the pages, so retrying proves nothing.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use tessera_proto::{Error, Result};

/// Writes a small file durably; replaces an old one.
///
/// # Errors
/// 53100 or 58030; the old contents stand then.
pub(crate) fn write_file(path: &Path, bytes: &[u8]) -> Result<()> {
    let tmp = path.with_extension("tmp");
    let doing = || format!("writing \"{}\"", path.display());
    let written = File::create(&tmp).and_then(|mut file| file.write_all(bytes).map(|()| file));
    let result = written
        .map(|file| sync(&file))
        .and_then(|()| std::fs::rename(&tmp, path));
    result.map_err(|e| {
        let _ = std::fs::remove_file(&tmp);
        Error::io(&doing(), &e)
    })?;
    sync_dir(path.parent().unwrap_or(Path::new(".")))
}

/// Makes a file's contents durable.
pub(crate) fn sync(file: &File) {
    if let Err(error) = file.sync_all() {
        tracing::error!(%error, "fsync failed; what is on disk is unknown, so this process ends");
        std::process::abort();
    }
}

/// Makes creations, renames and removals in a folder durable.
///
/// # Errors
/// 58030 when the folder cannot be opened.
pub(crate) fn sync_dir(dir: &Path) -> Result<()> {
    sync(&File::open(dir).map_err(|e| Error::io(&format!("opening folder \"{}\"", dir.display()), &e))?);
    Ok(())
}

/// Creates a folder and its parents durably.
///
/// # Errors
/// 53100 or 58030.
pub(crate) fn create_dir(dir: &Path) -> Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    std::fs::create_dir_all(dir).map_err(|e| Error::io(&format!("creating folder \"{}\"", dir.display()), &e))?;
    dir.parent().map_or(Ok(()), sync_dir)
}
