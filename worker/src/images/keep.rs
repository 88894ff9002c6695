//! How much is kept: of the images that this worker fetched or built, those used last, up to a size.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex};

use bollard::errors::Error;
use bollard::query_parameters::RemoveImageOptionsBuilder;
use tracing::{debug, info};

use super::ledger::{Entry, Origin};
use super::{Images, Look, look};
use crate::container::is_not_found;
use crate::sync::lock;

/// An image that a run is about to use: it is not removed as long as this lives. Once there is a container, the engine
/// itself protects its image.
#[derive(Debug)]
pub(crate) struct InUse {
    name: String,
    counts: Arc<Counts>,
}

/// How many runs are about to use which image.
#[derive(Debug, Default)]
pub(super) struct Counts(Mutex<HashMap<String, usize>>);

impl Counts {
    pub(super) fn hold(self: &Arc<Self>, name: &str) -> InUse {
        *lock(&self.0).entry(name.to_owned()).or_default() += 1;
        InUse { name: name.to_owned(), counts: Arc::clone(self) }
    }

    fn held(&self) -> BTreeSet<String> {
        lock(&self.0).keys().cloned().collect()
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        let mut counts = lock(&self.counts.0);
        if let Some(count) = counts.get_mut(&self.name) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.name);
            }
        }
    }
}

impl Images {
    /// Removes what is too much. One at a time: another that is under way does this one's work too.
    pub(super) async fn trim(&self) {
        let Some(bytes_max) = self.config.cache_bytes_max else { return };
        let Ok(_trimming) = self.trimming.try_lock() else { return };
        let mut kept = self.kept.clone();
        // What cannot be removed now is left out of the next look, so that this ends.
        loop {
            kept.extend(self.counts.held());
            let surplus = lock(&self.ledger).surplus(bytes_max, &kept);
            let Some((name, entry)) = surplus.into_iter().next() else { break };
            match self.remove(&name, &entry, "which was unused for longest").await {
                Ok(()) => self.forget(&name),
                Err(error) => {
                    debug!("cannot remove the image {name} yet: {error}");
                    kept.insert(name);
                }
            }
        }
        self.save().await;
    }

    /// Removes an image that this worker built, if no run is about to use it and no container has it: what it was built for was
    /// deleted.
    pub(crate) async fn discard(&self, name: &str) {
        // One at a time with what is too much.
        let _trimming = self.trimming.lock().await;
        let entry = lock(&self.ledger).get(name).filter(|entry| entry.origin == Origin::Built).cloned();
        let Some(entry) = entry.filter(|_| !self.counts.held().contains(name)) else { return };
        match self.remove(name, &entry, "whose job was deleted").await {
            Ok(()) => {
                self.forget(name);
                self.save().await;
            }
            // Then it stays as any other that was built.
            Err(error) => debug!("the image {name} of a deleted job stays: {error}"),
        }
    }

    fn forget(&self, name: &str) {
        lock(&self.ledger).forget(name);
        lock(&self.known).remove(name);
    }

    /// Removes an image, unless its name means another one by now: then that one is somebody else's.
    async fn remove(&self, name: &str, entry: &Entry, why: &str) -> Result<(), Error> {
        let found = match look(&self.docker, name).await? {
            Look::Missing => return Ok(()),
            Look::There(found) => found,
        };
        let names = found.names.len();
        // One whose id cannot be told is not known to be ours.
        if found.id.as_deref() != Some(&entry.id) || (entry.origin == Origin::Remains && names > 0) {
            return Ok(());
        }
        // Not by force: the engine refuses while a container has it, or another image is made from it.
        let options = RemoveImageOptionsBuilder::default().force(false).noprune(false).build();
        match self.docker.remove_image(name, Some(options), None).await {
            Ok(_) => {
                info!("removed the image {name}, {why}");
                Ok(())
            }
            Err(error) if is_not_found(&error) => Ok(()),
            Err(error) => Err(error),
        }
    }
}
