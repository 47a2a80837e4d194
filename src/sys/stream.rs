//! An output that is written and cannot be replaced: a descriptor of the caller, a pipe or a device.
//! It must not know what is written.

#![expect(unsafe_code, reason = "borrows a descriptor by its number")]

use std::fs::File;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags, fcntl_getfl, fcntl_setfl, open, stat};
use rustix::io::{Errno, FdFlags, fcntl_dupfd_cloexec, fcntl_getfd};

use crate::sys::inherited;

/// The number of the caller's descriptor that the path names: `-`, /dev/stdout, /dev/stderr, /dev/fd/N.
pub(crate) fn inherited_number(path: &Path) -> Option<RawFd> {
    match path.to_str()? {
        "-" | "/dev/stdout" => Some(1),
        "/dev/stderr" => Some(2),
        text => {
            let number = text.strip_prefix("/dev/fd/");
            let number = number.or_else(|| text.strip_prefix("/proc/self/fd/"))?;
            let digits = number.bytes().all(|byte| byte.is_ascii_digit());
            number.parse().ok().filter(|_| digits)
        }
    }
}

/// A copy of the caller's descriptor.
///
/// # Errors
/// `EBADF`: the caller has none with this number, or it is only for reading.
pub(crate) fn inherited(number: RawFd) -> io::Result<OwnedFd> {
    if number < 0 || inherited::closed_at_start(number) {
        return Err(Errno::BADF.into());
    }
    // SAFETY: only borrowed for three calls that fail for a number that is no descriptor.
    let descriptor = unsafe { BorrowedFd::borrow_raw(number) };
    // All descriptors of dlock itself are close-on-exec, and none of those that it inherited is.
    let own = fcntl_getfd(descriptor)?.contains(FdFlags::CLOEXEC);
    let read_only = fcntl_getfl(descriptor)? & OFlags::RWMODE == OFlags::RDONLY;
    if own || read_only {
        return Err(Errno::BADF.into());
    }
    Ok(fcntl_dupfd_cloexec(descriptor, 3)?)
}

/// Opens a pipe or a device for writing; `None` if it is neither.
///
/// # Errors
/// `ENXIO`: nobody reads the pipe.
pub(crate) fn open_special(path: &Path) -> io::Result<Option<OwnedFd>> {
    let kind = stat(path).map(|status| FileType::from_raw_mode(status.st_mode));
    if !matches!(kind, Ok(FileType::Fifo | FileType::CharacterDevice)) {
        return Ok(None);
    }
    // A pipe without a reader would block the open.
    let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let opened = open(path, flags, Mode::empty())?;
    fcntl_setfl(&opened, fcntl_getfl(&opened)? - OFlags::NONBLOCK)?;
    Ok(Some(opened))
}

/// Writes all of `bytes`. Waits for the reader.
pub(crate) fn write_all(stream: &OwnedFd, bytes: &[u8]) -> io::Result<()> {
    io::Write::write_all(&mut File::from(stream.try_clone()?), bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_names_a_descriptor_only_in_these_forms() {
        let number = |path: &str| inherited_number(path.as_ref());
        assert_eq!(number("-"), Some(1));
        assert_eq!(number("/dev/stdout"), Some(1));
        assert_eq!(number("/dev/stderr"), Some(2));
        assert_eq!(number("/dev/fd/9"), Some(9));
        assert_eq!(number("/proc/self/fd/3"), Some(3));
        for path in [
            "./-",
            "/dev/fd/",
            "/dev/fd/x",
            "/dev/fd/+1",
            "/dev/fd",
            "stdout",
        ] {
            assert_eq!(number(path), None, "{path}");
        }
    }

    #[test]
    fn a_descriptor_of_our_own_is_none_of_the_callers() {
        let null = crate::sys::descriptors::null().unwrap();
        let number = std::os::fd::AsRawFd::as_raw_fd(&null);
        assert!(inherited(number).is_err());
        assert!(inherited(RawFd::MAX).is_err());
    }
}
