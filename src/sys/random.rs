//! Random numbers from the kernel.
//! It must not know what they are for.

use rustix::io::Errno;
use rustix::rand::{GetRandomFlags, getrandom};

/// A random number, `getrandom(2)`.
///
/// # Errors
/// The kernel lacks the call, or was built to refuse it.
pub(crate) fn random() -> Result<u64, Errno> {
    let mut bytes = [0; 8];
    // The kernel returns up to 256 bytes at once, and waits only until it has been seeded after the boot.
    getrandom(&mut bytes, GetRandomFlags::empty())?;
    Ok(u64::from_ne_bytes(bytes))
}
