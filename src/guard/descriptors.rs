//! Letting go of the caller's descriptors, so that whoever reads our pipes sees the end when the command ends.
//! It must not know whose descriptors are worth keeping.
#![expect(unsafe_code, reason = "closes descriptors by number")]

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{OwnedFd, RawFd};

use rustix::fs::{Mode, OFlags, RawDir};

/// A descriptor of /dev/null, to put in the place of others.
pub(super) fn null() -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(
        "/dev/null",
        OFlags::RDWR | OFlags::CLOEXEC,
        Mode::empty(),
    )?)
}

/// Closes every descriptor from 3 on but `kept`, which has to name all that this process goes on using.
/// Not `close_range(2)`: kernels before 5.9 and older container runtimes refuse it.
pub(super) fn close_all_but(kept: &[RawFd]) -> io::Result<()> {
    let directory = rustix::fs::open(
        "/proc/self/fd",
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    // `read_dir` takes 32 KiB of the heap, and that right after a fork, when each page of it that is touched is copied.
    let mut buffer = [MaybeUninit::uninit(); 2048];
    let mut entries = RawDir::new(&directory, &mut buffer);
    let mut open: Vec<RawFd> = Vec::new();
    while let Some(entry) = entries.next() {
        let number = entry?.file_name().to_str().ok().map(str::parse::<RawFd>);
        open.extend(number.and_then(Result::ok));
    }
    drop(directory);
    for descriptor in open {
        if descriptor > 2 && !kept.contains(&descriptor) {
            // SAFETY: nothing uses it any more, says the caller; the directory's own is closed already.
            unsafe { libc::close(descriptor) };
        }
    }
    Ok(())
}
