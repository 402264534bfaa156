//! Whether who trusts some authorities takes a certificate for a server, and until when.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio_rustls::rustls::RootCertStore;
use tokio_rustls::rustls::client::WebPkiServerVerifier;
use tokio_rustls::rustls::client::danger::ServerCertVerifier as _;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};

/// The longest that is looked ahead.
const HORIZON: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// Whether the certificate in `chain` (PEM; the first, others are intermediate) is taken for `host` at `time` by who trusts `bundle` (PEM).
///
/// # Errors
/// Why not.
pub fn check(bundle: &str, chain: &str, host: &str, time: SystemTime) -> Result<(), String> {
    let read = |pem: &str, what: &str| -> Result<Vec<CertificateDer<'static>>, String> {
        let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
        let all = all.map_err(|error| format!("{what}: it can't be read: {error}"))?;
        if all.is_empty() { Err(format!("{what}: there is no certificate in it")) } else { Ok(all) }
    };
    let mut roots = RootCertStore::empty();
    for authority in read(bundle, "the CA bundle")? {
        roots.add(authority).map_err(|error| format!("the CA bundle: {error}"))?;
    }
    let shown = read(chain, "the certificate")?;
    let verifier = WebPkiServerVerifier::builder_with_provider(roots.into(), ring::default_provider().into()).build().map_err(|error| error.to_string())?;
    let name = ServerName::try_from(host.to_owned()).map_err(|error| format!("{host}: {error}"))?;
    let now = UnixTime::since_unix_epoch(time.duration_since(UNIX_EPOCH).unwrap_or_default());
    verifier.verify_server_cert(&shown[0], &shown[1..], &name, &[], now).map(|_| ()).map_err(|error| error.to_string())
}

/// Until when that holds, to the second; `None` if it doesn't hold now. At most ten years from now.
pub fn good_until(bundle: &str, chain: &str, host: &str, now: SystemTime) -> Option<SystemTime> {
    check(bundle, chain, host, now).ok()?;
    let (mut good, mut bad) = (0, HORIZON.as_secs());
    while bad - good > 1 {
        let middle = good + (bad - good) / 2;
        if check(bundle, chain, host, now + Duration::from_secs(middle)).is_ok() { good = middle } else { bad = middle }
    }
    Some(now + Duration::from_secs(good))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::certificates::{CERTIFICATE_LIFE, Certificates};

    const HOST: &str = "bluebox-injector.bluebox.svc";

    #[test]
    fn what_is_trusted_and_until_when() {
        let now = UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let all = Certificates::at(None, HOST, now).unwrap();
        let (bundle, shown) = (all.bundle(), all.shown().certificate().to_owned());
        check(&bundle, &shown, HOST, now).unwrap();
        let until = good_until(&bundle, &shown, HOST, now).unwrap();
        assert!((until - CERTIFICATE_LIFE).duration_since(now).unwrap_or_default() <= Duration::from_secs(1), "{until:?}");
        assert_eq!(good_until(&bundle, &shown, HOST, now + CERTIFICATE_LIFE + Duration::from_secs(1)), None);
        let other = Certificates::at(None, HOST, now).unwrap();
        for (bundle, shown, host, says) in [
            (other.bundle().as_str(), shown.as_str(), HOST, "invalid peer certificate"),
            (&bundle, &shown, "elsewhere.svc", "not valid for name"),
            ("", &shown, HOST, "the CA bundle: there is no certificate in it"),
            (&bundle, "hello", HOST, "the certificate: there is no certificate in it"),
        ] {
            let error = check(bundle, shown, host, now).unwrap_err();
            assert!(error.contains(says), "{says}: {error}");
        }
    }
}
