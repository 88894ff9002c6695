//! The volumes that a queue's jobs share below `/job-cache`, and how large they may get.
//!
//! An engine bounds a volume on few file systems, so its size is looked at now and then. One that is too large is left to the
//! runs that have it: the next get a new, empty one, and the old is removed when nothing uses it any more.

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Duration;

use bollard::errors::Error;
use bollard::models::{Volume, VolumeCreateRequest};
use bollard::query_parameters::{ListVolumesOptionsBuilder, RemoveVolumeOptions};
use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::disk::below;
use super::engine::Engine;
use super::names::LABEL;

/// How often a volume's size is looked at: a large one takes a while.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// A queue's volume that runs are given now.
#[derive(Clone, Debug)]
pub(super) struct Volumes {
    pub(super) name: String,
    /// Where its files are, if they can be seen from here.
    folder: Option<PathBuf>,
    looked: Option<Instant>,
    /// Whether somebody who is not root can write to it.
    pub(super) is_open: bool,
}

impl Volumes {
    /// Finds or makes the newest volume of that name, and removes older ones that nothing uses.
    pub(super) async fn ready(engine: &Engine, base: &str, bytes_max: Option<u64>) -> Result<Self, Error> {
        let newest = generations(engine, base).await?.into_iter().next_back();
        let volume = match newest {
            Some((_, volume)) => volume,
            None => create(engine, base.to_owned(), bytes_max).await?,
        };
        let volumes = Self::of(volume);
        if bytes_max.is_some() && volumes.folder.is_none() {
            warn!("the size of jobs' caches is not looked at: the engine's volumes are not to be seen from here");
        }
        Ok(volumes)
    }

    fn of(volume: Volume) -> Self {
        let folder = Some(PathBuf::from(volume.mountpoint)).filter(|folder| folder.read_dir().is_ok());
        Self { name: volume.name, folder, looked: None, is_open: false }
    }

    /// Whether it is time to look at the size; says so once.
    pub(super) fn is_due(&mut self) -> bool {
        let is_due = self.looked.is_none_or(|looked| looked.elapsed() >= LOOK_EVERY);
        if is_due {
            self.looked = Some(Instant::now());
        }
        is_due
    }

    /// Looks at the size; makes a new volume when there is too much in this one, and then says so.
    pub(super) async fn bound(&mut self, engine: &Engine, base: &str, bytes_max: u64) -> Result<bool, Error> {
        let Some(folder) = self.folder.clone() else { return Ok(false) };
        let taken = tokio::task::spawn_blocking(move || below(&folder, bytes_max)).await.unwrap_or(0);
        let mut all = generations(engine, base).await?;
        let is_too_large = taken > bytes_max;
        if is_too_large {
            let last = all.last_key_value().map_or(0, |(generation, _)| *generation);
            let next = create(engine, format!("{base}.{}", last.saturating_add(1)), Some(bytes_max)).await?;
            info!("a queue's job cache has grown over {bytes_max} bytes: its next jobs get a new one");
            *self = Self { looked: Some(Instant::now()), ..Self::of(next) };
        }
        all.retain(|_, volume| volume.name != self.name);
        for (_, old) in all {
            if let Err(error) = engine.docker().remove_volume(&old.name, None::<RemoveVolumeOptions>).await {
                debug!("an earlier job cache is still in use: {error}");
            }
        }
        Ok(is_too_large)
    }
}

/// The volumes of that name, by generation: the first has none written after its name.
async fn generations(engine: &Engine, base: &str) -> Result<std::collections::BTreeMap<u32, Volume>, Error> {
    let filters = HashMap::from([("name".to_owned(), vec![base.to_owned()])]);
    let options = ListVolumesOptionsBuilder::default().filters(&filters).build();
    let listed = engine.docker().list_volumes(Some(options)).await?.volumes.unwrap_or_default();
    Ok(listed.into_iter().filter_map(|volume| Some((generation(base, &volume.name)?, volume))).collect())
}

fn generation(base: &str, name: &str) -> Option<u32> {
    match name.strip_prefix(base)? {
        "" => Some(0),
        rest => rest.strip_prefix('.')?.parse().ok(),
    }
}

/// Bounded by the engine where it can do that.
async fn create(engine: &Engine, name: String, bytes_max: Option<u64>) -> Result<Volume, Error> {
    let request = |driver_opts| VolumeCreateRequest {
        name: Some(name.clone()),
        labels: Some(HashMap::from([(LABEL.to_owned(), "true".to_owned())])),
        driver_opts,
        ..VolumeCreateRequest::default()
    };
    if let Some(bytes) = bytes_max {
        let size = HashMap::from([("size".to_owned(), bytes.to_string())]);
        match engine.docker().create_volume(request(Some(size))).await {
            Ok(volume) => return Ok(volume),
            Err(error) => debug!("the engine does not bound volumes here: {error}"),
        }
    }
    engine.docker().create_volume(request(None)).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volumes_generation_is_written_after_its_name() {
        assert_eq!(generation("a-b", "a-b"), Some(0));
        assert_eq!(generation("a-b", "a-b.12"), Some(12));
        for other in ["a-b.", "a-b.x", "a-bc", "x.a-b", "a-b-1"] {
            assert_eq!(generation("a-b", other), None, "{other}");
        }
    }
}
