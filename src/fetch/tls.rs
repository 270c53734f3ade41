//! TLS for `https://`: which authorities are trusted, and at what time.

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, DigitallySignedStruct, SignatureScheme};

use qx_release::trust::clock::Clock;

/// The system's bundle, on Alpine and on most others.
pub(super) const CA_FILES: [&str; 3] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/ssl/cert.pem",
    "/etc/pki/tls/certs/ca-bundle.crt",
];
/// As many certificates as a chain has.
const CHAIN: usize = 8;

/// How a TLS client is to be set up that trusts the authorities in `ca_file`, or the system's. The error is one sentence.
pub(super) fn config(ca_file: Option<&Path>, clock: Clock) -> Result<rustls::ClientConfig, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let inner = WebPkiServerVerifier::builder_with_provider(
        Arc::new(authorities(ca_file)?),
        provider.clone(),
    )
    .build()
    .map_err(|e| e.to_string())?;
    let verifier = Verifier { inner, clock };
    Ok(rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth())
}

fn authorities(ca_file: Option<&Path>) -> Result<rustls::RootCertStore, String> {
    let system = || CA_FILES.map(Path::new).into_iter().find(|p| p.exists());
    let Some(path) = ca_file.or_else(system) else {
        return Err(format!(
            "no certificate authorities: none of {} exists",
            CA_FILES.join(", ")
        ));
    };
    let unreadable = |why: &dyn fmt::Display| {
        let path = path.display();
        format!("reading the certificate authorities in {path}: {why}")
    };
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(path).map_err(|e| unreadable(&e))? {
        let certificate = certificate.map_err(|e| unreadable(&e))?;
        // Bundles hold ones that cannot be used; trust in the others does not depend on them.
        roots.add_parsable_certificates([certificate]);
    }
    if roots.is_empty() {
        return Err(unreadable(&"it contains none"));
    }
    Ok(roots)
}

/// What to do about an error of the library, in one sentence; it says itself what is the matter, in its own terms.
pub(super) fn advice(error: &io::Error) -> Option<&'static str> {
    let error = error.get_ref()?.downcast_ref::<rustls::Error>()?;
    Some(match error {
        rustls::Error::InvalidCertificate(why) => match why {
            CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                "add the certificate of the authority that issued it to the file that ca_file names"
            }
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                "renew the server's certificate, or set this appliance's clock"
            }
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                "set this appliance's clock"
            }
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                "use a name in the URL that the server's certificate is for"
            }
            _ => return None,
        },
        rustls::Error::InvalidMessage(_) => {
            "the server does not speak TLS there: is it http://, or another port?"
        }
        rustls::Error::PeerIncompatible(_) => "the server must offer TLS 1.2 or 1.3",
        _ => return None,
    })
}

/// The library's verifier, asked about the time of our [`Clock`] and not the system's.
///
/// With a clock that is not trusted the latest trusted time counts: a certificate that expired before it is refused. One
/// that is not valid yet may be valid at the true time, and passes if it would at the start of its validity.
#[derive(Debug)]
struct Verifier {
    inner: Arc<WebPkiServerVerifier>,
    clock: Clock,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        _system_time: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let mut now = unix_time(self.clock.now());
        let mut tries = CHAIN;
        loop {
            let verified = self.inner.verify_server_cert(
                end_entity,
                intermediates,
                server_name,
                ocsp_response,
                now,
            );
            match verified {
                Err(rustls::Error::InvalidCertificate(CertificateError::NotValidYetContext {
                    not_before,
                    ..
                })) if !self.clock.is_believed() && not_before > now && tries > 0 => {
                    now = not_before;
                    tries -= 1;
                }
                verified => return verified,
            }
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

fn unix_time(time: SystemTime) -> UnixTime {
    UnixTime::since_unix_epoch(time.duration_since(UNIX_EPOCH).unwrap_or_default())
}
