//! A lock that a panicked holder does not take from the others.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Takes the lock. What is behind these locks is whole between any two statements.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
