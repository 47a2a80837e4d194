//! Closes the caller's descriptors, so that a reader of our pipes sees their end when the command ends.
//! It must not know which descriptors are needed.
#![expect(unsafe_code, reason = "closes descriptors by number")]

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{OwnedFd, RawFd};

use rustix::fs::{Mode, OFlags, RawDir};

/// A descriptor of /dev/null, which replaces others.
pub(crate) fn null() -> io::Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    rustix::fs::open("/dev/null", flags, Mode::empty())
        .map_err(|error| named("cannot open /dev/null", error))
}

/// The error of a call that is named, for people.
pub(crate) fn named(call: &str, error: impl Into<io::Error>) -> io::Error {
    let error = error.into();
    io::Error::new(error.kind(), format!("{call}: {error}"))
}

/// Closes every descriptor from 3 on except `kept`, which must list all that this process still uses.
pub(crate) fn close_all_but(kept: &[RawFd]) -> io::Result<()> {
    let mut kept: Vec<u32> = kept.iter().filter_map(|&own| own.try_into().ok()).collect();
    kept.retain(|own| *own > 2);
    kept.sort_unstable();
    let starts = std::iter::once(3).chain(kept.iter().map(|own| own + 1));
    let ends = kept.iter().map(|own| own - 1).chain([u32::MAX]);
    let mut gaps = starts.zip(ends).filter(|(first, last)| first <= last);
    if gaps.all(|(first, last)| close_range(first, last)) {
        return Ok(());
    }
    close_each_but(&kept)
}

/// Fails on kernels before 5.9 and in older container runtimes.
fn close_range(first: u32, last: u32) -> bool {
    // SAFETY: the caller guarantees that nothing uses these descriptors any more.
    unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) == 0 }
}

fn close_each_but(kept: &[u32]) -> io::Result<()> {
    let directory = rustix::fs::open(
        "/proc/self/fd",
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    let mut buffer = [MaybeUninit::uninit(); 2048];
    let mut entries = RawDir::new(&directory, &mut buffer);
    let mut open: Vec<u32> = Vec::new();
    while let Some(entry) = entries.next() {
        let number = entry?.file_name().to_str().ok().map(str::parse::<u32>);
        open.extend(number.and_then(Result::ok));
    }
    drop(directory);
    for descriptor in open {
        if descriptor > 2
            && !kept.contains(&descriptor)
            && let Ok(descriptor) = RawFd::try_from(descriptor)
        {
            // SAFETY: the caller guarantees that nothing uses it any more; the directory's own is closed already.
            unsafe { libc::close(descriptor) };
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn old_kernels_close_the_same_descriptors() {
        type Close = fn(&[RawFd]) -> io::Result<()>;
        let ways: [Close; 2] = [close_all_but, |kept| {
            close_each_but(
                &kept
                    .iter()
                    .map(|own| own.cast_unsigned())
                    .collect::<Vec<_>>(),
            )
        }];
        for close in ways {
            let descriptors = [(); 4].map(|()| null().unwrap());
            let [one, kept, other, also_kept] = descriptors.each_ref().map(AsRawFd::as_raw_fd);
            // SAFETY: the child only closes, checks and exits.
            let child = unsafe { crate::sys::process::fork() }.unwrap();
            let Some(child) = child else {
                let closed = close(&[also_kept, 0, kept]).is_ok();
                // SAFETY: reads the flags of a number, valid or not.
                let is_open = |number| unsafe { libc::fcntl(number, libc::F_GETFD) } >= 0;
                let right = closed
                    && [0, 1, 2, kept, also_kept].into_iter().all(is_open)
                    && ![one, other].into_iter().any(is_open);
                // SAFETY: ends the process and runs none of the test's code.
                unsafe { libc::_exit(i32::from(right)) }
            };
            let (_, status) =
                rustix::process::waitpid(Some(child), rustix::process::WaitOptions::empty())
                    .unwrap()
                    .unwrap();
            assert_eq!(status.exit_status(), Some(1));
        }
    }
}
