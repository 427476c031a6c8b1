//! Signatures as `cosign sign --key` makes them (sigstore's `SIGNATURE_SPEC`): beside the artifact with digest `sha256:H` the tag `sha256-H.sig` names an
//! image whose layers are payloads, each with its signature in an annotation. A payload says which digest was signed.

use std::{fs, io, path::Path, sync::Arc};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use penstock_blob::Digest;
use penstock_fetcher::{Descriptor, Fetcher, Platform, Reference, ResolveError};
use ring::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use serde::Deserialize;

use crate::lent::Lent;

/// The media type of a payload.
const PAYLOAD_TYPE: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
/// The annotation that holds the signature of a payload, in base64.
const SIGNATURE: &str = "dev.cosignproject.cosign/signature";
/// What a payload says it is.
const PAYLOAD_KIND: &str = "cosign container image signature";
/// Largest payload read, in bytes: they have some 300.
const MAX_PAYLOAD_BYTES: u64 = 64 << 10;
/// Most signatures of one artifact that are looked at.
const MAX_SIGNATURES: usize = 16;
/// Largest key file read, in bytes.
const MAX_KEY_BYTES: usize = 16 << 10;
/// What a public key of ECDSA over P-256 begins with as a `SubjectPublicKeyInfo` (RFC 5480); the uncompressed point follows.
const P256: &[u8] = &[
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce,
    0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];
/// Bytes of an uncompressed point of P-256.
const POINT_BYTES: usize = 65;

/// Somebody whose signature is believed, by the public key.
#[derive(Debug, Clone)]
pub(crate) struct Signer {
    point: Vec<u8>,
}

#[derive(Deserialize)]
struct Payload {
    critical: Critical,
}

#[derive(Deserialize)]
struct Critical {
    image: SignedImage,
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct SignedImage {
    docker_manifest_digest: Digest,
}

impl Signer {
    /// Reads a public key as `cosign generate-key-pair` writes it (`cosign.pub`): PEM of an ECDSA key over P-256.
    ///
    /// # Errors
    /// What the system says, or that the file holds no such key.
    pub(crate) fn read(path: &Path) -> io::Result<Self> {
        let text = fs::read_to_string(path)?;
        let wrong = || io::Error::new(io::ErrorKind::InvalidData, "it is no PEM file of an ECDSA P-256 public key");
        Self::parse(&text).ok_or_else(wrong)
    }

    fn parse(text: &str) -> Option<Self> {
        let text = (text.len() <= MAX_KEY_BYTES).then_some(text)?;
        let body = text.split_once("-----BEGIN PUBLIC KEY-----")?.1.split_once("-----END PUBLIC KEY-----")?.0;
        let der = STANDARD.decode(body.split_ascii_whitespace().collect::<String>()).ok()?;
        let point = der.strip_prefix(P256).filter(|point| point.len() == POINT_BYTES && point.first() == Some(&4))?;
        Some(Self { point: point.to_vec() })
    }

    /// Whether this one signed the artifact with digest `artifact` of the repository of `reference`; why not.
    pub(super) async fn check(
        &self,
        (fetcher, platform): (&Arc<Fetcher>, &Platform),
        reference: &Reference,
        artifact: Digest,
    ) -> Result<(), String> {
        let tag = format!("{}/{}:sha256-{}.sig", reference.registry(), reference.repository(), artifact.to_hex());
        let tag: Reference = tag.parse().map_err(|error| format!("{tag:?} is no reference: {error}"))?;
        let signatures = match fetcher.resolve(&tag, platform).await {
            Ok(signatures) => signatures,
            Err(ResolveError::NotFound { .. }) => return Err("nobody signed it".to_owned()),
            Err(error) => return Err(format!("its signature cannot be read: {error}")),
        };
        for layer in signatures.layers.iter().filter(|layer| layer.media_type == PAYLOAD_TYPE).take(MAX_SIGNATURES) {
            let Some(payload) = payload(fetcher, &signatures.reference, layer).await? else { continue };
            let signature = layer.annotations.get(SIGNATURE).and_then(|text| STANDARD.decode(text).ok());
            if signature.is_some_and(|signature| self.has_signed(&payload, &signature, artifact)) {
                return Ok(());
            }
        }
        Err("it is not signed by the key of layers.key".to_owned())
    }

