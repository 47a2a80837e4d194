//! The TLS of a connection: the files of the settings, and the rule by which a server's certificate is accepted.
//! It must not know what is sent over the connection.

use std::path::Path;
use std::sync::Arc;

use tokio_rustls::rustls::client::danger::{
    HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier,
};
use tokio_rustls::rustls::client::{Resumption, WebPkiServerVerifier, verify_server_name};
use tokio_rustls::rustls::pki_types::pem::{self, PemObject as _};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio_rustls::rustls::server::ParsedCertificate;
use tokio_rustls::rustls::sign::CertifiedKey;
use tokio_rustls::rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, InconsistentKeys, RootCertStore,
    SignatureScheme,
};
use x509_cert::certificate::Version;
use x509_cert::der::Decode as _;
use zeroize::Zeroizing;

use super::error::{ErrorKind, LockError};
use super::p521;
use crate::config::Tls;

/// HTTP/2, as it is named in a handshake.
pub(super) const H2: &[u8] = b"h2";

/// The configuration of one connection. The files are read for each, so that rotated certificates are picked up.
pub(super) fn client_config(tls: &Tls) -> Result<ClientConfig, LockError> {
    let provider = Arc::new(p521::provider());
    let given = match &tls.cacert {
        Some(path) => certificates("the certificates of", path)?,
        None => rustls_native_certs::load_native_certs().certs,
    };
    let mut roots = RootCertStore::empty();
    // The certificates of the machine are authorities, and none of a server.
    let pinned = tls.cacert.as_ref().map_or_else(Vec::new, |_| given.clone());
    roots.add_parsable_certificates(given);
    if roots.is_empty() {
        return Err(no_roots(tls.cacert.as_deref()));
    }
    let webpki =
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
    let verifier = Verifier {
        webpki: webpki.build().map_err(|error| unusable(&error))?,
        pinned,
    };
    let config = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| unusable(&error))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let mut config = match (&tls.cert, &tls.key) {
        (Some(cert), Some(key)) => {
            let (chain, secret) = (certificates("the client certificate", cert)?, secret(key)?);
            check_version(cert, &chain)?;
            let secret = (provider.key_provider.load_private_key(secret)).map_err(|error| {
                bad_key(key, &format!("a key of this kind cannot be used ({error})"))
            })?;
            let own = CertifiedKey::new(chain.clone(), secret);
            match own.keys_match() {
                Ok(()) | Err(Error::InconsistentKeys(InconsistentKeys::Unknown)) => {}
                Err(Error::InconsistentKeys(InconsistentKeys::KeyMismatch)) => {
                    return Err(mismatch(cert, key));
                }
                Err(error) => return Err(bad_certificate(cert, &error.to_string())),
            }
            config.with_client_cert_resolver(Arc::new(
                tokio_rustls::rustls::sign::SingleCertAndKey::from(own),
            ))
        }
        _ => config.with_no_client_auth(),
    };
    // No two connections share a configuration.
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// webpki's rule and one exception: the certificate of the server itself may be given as `--cacert`, also where it says
/// that it is an authority, as `openssl req -x509` has it. etcd's own tools accept it, too. Its dates and its name count.
#[derive(Debug)]
struct Verifier {
    webpki: Arc<WebPkiServerVerifier>,
    /// The certificates of `--cacert`.
    pinned: Vec<CertificateDer<'static>>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verdict = self.webpki.verify_server_cert(
            end_entity,
            intermediates,
            server_name,
            ocsp_response,
            now,
        );
        match verdict {
            Err(error) if is_authority(&error) && self.pinned.contains(end_entity) => {
                check_dates(end_entity, now)?;
                verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
                Ok(ServerCertVerified::assertion())
            }
            verdict => verdict,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.webpki.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.webpki.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.webpki.supported_verify_schemes()
    }
}

/// Whether webpki refuses a certificate only because an authority may not be a server (`CaUsedAsEndEntity`, for which
/// rustls has no name of its own).
fn is_authority(error: &Error) -> bool {
    matches!(error, Error::InvalidCertificate(CertificateError::Other(other))
        if other.0.to_string() == "CaUsedAsEndEntity")
}

