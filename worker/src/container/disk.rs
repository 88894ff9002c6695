//! How much disk a running container takes, in ways that the engine does not bound on every file system: what it writes over
//! its image's files, its outputs, and its log as the engine keeps it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use bollard::query_parameters::InspectContainerOptionsBuilder;
use tokio::time::{Instant, sleep};

use super::engine::Engine;
use super::follow::read_seen;
use crate::files::RunDirs;

/// How often it is looked at: a fast disk takes a gigabyte in a second, so that this is also how far a job can go too far.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Looking takes at most one part in so many of the time: a job can have a million files.
const LOOK_SHARE: u32 = 10;
/// What a file or folder counts for at least, so that empty ones come to an end too.
const ENTRY_BYTES: u64 = 512;

/// The most that one container may take.
#[derive(Clone, Debug)]
pub(crate) struct DiskLimit {
    pub(crate) bytes: u64,
    pub(crate) root: PathBuf,
    pub(crate) outputs: PathBuf,
}

impl DiskLimit {
    pub(crate) fn new(bytes: u64, dirs: &RunDirs) -> Self {
        Self { bytes, root: dirs.root.clone(), outputs: dirs.outputs.clone() }
    }

    /// Waits until the container takes more than that.
    pub(super) async fn exceeded(self, engine: Engine, container: String) {
        loop {
            sleep(LOOK_EVERY).await;
            let started = Instant::now();
            if self.taken(&engine, &container).await > self.bytes {
                return;
            }
            sleep(started.elapsed() * LOOK_SHARE).await;
        }
    }

    async fn taken(&self, engine: &Engine, container: &str) -> u64 {
        let (outputs, root, enough) = (self.outputs.clone(), self.root.clone(), self.bytes);
        let own = tokio::task::spawn_blocking(move || {
            let seen = read_seen(&root);
            below(&outputs, enough).saturating_add(seen.out_bytes).saturating_add(seen.err_bytes)
        });
        let options = InspectContainerOptionsBuilder::default().size(true).build();
        let found = engine.docker().inspect_container(container, Some(options)).await;
        let layer = found.ok().and_then(|found| found.size_rw).and_then(|bytes| u64::try_from(bytes).ok());
        own.await.unwrap_or(0).saturating_add(layer.unwrap_or(0))
    }
}

/// What is below a folder, counting no further than just above `enough`. Links are not followed.
pub(crate) fn below(folder: &Path, enough: u64) -> u64 {
    use std::os::unix::fs::MetadataExt;
    /// The unit of `st_blocks`.
    const BLOCK_BYTES: u64 = 512;
    let mut sum: u64 = 0;
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        // What cannot be read, or has gone meanwhile, counts for nothing.
        let Ok(entries) = std::fs::read_dir(&folder) else { continue };
        for entry in entries.flatten() {
            let Ok(about) = entry.metadata() else { continue };
            // Blocks, not lengths: a sparse file takes what it takes.
            sum = sum.saturating_add(about.blocks().saturating_mul(BLOCK_BYTES).max(ENTRY_BYTES));
            if sum > enough {
                return sum;
            }
            if about.is_dir() {
                folders.push(entry.path());
            }
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_below_is_counted_by_blocks_without_following_links_and_no_further_than_needed() {
        let folder = tempfile::TempDir::new().unwrap();
        let (deep, huge) = (folder.path().join("a/b"), folder.path().join("sparse"));
        std::fs::create_dir_all(&deep).unwrap();
        std::fs::write(deep.join("file"), vec![1; 100_000]).unwrap();
        std::fs::File::create(&huge).unwrap().set_len(1 << 40).unwrap();
        std::os::unix::fs::symlink("/", folder.path().join("link")).unwrap();
        let taken = below(folder.path(), u64::MAX);
        assert!((100_000..200_000).contains(&taken), "{taken}");
        for number in 0..1000 {
            std::fs::write(deep.join(format!("empty{number}")), "").unwrap();
        }
        assert!(below(folder.path(), u64::MAX) >= taken + 1000 * ENTRY_BYTES);
        let some = below(folder.path(), 10_000);
        assert!(some > 10_000 && some < below(folder.path(), u64::MAX) + 1, "{some}");
        assert_eq!(below(&folder.path().join("missing"), 1), 0);
    }
}
