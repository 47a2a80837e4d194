//! The rights of this process: whether its executable gave it more than the caller has.
//! It must not know what depends on them.
#![expect(
    unsafe_code,
    reason = "rustix offers the auxiliary vector only to programs without a C library"
)]

/// Whether the executable gave this process rights that its caller does not have: `AT_SECURE` of `getauxval(3)`, set for
/// setuid and setgid bits and for file capabilities.
pub(crate) fn is_secure_execution() -> bool {
    // SAFETY: only returns a number; 0 if the kernel does not provide it.
    unsafe { libc::getauxval(libc::AT_SECURE) != 0 }
}
