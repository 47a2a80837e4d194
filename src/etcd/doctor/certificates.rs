//! The contents of certificates: those of a server, and those in PEM files.
//! It must not know when one is too old.

use std::path::Path;

use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use x509_cert::der::Decode as _;

use crate::core::doctor::certificate::Certificate;

/// Parses one certificate; `None` if it is none.
pub(crate) fn parse(der: &[u8]) -> Option<Certificate> {
    let certificate = x509_cert::Certificate::from_der(der).ok()?;
    let inner = certificate.tbs_certificate();
    let validity = inner.validity();
    Some(Certificate {
        subject: inner.subject().to_string(),
        issuer: inner.issuer().to_string(),
        not_before: validity.not_before.to_unix_duration(),
        not_after: validity.not_after.to_unix_duration(),
    })
}

/// The certificates of a PEM file in their order.
pub(crate) fn read(path: &Path) -> Vec<Certificate> {
    // A file that cannot be read is reported by those who use it.
    parse_pem(&std::fs::read(path).unwrap_or_default())
}

/// The same for the text of such a file.
pub(crate) fn parse_pem(text: &[u8]) -> Vec<Certificate> {
    let found = CertificateDer::pem_slice_iter(text).flatten();
    found.filter_map(|der| parse(&der)).collect()
}
