//! Looks up the C library's functions that the hooks of the same names hide.

use core::ffi::{CStr, c_void};
use core::sync::atomic::{AtomicBool, AtomicPtr, Ordering};

use super::abi;

/// A function behind one of the hooks.
pub(crate) struct Next {
    found: AtomicPtr<c_void>,
    name: &'static CStr,
    /// Whether its library may be loaded later than the program.
    may_be_late: bool,
}

impl Next {
    pub(crate) const fn new(name: &'static CStr) -> Next {
        Next { found: AtomicPtr::new(core::ptr::null_mut()), name, may_be_late: false }
    }

    /// A function of a library that the program may load later.
    pub(crate) const fn of_other_library(name: &'static CStr) -> Next {
        Next { may_be_late: true, ..Next::new(name) }
    }

    /// The function; null if there is none.
    #[inline(always)]
    pub(crate) fn get(&self) -> *mut c_void {
        let known = self.found.load(Ordering::Relaxed);
        if known as usize != 0 { known } else { self.find() }
    }

    fn find(&self) -> *mut c_void {
        if PREPARED.load(Ordering::Relaxed) && !self.may_be_late {
            return core::ptr::null_mut();
        }
        let found = abi::next(self.name);
        self.found.store(found, Ordering::Relaxed);
        found
    }
}

/// Set once all were looked up: a function that is not known then does not exist.
static PREPARED: AtomicBool = AtomicBool::new(false);

/// Looks up the functions. Runs before `main`: a later look-up could wait for the loader's lock, in a process
/// that was forked while another thread held it.
pub(crate) fn prepare<'a>(all: impl Iterator<Item = &'a Next>) {
    all.for_each(|next| {
        next.get();
    });
    PREPARED.store(true, Ordering::Relaxed);
}

/// The function behind a hook, with the given type. If there is none, the hook returns the given value with
/// `errno` ENOSYS.
macro_rules! behind {
    ($next:ident: fn($($type:ty),*) -> $result:ty, or $failed:expr) => {{
        let next = $next.get();
        if next as usize == 0 {
            abi::set_errno(abi::ENOSYS);
            return $failed;
        }
        // SAFETY: it is the C library's function of that name, which has this type.
        unsafe { core::mem::transmute::<*mut c_void, unsafe extern "C" fn($($type),*) -> $result>(next) }
    }};
}
pub(crate) use behind;