    /// Whether the signature is this one's, of a payload that names the artifact. Pure.
    fn has_signed(&self, payload: &[u8], signature: &[u8], artifact: Digest) -> bool {
        let key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, &self.point);
        let said: Result<Payload, _> = serde_json::from_slice(payload);
        key.verify(payload, signature).is_ok()
            && said.is_ok_and(|Payload { critical }| {
                critical.kind == PAYLOAD_KIND && critical.image.docker_manifest_digest == artifact
            })
    }
}

/// The bytes of a payload; `None` when it is longer than any is.
async fn payload(
    fetcher: &Arc<Fetcher>,
    reference: &Reference,
    layer: &Descriptor,
) -> Result<Option<bytes::Bytes>, String> {
    let blob = layer.blob();
    let Some(all) = blob.all().filter(|all| all.len() <= MAX_PAYLOAD_BYTES) else { return Ok(None) };
    let read = Lent::new(fetcher, blob, reference).read(&**fetcher, all).await;
    read.map(Some).map_err(|error| format!("its signature cannot be read: {error}"))
}

#[cfg(test)]
mod tests {
    use ring::{
        rand::SystemRandom,
        signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _},
    };

    use super::*;

    fn pair() -> (EcdsaKeyPair, String) {
        let random = SystemRandom::new();
        let key = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &random).unwrap();
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, key.as_ref(), &random).unwrap();
        let der = [P256, key.public_key().as_ref()].concat();
        let pem = format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", STANDARD.encode(der));
        (key, pem)
    }

    fn payload(kind: &str, artifact: Digest) -> String {
        format!(
            r#"{{"critical":{{"identity":{{"docker-reference":"r.example/a"}},"image":{{"docker-manifest-digest":"{artifact}"}},"type":"{kind}"}},"optional":null}}"#
        )
    }

    #[test]
    fn only_the_right_key_over_the_right_artifact_counts() {
        let ((key, pem), (_, other)) = (pair(), pair());
        let (signer, stranger) = (Signer::parse(&pem).unwrap(), Signer::parse(&other).unwrap());
        let artifact = Digest::of(b"artifact");
        let sign = |text: &str| key.sign(&SystemRandom::new(), text.as_bytes()).unwrap();
        let text = payload(PAYLOAD_KIND, artifact);
        let signature = sign(&text);
        assert!(signer.has_signed(text.as_bytes(), signature.as_ref(), artifact));
        assert!(!stranger.has_signed(text.as_bytes(), signature.as_ref(), artifact));
        assert!(!signer.has_signed(text.as_bytes(), signature.as_ref(), Digest::of(b"another")));
        assert!(!signer.has_signed(b"{}", sign("{}").as_ref(), artifact));
        let of_another_kind = payload("something else", artifact);
        assert!(!signer.has_signed(of_another_kind.as_bytes(), sign(&of_another_kind).as_ref(), artifact));
        for at in 0..signature.as_ref().len() {
            let mut wrong = signature.as_ref().to_vec();
            wrong[at] ^= 1;
            assert!(!signer.has_signed(text.as_bytes(), &wrong, artifact), "byte {at}");
        }
    }

    #[test]
    fn what_is_no_key_is_refused() {
        let (_, pem) = pair();
        for wrong in ["", "-----BEGIN PUBLIC KEY-----", &pem.replace("PUBLIC", "PRIVATE"), &pem.replace("MFkw", "MFkx")]
        {
            assert!(Signer::parse(wrong).is_none(), "{wrong}");
        }
    }
}
