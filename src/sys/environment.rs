//! The environment of this process, in the memory that /proc/PID/environ shows.
//! It must not know what the variables mean.
#![expect(unsafe_code, reason = "the C library's list of variables")]

use std::ffi::{CStr, c_char};

unsafe extern "C" {
    static environ: *const *mut c_char;
}

/// All entries, also those that `std::env` would drop. They are not copied: after a fork, every page that is touched is
/// copied.
pub(crate) fn entries() -> Vec<&'static CStr> {
    // SAFETY: each is a string, and nothing changes it after `erase`, which is called before this.
    pointers()
        .map(|entry| unsafe { CStr::from_ptr(entry) })
        .collect()
}

/// Overwrites the end of each entry, from the position that `start` finds on: other processes of this user can read the
/// environment that a process was started with. Must be called before [`entries`], and while there is one thread.
pub(crate) fn erase(start: impl Fn(&[u8]) -> Option<usize>) {
    for entry in pointers() {
        // SAFETY: each is a string that nothing else uses now, in memory that the kernel or the C library made writable.
        unsafe {
            let bytes = CStr::from_ptr(entry).to_bytes();
            let length = bytes.len();
            if let Some(start) = start(bytes) {
                for offset in start..length {
                    entry.add(offset).write_volatile(0);
                }
            }
        }
    }
}

fn pointers() -> impl Iterator<Item = *mut c_char> {
    // SAFETY: the C library keeps a list of pointers there that a null pointer ends, and nothing in dlock replaces it.
    let first = unsafe { environ };
    (0..).map_while(move |position| {
        if first.is_null() {
            return None;
        }
        // SAFETY: no entry before was null, so the list has this one.
        let entry = unsafe { *first.add(position) };
        (!entry.is_null()).then_some(entry)
    })
}
