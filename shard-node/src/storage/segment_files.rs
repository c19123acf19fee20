//! The files in a shard's segment folder: names, fetching from other copies, and removing what nobody needs.
//!
//! ```text
//!   seg/t16384-....parquet, .pk    whole under these names     visible, prepared, or swept at the next start
//!   seg/*.tmp                      unfinished                  removed by their writer, or swept
//! ```

use crate::storage::checked_file::{HashingFile, Written};
use crate::storage::segment::write_sidecar;
use crate::storage::version::remove_segment_files;
use crate::storage::{ShardStore, deletes_file, durable, segment_reader};
use bytes::Bytes;
use std::collections::HashSet;
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use tessera_proto::{Error, Result, v1};

impl ShardStore {
    /// Path of a segment file.
    ///
    /// # Errors
    /// 08P01 when `file` is not a segment's name.
    pub fn segment_path(&self, file: &str) -> Result<PathBuf> {
        check_file_name(file)?;
        Ok(self.inner.segments.join(file))
    }

    /// Writes a file fetched from another copy durably, checks it, and builds its key sidecar. Blocking. A file that is
    /// here already is kept.
    ///
    /// # Errors
    /// XX001 when the contents do not have the checksum; the error of `chunks`; 53100.
    pub fn install_segment(
        &self,
        segment: &v1::SegmentRef,
        chunks: &mut dyn Iterator<Item = Result<Bytes>>,
    ) -> Result<()> {
        let path = self.segment_path(&segment.file)?;
        if self.has_segment(&segment.file) {
            return Ok(());
        }
        let tmp = path.with_extension("parquet.tmp");
        let result = fetch(&tmp, segment, chunks)
            .and_then(|written| write_sidecar(&path, segment_reader::read_keys(&tmp)?, &written))
            .and_then(|()| std::fs::rename(&tmp, &path).map_err(|e| Error::io("renaming a segment", &e)))
            .and_then(|()| durable::sync_dir(&self.inner.segments));
        result.inspect_err(|_| {
            let _ = std::fs::remove_file(&tmp);
        })
    }

    /// Whether a file is here, durable and complete: under their names files always are.
    pub fn has_segment(&self, file: &str) -> bool {
        self.segment_path(file)
            .is_ok_and(|p| p.exists() && p.with_extension("pk").exists())
    }

    /// The same for a file that is to be used soon: one that was to go with its last reader stays.
    pub fn keep_segment(&self, file: &str) -> bool {
        if let Ok(path) = self.segment_path(file) {
            self.inner.cache.set_doomed(&path, false);
        }
        self.has_segment(file)
    }

    /// Reads every visible file and compares it with its checksums. Blocking, at the speed of the disk.
    ///
    /// # Errors
    /// XX001 when a file is damaged, cut or gone; 58030.
    pub fn check(&self) -> Result<()> {
        {
            let manifest = self.inner.manifest.lock();
            deletes_file::load(&self.inner.dir, manifest.sequence, manifest.deletes.as_ref())?;
        }
        let version = self.version();
        version
            .tables
            .values()
            .flat_map(|t| &t.segments)
            .try_for_each(|s| s.check())
    }

    /// Removes staged files of an aborted transaction; files that became visible stay.
    pub fn discard(&self, files: &[String]) {
        let version = self.version();
        let visible: HashSet<&str> = version.files().collect();
        for path in files
            .iter()
            .filter(|f| !visible.contains(f.as_str()))
            .filter_map(|f| self.segment_path(f).ok())
        {
            self.inner.cache.remove(&path);
            remove_segment_files(&path);
        }
    }

    /// After replay and before anything is staged: removes all files that are neither visible nor in `keep` (segment files
    /// of prepared transactions). Blocking.
    pub fn sweep(&self, keep: &HashSet<String>) {
        let version = self.version();
        let visible: HashSet<&str> = version.files().collect();
        let needed = |name: &str| visible.contains(name) || keep.contains(name);
        let Ok(entries) = std::fs::read_dir(&self.inner.segments) else {
            return;
        };
        for path in entries.flatten().map(|e| e.path()) {
            let segment = path.with_extension("parquet");
            let name = segment.file_name().and_then(|n| n.to_str()).unwrap_or_default();
            let finished = matches!(path.extension().and_then(|e| e.to_str()), Some("parquet" | "pk"));
            if (!finished || !needed(name))
                && let Err(error) = std::fs::remove_file(&path)
            {
                tracing::warn!(path = %path.display(), %error, "unused file not removed");
            }
        }
    }
}

/// Segment names come from other nodes: they must stay inside the folder.
pub(super) fn check_file_name(file: &str) -> Result<()> {
    let stem = file.strip_suffix(".parquet").unwrap_or_default();
    let sound = !stem.is_empty() && stem.len() <= 100 && stem.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    if sound {
        Ok(())
    } else {
        Err(Error::protocol(format!(
            "\"{}\" is not a segment's name",
            file.escape_debug()
        )))
    }
}

/// Writes the chunks durably to `tmp` and compares size and checksum.
fn fetch(tmp: &Path, segment: &v1::SegmentRef, chunks: &mut dyn Iterator<Item = Result<Bytes>>) -> Result<Written> {
    let io = |e: std::io::Error| Error::io("writing a fetched segment", &e);
    let mut file = HashingFile::new(File::create(tmp).map_err(io)?);
    for chunk in chunks {
        file.write_all(&chunk?).map_err(io)?;
    }
    let written = file.finish().map_err(io)?;
    if written.bytes != segment.bytes || written.checksum.to_be_bytes() != segment.checksum[..] {
        return Err(Error::corrupt(format!(
            "fetched segment \"{}\" does not have its checksum",
            segment.file
        )));
    }
    Ok(written)
}
