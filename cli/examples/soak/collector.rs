//! Keeps what was told, in memory.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::load::Listener;
use crate::told::Told;

/// What was told and what was wrong, so far.
#[derive(Default)]
pub(crate) struct Collector {
    told: Mutex<Vec<Told>>,
    wrong: Mutex<Vec<String>>,
    acknowledged: AtomicU64,
}

impl Listener for Collector {
    fn told(&self, told: Told) {
        if told.is_acknowledgement() {
            self.acknowledged.fetch_add(1, Ordering::Relaxed);
        }
        self.told.lock().unwrap_or_else(PoisonError::into_inner).push(told);
    }

    fn wrong(&self, text: String) {
        println!("  wrong: {text}");
        self.wrong.lock().unwrap_or_else(PoisonError::into_inner).push(text);
    }
}

impl Collector {
    /// How much was acknowledged.
    pub(crate) fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::Relaxed)
    }

    /// Everything.
    pub(crate) fn take(&self) -> (Vec<Told>, Vec<String>) {
        let told = std::mem::take(&mut *self.told.lock().unwrap_or_else(PoisonError::into_inner));
        (told, std::mem::take(&mut *self.wrong.lock().unwrap_or_else(PoisonError::into_inner)))
    }
}
