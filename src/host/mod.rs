//! Facts about this host: the identity that others see, the CI around us, and what the doctor checks.
//! It must not know locks.

pub(crate) mod facts;
pub(crate) mod identity;
pub(crate) mod shell;
