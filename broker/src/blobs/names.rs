//! One at a time per key: whether a key is free and the write that takes it are one step only for whoever holds its name.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::OwnedMutexGuard;

use super::key::BlobKey;

type Held = HashMap<BlobKey, Arc<tokio::sync::Mutex<()>>>;

/// The names that are held, or waited for. As many as there are requests that do.
#[derive(Debug, Default)]
pub(super) struct Names(Arc<Mutex<Held>>);

/// A name that is held until this is dropped.
pub(super) struct Name {
    key: BlobKey,
    names: Arc<Mutex<Held>>,
    /// `None` only while it is dropped.
    guard: Option<OwnedMutexGuard<()>>,
}

impl Names {
    /// Waits until nobody else holds the name.
    pub(super) async fn hold(&self, key: &BlobKey) -> Name {
        let lock = Arc::clone(self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(key.clone()).or_default());
        let guard = Some(lock.lock_owned().await);
        Name { key: key.clone(), names: Arc::clone(&self.0), guard }
    }
}

impl Drop for Name {
    fn drop(&mut self) {
        let mut held = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        self.guard = None;
        // Whoever waits has a share in it: the map's own is the last one when nobody does. New ones come only through the map.
        if held.get(&self.key).is_some_and(|lock| Arc::strong_count(lock) == 1) {
            held.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_name_has_one_holder_and_is_forgotten_after_the_last() {
        let names = Names::default();
        let key = |text: &str| text.parse::<BlobKey>().unwrap();
        let first = names.hold(&key("a")).await;
        let _other = names.hold(&key("b")).await;
        let second = tokio::spawn({
            let names = Names(Arc::clone(&names.0));
            async move { names.hold(&"a".parse().unwrap()).await }
        });
        let waits = || Arc::strong_count(&names.0.lock().unwrap()[&key("a")]) == 3;
        while !waits() {
            tokio::task::yield_now().await;
        }
        assert!(!second.is_finished());
        drop(first);
        drop(second.await.unwrap());
        assert_eq!(names.0.lock().unwrap().keys().map(BlobKey::as_str).collect::<Vec<_>>(), ["b"]);
    }
}
