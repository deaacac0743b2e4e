//! Locks mutexes with values that are consistent at any time.

use std::sync::Mutex;

/// Locks even if a thread has panicked with the lock held: the values are consistent at any time.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
