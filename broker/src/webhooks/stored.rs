//! Webhooks on disk: a file for each, beside the journal, because a call's body names the queue and the journal must not.
//!
//! A file is there before its submission reaches the queue, and goes when all its calls are delivered or forgotten. Only its
//! owner may read it: it holds the queue's name.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use protocol::id::{JobId, Namespace, QueueName, Seq, UnixMillis};
use protocol::raw::RawJson;
use serde::{Deserialize, Serialize};

use super::call::{HookId, Kind};
use super::fate::Ending;

/// The version of the files' shape.
const VERSION: u16 = 1;

/// A webhook as it is stored.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Stored {
    v: u16,
    pub(super) queue: QueueName,
    pub(super) job: JobId,
    pub(super) namespace: Namespace,
    /// Where the queue stood before the submission: what became of it is in the journal after that.
    pub(super) seen: Seq,
    pub(super) at_ms: UnixMillis,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) queued: Option<StoredCall>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) finished: Option<StoredCall>,
    /// How the job ended, once a call that says so was tried.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) ending: Option<Ending>,
}

/// One call of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct StoredCall {
    pub(super) url: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) payload: Option<RawJson>,
    /// How often it was tried.
    #[serde(default)]
    pub(super) tries: u32,
    /// When it is tried (again); absent while it waits for its job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) next_at_ms: Option<UnixMillis>,
    /// When it became a dead letter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) dead_at_ms: Option<UnixMillis>,
    /// What the last try came to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) error: Option<String>,
}

impl Stored {
    pub(super) const fn new(
        queue: QueueName,
        job: JobId,
        namespace: Namespace,
        seen: Seq,
        at_ms: UnixMillis,
        queued: Option<StoredCall>,
        finished: Option<StoredCall>,
    ) -> Self {
        Self { v: VERSION, queue, job, namespace, seen, at_ms, queued, finished, ending: None }
    }

    pub(super) const fn call(&self, kind: Kind) -> Option<&StoredCall> {
        match kind {
            Kind::Queued => self.queued.as_ref(),
            Kind::Finished => self.finished.as_ref(),
        }
    }

    pub(super) const fn call_mut(&mut self, kind: Kind) -> &mut Option<StoredCall> {
        match kind {
            Kind::Queued => &mut self.queued,
            Kind::Finished => &mut self.finished,
        }
    }
}

/// The folder of the files.
#[derive(Clone, Debug)]
pub(super) struct Folder(PathBuf);

impl Folder {
    /// Makes the folder when it is missing.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(path)?;
        Ok(Self(path.to_owned()))
    }

    fn of(&self, id: HookId) -> PathBuf {
        self.0.join(format!("{id}.json"))
    }

    /// Writes a new webhook; when this returns, a power cut cannot take it away. Gives its size.
    pub(super) fn add(&self, id: HookId, stored: &Stored) -> io::Result<u64> {
        let bytes = self.write(id, stored)?;
        File::open(&self.0)?.sync_all()?;
        Ok(bytes)
    }

    /// Writes what has changed. After a power cut either the old or the new is there: at worst a call is tried once more.
    pub(super) fn write(&self, id: HookId, stored: &Stored) -> io::Result<u64> {
        let bytes = serde_json::to_vec(stored)?;
        let written = self.0.join(format!("{id}.new"));
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&written)?;
        let done = file.write_all(&bytes).and_then(|()| file.sync_all());
        let done = done.and_then(|()| std::fs::rename(&written, self.of(id)));
        if done.is_err() {
            let _ = std::fs::remove_file(&written);
        }
        done.map(|()| bytes.len() as u64)
    }

    pub(super) fn read(&self, id: HookId) -> io::Result<Stored> {
        let stored: Stored = serde_json::from_slice(&std::fs::read(self.of(id))?)?;
        if stored.v > VERSION {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "written by a newer build"));
        }
        Ok(stored)
    }

    pub(super) fn remove(&self, id: HookId) -> io::Result<()> {
        match std::fs::remove_file(self.of(id)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// All that is stored, with its size. What cannot be read is left where it is, and said.
    pub(super) fn all(&self) -> io::Result<Vec<(HookId, u64, Stored)>> {
        let mut all = Vec::new();
        for entry in std::fs::read_dir(&self.0)? {
            let entry = entry?;
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if name.ends_with(".new") {
                // A change that was not finished; what it would have changed is there.
                std::fs::remove_file(entry.path())?;
                continue;
            }
            let Some(id) = name.strip_suffix(".json").and_then(|id| id.parse().ok()) else { continue };
            match self.read(id) {
                Ok(stored) => all.push((id, entry.metadata()?.len(), stored)),
                Err(error) => {
                    tracing::warn!(%error, "cannot read the webhook {id}: {error}; its file is left as it is")
                }
            }
        }
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn stored() -> Stored {
        let call = StoredCall {
            url: "https://example.org/".to_owned(),
            payload: Some(RawJson::new(r#"{"k":"\ud800"}"#)),
            tries: 2,
            next_at_ms: Some(UnixMillis(7)),
            dead_at_ms: None,
            error: Some("answered 500".to_owned()),
        };
        let (queue, job) = ("q".parse().unwrap(), JobId::from_bytes([1; 32]));
        Stored::new(queue, job, Namespace::default(), 9, UnixMillis(5), Some(call.clone()), Some(call))
    }

    #[test]
    fn what_is_written_is_read_back_and_private() {
        let folder = tempfile::TempDir::new().unwrap();
        let folder = Folder::open(&folder.path().join("webhooks")).unwrap();
        let id = HookId::from_bytes([3; 16]);
        let bytes = folder.add(id, &stored()).unwrap();
        assert_eq!(folder.read(id).unwrap(), stored());
        assert_eq!(folder.all().unwrap(), [(id, bytes, stored())]);
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&folder.0), mode(&folder.of(id))), (0o700, 0o600));
        folder.remove(id).unwrap();
        folder.remove(id).unwrap();
        assert_eq!(folder.all().unwrap(), []);
    }

    #[test]
    fn a_change_that_was_not_finished_changes_nothing_and_damage_costs_one() {
        let folder = tempfile::TempDir::new().unwrap();
        let folder = Folder::open(folder.path()).unwrap();
        let (id, broken) = (HookId::from_bytes([3; 16]), HookId::from_bytes([4; 16]));
        folder.add(id, &stored()).unwrap();
        std::fs::write(folder.0.join(format!("{id}.new")), b"{\"v\":1").unwrap();
        std::fs::write(folder.of(broken), b"{").unwrap();
        let ids: Vec<_> = folder.all().unwrap().into_iter().map(|(id, ..)| id).collect();
        assert_eq!(ids, [id]);
        assert!(!folder.0.join(format!("{id}.new")).exists());
        assert!(folder.of(broken).exists(), "someone may want to look at it");
    }
}
