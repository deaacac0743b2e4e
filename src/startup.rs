//! Code that runs before `main`: the entries at which an exec'ed fork server takes the process over.

#![allow(unsafe_code)]

use std::ffi::{c_char, c_int};

use crate::guard::takeover;
use crate::harness;
use crate::recorder::hooks;

type Constructor = extern "C" fn(c_int, *const *const c_char, *const *const c_char);

ctor::declarative::ctor! {
    /// Runs before every other constructor of the program (std stores argc and argv in `.00099`); see
    /// [`takeover::Takeover`].
    #[ctor(unsafe, link_section = ".init_array.00101")]
    fn take_over_early() {
        hooks::prepare();
        takeover::take_over_early();
    }
}

/// Runs among the last constructors of the program. It is not declared with `ctor`: it calls the constructors
/// behind it, so it needs its own address in the section and the arguments of a constructor.
#[used]
#[unsafe(link_section = ".init_array")]
static TAKE_OVER_LATE: Constructor = take_over_late;

extern "C" fn take_over_late(argc: c_int, argv: *const *const c_char, envp: *const *const c_char) {
    takeover::take_over_late(|| run_later_constructors(argc, argv, envp));
    harness::begin_leftovers();
}

/// Runs the constructors that the linker placed behind ours. A fork server must have run all of them: a body
/// must find the same state as `main`.
fn run_later_constructors(argc: c_int, argv: *const *const c_char, envp: *const *const c_char) {
    unsafe extern "C" {
        // Defined by every ELF linker around the section (ld's and lld's default layout).
        static __init_array_start: [Constructor; 0];
        static __init_array_end: [Constructor; 0];
    }
    let mut at = (&raw const __init_array_start).cast::<Constructor>();
    let end = (&raw const __init_array_end).cast::<Constructor>();
    let mut passed_ours = false;
    while at < end {
        // SAFETY: `at` lies between the bounds of the section, which holds one pointer a slot.
        let constructor = unsafe { at.read() };
        // SAFETY: still within the section, or one past its end.
        at = unsafe { at.add(1) };
        if passed_ours {
            constructor(argc, argv, envp);
        }
        passed_ours |= constructor as usize == take_over_late as *const () as usize;
    }
}