fn check_dates(certificate: &CertificateDer<'_>, now: UnixTime) -> Result<(), Error> {
    let parsed = x509_cert::Certificate::from_der(certificate)
        .map_err(|_| Error::InvalidCertificate(CertificateError::BadEncoding))?;
    let validity = parsed.tbs_certificate().validity();
    let now = now.as_secs();
    if now < validity.not_before.to_unix_duration().as_secs() {
        return Err(CertificateError::NotValidYet.into());
    }
    if now > validity.not_after.to_unix_duration().as_secs() {
        return Err(CertificateError::Expired.into());
    }
    Ok(())
}

fn read(path: &Path) -> Result<Vec<u8>, LockError> {
    std::fs::read(path)
        .map_err(|error| bad_file(format!("cannot read '{}': {error}", path.display()), None))
}

/// The certificates of a PEM file; `what` they are, for the message.
fn certificates(what: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>, LockError> {
    let text = read(path)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    let cause = match found {
        Ok(found) if !found.is_empty() => return Ok(found),
        Ok(_) => "there is no certificate in PEM form in it".to_owned(),
        Err(error) => error.to_string(),
    };
    let path = path.display();
    let hint = format!("from DER to PEM: openssl x509 -inform DER -in '{path}' -out '{path}.pem'");
    Err(bad_file(
        format!("cannot use {what} '{path}': {cause}"),
        Some(hint),
    ))
}

/// The private key of a PEM file.
fn secret(path: &Path) -> Result<PrivateKeyDer<'static>, LockError> {
    let text = Zeroizing::new(read(path)?);
    // PKCS #8, and the older form of openssl(1).
    let encrypted = [
        "-----BEGIN ENCRYPTED PRIVATE KEY-----",
        "Proc-Type: 4,ENCRYPTED",
    ];
    let has = |mark: &str| text.windows(mark.len()).any(|part| part == mark.as_bytes());
    if encrypted.into_iter().any(has) {
        let name = path.display();
        return Err(bad_file(
            format!(
                "cannot use the private key '{name}': it is encrypted, and dlock asks for no passphrase"
            ),
            Some(format!(
                "without one, readable for its owner only: (umask 077; openssl pkey -in '{name}' -out '{name}.plain')"
            )),
        ));
    }
    PrivateKeyDer::from_pem_slice(&text).map_err(|error| match error {
        pem::Error::NoItemsFound => bad_key(path, "there is no private key in PEM form in it"),
        error => bad_key(path, &error.to_string()),
    })
}

