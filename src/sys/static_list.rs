//! A list of statics that is filled before `main`, without allocating.

#![allow(unsafe_code)]

use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

/// A list of statics, the most recently added first.
pub(crate) struct StaticList<T: 'static> {
    head: AtomicPtr<T>,
    count: AtomicUsize,
}

/// A static that can be an element of one [`StaticList`].
pub(crate) trait Linked: Sized + 'static {
    /// The link to the entry that was added before this one.
    fn next(&self) -> &AtomicPtr<Self>;
}

impl<T: Linked> StaticList<T> {
    pub(crate) const fn new() -> StaticList<T> {
        StaticList { head: AtomicPtr::new(ptr::null_mut()), count: AtomicUsize::new(0) }
    }

    /// Adds an entry, in a process with one thread. Returns its position in the order of addition.
    pub(crate) fn push(&self, entry: &'static T) -> usize {
        entry.next().store(self.head.load(Ordering::Relaxed), Ordering::Relaxed);
        self.head.store(ptr::from_ref(entry).cast_mut(), Ordering::Release);
        self.count.fetch_add(1, Ordering::Relaxed)
    }

    /// Lists the entries in the order of addition.
    pub(crate) fn entries(&'static self) -> Vec<&'static T> {
        let mut entries = Vec::with_capacity(self.count.load(Ordering::Relaxed));
        let mut at = self.head.load(Ordering::Acquire);
        // SAFETY: only `push` puts pointers into the list, and only to statics.
        while let Some(entry) = unsafe { at.as_ref() } {
            entries.push(entry);
            at = entry.next().load(Ordering::Relaxed);
        }
        entries.reverse();
        entries
    }
}
