//! ring's algorithms, and signatures of keys on the curve P-521, which ring does not know: `etcd --auto-tls` makes them.
//! It must not know whose signatures they are.

use std::sync::LazyLock;

use p521::ecdsa::signature::hazmat::PrehashVerifier as _;
use p521::ecdsa::{DerSignature, VerifyingKey};
use ring::digest;
use tokio_rustls::rustls::SignatureScheme;
use tokio_rustls::rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, ring as base};
use tokio_rustls::rustls::pki_types::{
    AlgorithmIdentifier, InvalidSignature, SignatureVerificationAlgorithm,
};

/// One hash with the curve.
#[derive(Debug)]
struct Algorithm {
    hash: &'static digest::Algorithm,
    /// `ecdsa-with-SHA256` and its like, of RFC 5758, in DER.
    signature: AlgorithmIdentifier,
}

/// `id-ecPublicKey` with `secp521r1` (RFC 5480), in DER.
const PUBLIC_KEY: AlgorithmIdentifier = AlgorithmIdentifier::from_slice(&[
    0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x23,
]);

static SHA256: Algorithm = Algorithm {
    hash: &digest::SHA256,
    signature: AlgorithmIdentifier::from_slice(&[
        0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02,
    ]),
};
static SHA384: Algorithm = Algorithm {
    hash: &digest::SHA384,
    signature: AlgorithmIdentifier::from_slice(&[
        0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x03,
    ]),
};
static SHA512: Algorithm = Algorithm {
    hash: &digest::SHA512,
    signature: AlgorithmIdentifier::from_slice(&[
        0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x04,
    ]),
};

impl SignatureVerificationAlgorithm for Algorithm {
    fn verify_signature(
        &self,
        public_key: &[u8],
        message: &[u8],
        signature: &[u8],
    ) -> Result<(), InvalidSignature> {
        let key = VerifyingKey::from_sec1_bytes(public_key).map_err(|_| InvalidSignature)?;
        let signature = DerSignature::from_bytes(signature).map_err(|_| InvalidSignature)?;
        let hashed = digest::digest(self.hash, message);
        let verdict = key.verify_prehash(hashed.as_ref(), &signature);
        verdict.map_err(|_| InvalidSignature)
    }

    fn public_key_alg_id(&self) -> AlgorithmIdentifier {
        PUBLIC_KEY
    }

    fn signature_alg_id(&self) -> AlgorithmIdentifier {
        self.signature
    }
}

/// The algorithms of ring and of this file.
pub(super) fn provider() -> CryptoProvider {
    static ALGORITHMS: LazyLock<WebPkiSupportedAlgorithms> = LazyLock::new(with_p521);
    CryptoProvider {
        signature_verification_algorithms: *ALGORITHMS,
        ..base::default_provider()
    }
}

/// Leaks the lists, once per process: rustls wants them for ever.
fn with_p521() -> WebPkiSupportedAlgorithms {
    type One = &'static dyn SignatureVerificationAlgorithm;
    let known = base::default_provider().signature_verification_algorithms;
    let own: [One; 3] = [&SHA256, &SHA384, &SHA512];
    let mut mapping = known.mapping.to_vec();
    for (scheme, algorithms) in &mut mapping {
        // In TLS 1.2 these names say the hash only, and all algorithms are tried.
        let more: One = match scheme {
            SignatureScheme::ECDSA_NISTP256_SHA256 => &SHA256,
            SignatureScheme::ECDSA_NISTP384_SHA384 => &SHA384,
            _ => continue,
        };
        *algorithms = [*algorithms, &[more]].concat().leak();
    }
    mapping.push((
        SignatureScheme::ECDSA_NISTP521_SHA512,
        vec![&SHA512 as One].leak(),
    ));
    WebPkiSupportedAlgorithms {
        all: [known.all, &own].concat().leak(),
        mapping: mapping.leak(),
    }
}