/// rustls takes X.509 version 3 only, and says nothing of versions.
fn check_version(path: &Path, chain: &[CertificateDer<'_>]) -> Result<(), LockError> {
    let parsed = chain
        .first()
        .and_then(|first| x509_cert::Certificate::from_der(first).ok());
    match parsed.map(|parsed| parsed.tbs_certificate().version()) {
        Some(Version::V1 | Version::V2) => Err(bad_certificate(
            path,
            "it has the form of X.509 version 1, not 3",
        )),
        _ => Ok(()),
    }
}

fn bad_certificate(path: &Path, cause: &str) -> LockError {
    let path = path.display();
    bad_file(
        format!("cannot use the client certificate '{path}': {cause}"),
        Some(format!(
            "a new one: echo extendedKeyUsage=clientAuth >client.ext; openssl x509 -req -in client.csr -extfile client.ext \
             -days 397 -CA ca.pem -CAkey ca.key -CAcreateserial -out '{path}'"
        )),
    )
}

fn bad_key(path: &Path, cause: &str) -> LockError {
    let path = path.display();
    bad_file(
        format!("cannot use the private key '{path}': {cause}"),
        Some(format!(
            "a new one, for which a new certificate is signed: (umask 077; openssl genpkey -algorithm EC \
             -pkeyopt ec_paramgen_curve:P-256 -out '{path}'); openssl req -new -key '{path}' -subj /CN=dlock -out client.csr"
        )),
    )
}

fn mismatch(cert: &Path, key: &Path) -> LockError {
    let (cert, key) = (cert.display(), key.display());
    bad_file(
        format!(
            "cannot use the client certificate '{cert}': the private key '{key}' belongs to another one"
        ),
        Some(format!(
            "of a pair, these print the same: openssl x509 -noout -pubkey -in '{cert}'; openssl pkey -pubout -in '{key}'"
        )),
    )
}

fn no_roots(cacert: Option<&Path>) -> LockError {
    match cacert {
        Some(path) => bad_file(
            format!(
                "cannot use the certificates of '{}': none of them can be read",
                path.display()
            ),
            Some(format!(
                "look at it: openssl x509 -noout -text -in '{}'",
                path.display()
            )),
        ),
        None => bad_file(
            "there are no certificates of authorities on this machine".to_owned(),
            Some(
                "install the package ca-certificates, or give the server's authority with --cacert"
                    .to_owned(),
            ),
        ),
    }
}

fn unusable(error: &dyn std::error::Error) -> LockError {
    bad_file(format!("cannot use TLS: {error}"), None)
}

fn bad_file(cause: String, hint: Option<String>) -> LockError {
    LockError {
        kind: ErrorKind::BadFile,
        cause,
        hint,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// By `openssl req -x509 -addext subjectAltName=DNS:localhost`: an authority, from BEGINS to ENDS.
    const SELF_SIGNED: &[u8] = b"-----BEGIN CERTIFICATE-----
MIIBjTCCATOgAwIBAgIUYH7LJqvzoEFo9c8+4hpAhacT/GUwCgYIKoZIzj0EAwIw
ETEPMA0GA1UEAwwGc2VydmVyMB4XDTI2MTEyOTEwMTAzMFoXDTM2MTEyNjEwMTAz
MFowETEPMA0GA1UEAwwGc2VydmVyMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE
Z1FvsZdJSpXsz9NR/Q1/t0SwGK1/GA2TxbiQfIZzvFzDWARt7UA+O+oaWv43t6Nm
ItH+64TVTOrGa2sAme7dsKNpMGcwHQYDVR0OBBYEFLHfapAZUd/xlRhxfdzyPzWo
AzjwMB8GA1UdIwQYMBaAFLHfapAZUd/xlRhxfdzyPzWoAzjwMA8GA1UdEwEB/wQF
MAMBAf8wFAYDVR0RBA0wC4IJbG9jYWxob3N0MAoGCCqGSM49BAMCA0gAMEUCIQC2
0GzEIEg6l5rz6mU6Y1YYcfTDTsmUZ6wajJdlRrTSAgIgd7TmJV9xAb+uIZ/US11t
55t6qE1DeK8cwvsY2nWx3Rk=
-----END CERTIFICATE-----
";
    const BEGINS: u64 = 1_795_947_030;
    const ENDS: u64 = 2_111_307_030;

    fn verdict(pinned: bool, name: &str, now: u64) -> Result<ServerCertVerified, Error> {
        let own = CertificateDer::from_pem_slice(SELF_SIGNED).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(own.clone()).unwrap();
        let provider = Arc::new(p521::provider());
        let webpki = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider);
        let verifier = Verifier {
            webpki: webpki.build().unwrap(),
            pinned: pinned.then(|| own.clone()).into_iter().collect(),
        };
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let now = UnixTime::since_unix_epoch(Duration::from_secs(now));
        verifier.verify_server_cert(&own, &[], &name, &[], now)
    }

    #[test]
    fn a_given_certificate_of_an_authority_counts_within_its_dates_and_for_its_names() {
        for now in [BEGINS, ENDS] {
            assert!(verdict(true, "localhost", now).is_ok());
        }
        for (pinned, name, now) in [
            (false, "localhost", BEGINS),
            (true, "elsewhere", BEGINS),
            (true, "localhost", BEGINS - 1),
            (true, "localhost", ENDS + 1),
        ] {
            assert!(verdict(pinned, name, now).is_err(), "{name} {now}");
        }
    }

    #[test]
    fn the_dates_of_a_given_certificate_are_checked_also_if_webpki_does_not() {
        let own = CertificateDer::from_pem_slice(SELF_SIGNED).unwrap();
        let check = |now| check_dates(&own, UnixTime::since_unix_epoch(Duration::from_secs(now)));
        assert!(check(BEGINS).is_ok() && check(ENDS).is_ok());
        assert_eq!(
            check(BEGINS - 1).unwrap_err(),
            CertificateError::NotValidYet.into()
        );
        assert_eq!(
            check(ENDS + 1).unwrap_err(),
            CertificateError::Expired.into()
        );
    }
}
