//! Removes the recorder's settings from the environment before `main`, so that no child of the program
//! inherits them.
//!
//! Edits the array in place: `main` gets the same array that `environ` points to.

use core::ffi::{CStr, c_char};
use core::ptr;

use super::file::{LIBRARY, LOG_VARIABLE, RECORD_VARIABLE};

const PRELOAD: &str = "LD_PRELOAD";

unsafe extern "C" {
    static mut environ: *mut *mut c_char;
}

/// The value of a variable.
///
/// # Safety
///
/// No other thread changes the environment.
pub(crate) unsafe fn get(name: &str) -> Option<&'static CStr> {
    // SAFETY: the caller's promise.
    let mut place = unsafe { environ };
    while let Some(text) = text_at(place) {
        let bytes = text.to_bytes_with_nul();
        if let Some(value) = value_of(bytes, name) {
            return CStr::from_bytes_with_nul(value).ok();
        }
        place = place.wrapping_add(1);
    }
    None
}

/// The string at a position of the array; `None` at its end.
fn text_at(place: *mut *mut c_char) -> Option<&'static CStr> {
    if place.is_null() {
        return None;
    }
    // SAFETY: there is a pointer at each place up to the null one, behind which nothing asks.
    let text = unsafe { place.read() };
    if text.is_null() {
        return None;
    }
    // SAFETY: the strings are NUL-terminated.
    Some(unsafe { CStr::from_ptr(text) })
}

fn value_of<'a>(text: &'a [u8], name: &str) -> Option<&'a [u8]> {
    text.strip_prefix(name.as_bytes())?.strip_prefix(b"=")
}

/// Removes the recorder's own variables, and its path from `LD_PRELOAD`; other preloaded libraries stay.
///
/// # Safety
///
/// No other thread uses the environment.
pub(crate) unsafe fn clean() {
    // SAFETY: the caller's promise.
    let mut from = unsafe { environ };
    let mut to = from;
    while let Some(text) = text_at(from) {
        // SAFETY: there is a pointer, as was just read.
        let pointer = unsafe { from.read() };
        from = from.wrapping_add(1);
        let bytes = text.to_bytes();
        let is_own = [LOG_VARIABLE, RECORD_VARIABLE].iter().any(|name| value_of(bytes, name).is_some());
        // SAFETY: the string is writable, and nothing else reads it now.
        let stays =
            !is_own && (value_of(bytes, PRELOAD).is_none() || unsafe { remove_own(pointer, bytes.len()) });
        if stays {
            // SAFETY: `to` is at or before what was just read.
            unsafe { to.write(pointer) };
            to = to.wrapping_add(1);
        }
    }
    if !to.is_null() && to != from {
        // SAFETY: before the end of the array.
        unsafe { to.write(ptr::null_mut()) };
    }
}

/// Removes the library from the value of `LD_PRELOAD`. `false` if nothing is left in it.
///
/// # Safety
///
/// `text` is a writable string of that length, and nothing else reads it.
unsafe fn remove_own(text: *mut c_char, length: usize) -> bool {
    // SAFETY: the caller's promise.
    let bytes = unsafe { core::slice::from_raw_parts_mut(text.cast::<u8>(), length + 1) };
    let is_separator = |byte: u8| byte == b':' || byte == b' ';
    let begin = PRELOAD.len() + 1;
    let (mut from, mut to) = (begin, begin);
    while from < length {
        let end = (from..length).find(|at| is_separator(bytes[*at])).unwrap_or(length);
        let word = &bytes[from..end];
        let name = word.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
        if name != LIBRARY.as_bytes() && !word.is_empty() {
            if to > begin {
                bytes[to] = b':';
                to += 1;
            }
            bytes.copy_within(from..end, to);
            to += end - from;
        }
        from = end + 1;
    }
    bytes[to] = 0;
    to > begin
}
