//! ring's algorithms and keys, and those on the curve P-521, which ring does not know: `etcd --auto-tls` uses it.
//! It must not know whose signatures they are.

use std::fmt;
use std::sync::{Arc, LazyLock};

use p521::SecretKey;
use p521::ecdsa::signature::hazmat::{PrehashSigner as _, PrehashVerifier as _};
use p521::ecdsa::{DerSignature, VerifyingKey};
use p521::pkcs8::DecodePrivateKey as _;
use ring::digest;
use tokio_rustls::rustls::crypto::{
    CryptoProvider, KeyProvider, WebPkiSupportedAlgorithms, ring as base,
};
use tokio_rustls::rustls::pki_types::{
    AlgorithmIdentifier, InvalidSignature, PrivateKeyDer, SignatureVerificationAlgorithm,
    SubjectPublicKeyInfoDer,
};
use tokio_rustls::rustls::sign::{Signer, SigningKey};
use tokio_rustls::rustls::{Error, SignatureAlgorithm, SignatureScheme};

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
        key_provider: &Keys,
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

/// ring's private keys, and those on P-521.
#[derive(Debug)]
struct Keys;

impl KeyProvider for Keys {
    fn load_private_key(&self, key: PrivateKeyDer<'static>) -> Result<Arc<dyn SigningKey>, Error> {
        let own = match &key {
            PrivateKeyDer::Pkcs8(key) => SecretKey::from_pkcs8_der(key.secret_pkcs8_der()).ok(),
            PrivateKeyDer::Sec1(key) => SecretKey::from_sec1_der(key.secret_sec1_der()).ok(),
            _ => None,
        };
        match own {
            Some(own) => Ok(Arc::new(Key(p521::ecdsa::SigningKey::from(own)))),
            None => base::default_provider().key_provider.load_private_key(key),
        }
    }
}

/// A private key on P-521.
#[derive(Clone)]
struct Key(p521::ecdsa::SigningKey);

/// The key must not appear in a log.
impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a private key on P-521")
    }
}

impl SigningKey for Key {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        let known = offered.contains(&SignatureScheme::ECDSA_NISTP521_SHA512);
        known.then(|| Box::new(self.clone()) as Box<dyn Signer>)
    }

    fn public_key(&self) -> Option<SubjectPublicKeyInfoDer<'_>> {
        let point = self.0.verifying_key().to_sec1_point(false);
        // RFC 5280: the two parts, the algorithm, and a bit string without unused bits.
        let parts: [&[u8]; 4] = [
            &[0x30, 0x81, 0x9b, 0x30, 0x10],
            PUBLIC_KEY.as_ref(),
            &[0x03, 0x81, 0x86, 0x00],
            point.as_bytes(),
        ];
        Some(parts.concat().into())
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        SignatureAlgorithm::ECDSA
    }
}

impl Signer for Key {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, Error> {
        let hashed = digest::digest(&digest::SHA512, message);
        let signature: DerSignature = (self.0.sign_prehash(hashed.as_ref()))
            .map_err(|error| Error::General(error.to_string()))?;
        Ok(signature.as_bytes().to_vec())
    }

    fn scheme(&self) -> SignatureScheme {
        SignatureScheme::ECDSA_NISTP521_SHA512
    }
}
