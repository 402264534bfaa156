//! The certificates of the webhook: made and renewed by the injector itself. This is the pure part: what there is and what time it is go in, what there should be comes out.
//!
//! The API server trusts the authorities that the webhook's configuration names (its CA bundle). An authority is named there for a while before the first certificate
//! of it is used, and until it runs out, so that at no time a certificate is shown that the API server doesn't know.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

/// How long an authority is good.
pub const AUTHORITY_LIFE: Duration = Duration::from_secs(365 * 24 * 3600);
/// How long a certificate is.
pub const CERTIFICATE_LIFE: Duration = Duration::from_secs(30 * 24 * 3600);
/// How long a new authority is named before it is used.
pub const SETTLE: Duration = Duration::from_secs(3600);
/// How far clocks may be apart: everything is good from so long before it was made.
const CLOCK_SKEW: Duration = Duration::from_secs(3600);

/// Certificates can't be made.
#[derive(Debug, thiserror::Error)]
#[error("a certificate for {name:?} can't be made: {source}")]
pub struct CertificateError {
    name: String,
    source: rcgen::Error,
}

/// A certificate with its key, and when it is good: seconds since 1970.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signed {
    certificate: String,
    key: String,
    made: u64,
    until: u64,
}

impl std::fmt::Debug for Signed {
    /// Without the key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Signed").field("made", &self.made).field("until", &self.until).finish_non_exhaustive()
    }
}

impl Signed {
    /// The certificate, in PEM.
    pub fn certificate(&self) -> &str {
        &self.certificate
    }

    /// Its key, in PEM.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Until when it is good, in seconds since 1970.
    pub fn until(&self) -> u64 {
        self.until
    }

    fn is_good(&self, now: u64) -> bool {
        (self.made.saturating_sub(CLOCK_SKEW.as_secs())..self.until).contains(&now)
    }

    /// Two thirds of its life are over: the last third is for trying again, should something stand in the way.
    fn is_due(&self, now: u64) -> bool {
        now >= self.made + (self.until - self.made.min(self.until)) / 3 * 2
    }
}

/// All that belongs to a webhook: what every replica of the injector shares, in one Secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Certificates {
    /// The name that the certificate is for.
    name: String,
    /// Authorities that aren't used any more, but whose certificates may still be shown: their certificates, and until when they are good.
    retired: Vec<(String, u64)>,
    /// The authority that signs.
    authority: Signed,
    /// The one that will.
    next: Option<Signed>,
    /// The certificate that is shown.
    shown: Signed,
}

impl Certificates {
    /// What there should be at `now`, for the server `name`, given what there is. The same again, when nothing is due.
    ///
    /// # Errors
    /// When a certificate can't be made: `name` is no DNS name.
    pub fn at(there: Option<Self>, name: &str, now: SystemTime) -> Result<Self, CertificateError> {
        let failed = |source| CertificateError { name: name.to_owned(), source };
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let Some(mut all) = there.filter(|there| there.authority.is_good(now)) else {
            // Nothing there, or nothing that is still good. What was shown may be trusted by nobody now, so there is nothing to wait for.
            let authority = authority(now).map_err(failed)?;
            let shown = certificate(name, &authority, now).map_err(failed)?;
            return Ok(Self { name: name.to_owned(), retired: Vec::new(), authority, next: None, shown });
        };
        all.retired.retain(|(_, until)| *until > now);
        if all.next.as_ref().is_some_and(|next| !next.is_good(now)) {
            all.next = None;
        }
        if all.next.is_none() && all.authority.is_due(now) {
            all.next = Some(authority(now).map_err(failed)?);
        }
        if all.next.as_ref().is_some_and(|next| now >= next.made + SETTLE.as_secs())
            && let Some(next) = all.next.take()
        {
            let former = std::mem::replace(&mut all.authority, next);
            all.retired.push((former.certificate, former.until));
            all.shown = certificate(name, &all.authority, now).map_err(failed)?;
        }
        if all.name != name || !all.shown.is_good(now) || all.shown.is_due(now) {
            name.clone_into(&mut all.name);
            all.shown = certificate(name, &all.authority, now).map_err(failed)?;
        }
        Ok(all)
    }

    /// What the API server has to trust: all authorities, in PEM.
    pub fn bundle(&self) -> String {
        let named = [&self.authority].into_iter().chain(&self.next).map(|authority| authority.certificate.as_str());
        named.chain(self.retired.iter().map(|(certificate, _)| certificate.as_str())).map(|pem| format!("{}\n", pem.trim_end())).collect()
    }

    /// What the webhook shows.
    pub fn shown(&self) -> &Signed {
        &self.shown
    }
}

fn lifetime(params: &mut CertificateParams, now: u64, life: Duration) -> u64 {
    let at = |seconds: u64| OffsetDateTime::from_unix_timestamp(i64::try_from(seconds).unwrap_or(0)).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    let until = now + life.as_secs();
    params.not_before = at(now.saturating_sub(CLOCK_SKEW.as_secs()));
    params.not_after = at(until);
    until
}

fn authority(now: u64) -> Result<Signed, rcgen::Error> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(Vec::new())?;
    // Each has a name of its own: who checks a certificate finds its authority by name.
    params.distinguished_name.push(DnType::CommonName, format!("bluebox-injector-authority-{now}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let until = lifetime(&mut params, now, AUTHORITY_LIFE);
    Ok(Signed { certificate: params.self_signed(&key)?.pem(), key: key.serialize_pem(), made: now, until })
}

fn certificate(name: &str, authority: &Signed, now: u64) -> Result<Signed, rcgen::Error> {
    let issuer = Issuer::from_ca_cert_pem(&authority.certificate, KeyPair::from_pem(&authority.key)?)?;
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(vec![name.to_owned()])?;
    params.distinguished_name.push(DnType::CommonName, "bluebox-injector");
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    // No certificate outlives its authority.
    let life = CERTIFICATE_LIFE.min(Duration::from_secs(authority.until.saturating_sub(now)));
    let until = lifetime(&mut params, now, life);
    Ok(Signed { certificate: params.signed_by(&key, &issuer)?.pem(), key: key.serialize_pem(), made: now, until })
}

#[cfg(test)]
mod tests {
    use tokio_rustls::rustls::RootCertStore;
    use tokio_rustls::rustls::client::WebPkiServerVerifier;
    use tokio_rustls::rustls::client::danger::ServerCertVerifier as _;
    use tokio_rustls::rustls::crypto::ring;
    use tokio_rustls::rustls::pki_types::pem::PemObject as _;
    use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};

    use super::*;

    const NAME: &str = "bluebox-injector.bluebox.svc";
    const HOUR: u64 = 3600;

    fn time(hours: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_800_000_000 + hours * HOUR)
    }

    /// Whether one who trusts `bundle` takes what is shown for `name`, at that hour.
    fn trusted(bundle: &str, shown: &str, name: &str, hours: u64) -> bool {
        let mut roots = RootCertStore::empty();
        for pem in CertificateDer::pem_slice_iter(bundle.as_bytes()) {
            roots.add(pem.unwrap()).unwrap();
        }
        let verifier = WebPkiServerVerifier::builder_with_provider(roots.into(), ring::default_provider().into()).build().unwrap();
        let shown = CertificateDer::from_pem_slice(shown.as_bytes()).unwrap();
        let now = UnixTime::since_unix_epoch(time(hours).duration_since(UNIX_EPOCH).unwrap());
        verifier.verify_server_cert(&shown, &[], &ServerName::try_from(name.to_owned()).unwrap(), &[], now).is_ok()
    }

    #[test]
    fn three_years_of_looking_every_six_hours() {
        let mut all = Certificates::at(None, NAME, time(0)).unwrap();
        let (mut shown, mut authorities) = (1, 1);
        for hours in (6..3 * 365 * 24).step_by(6) {
            let before = all.clone();
            all = Certificates::at(Some(all), NAME, time(hours)).unwrap();
            shown += usize::from(before.shown != all.shown);
            authorities += usize::from(before.authority != all.authority);
            // Each trusts the other: a replica that has looked and one that hasn't yet, an API server that knows the new bundle and one that doesn't.
            for bundle in [&before, &all] {
                for one in [&before, &all] {
                    assert!(trusted(&bundle.bundle(), &one.shown.certificate, NAME, hours), "after {hours} h");
                }
            }
        }
        assert!((50..60).contains(&shown), "{shown}");
        assert_eq!(authorities, 5);
        assert!(all.bundle().matches("BEGIN CERTIFICATE").count() <= 3);
        assert!(!trusted(&all.bundle(), &all.shown.certificate, "other.svc", 3 * 365 * 24 - 1));
    }

    #[test]
    fn nothing_is_done_twice() {
        let first = Certificates::at(None, NAME, time(0)).unwrap();
        assert_eq!(Certificates::at(Some(first.clone()), NAME, time(100)).unwrap(), first);
        let text = serde_json::to_string(&first).unwrap();
        assert_eq!(serde_json::from_str::<Certificates>(&text).unwrap(), first);
        assert!(!format!("{first:?}").contains("PRIVATE KEY"));
    }

    #[test]
    fn what_ran_out_while_nobody_looked_is_made_anew() {
        let first = Certificates::at(None, NAME, time(0)).unwrap();
        let month = Certificates::at(Some(first.clone()), NAME, time(40 * 24)).unwrap();
        assert!(first.authority == month.authority && trusted(&month.bundle(), &month.shown.certificate, NAME, 40 * 24));
        let years = Certificates::at(Some(first.clone()), NAME, time(800 * 24)).unwrap();
        assert!(first.authority != years.authority && trusted(&years.bundle(), &years.shown.certificate, NAME, 800 * 24));
    }

    #[test]
    fn a_clock_that_was_wrong_or_another_name_make_a_new_one() {
        let future = Certificates::at(None, NAME, time(10_000)).unwrap();
        let now = Certificates::at(Some(future), NAME, time(0)).unwrap();
        assert!(trusted(&now.bundle(), &now.shown.certificate, NAME, 0));
        let other = Certificates::at(Some(now.clone()), "other.svc", time(1)).unwrap();
        assert!(other.authority == now.authority && trusted(&now.bundle(), &other.shown.certificate, "other.svc", 1));
        Certificates::at(None, "not a name\u{e9}", time(0)).unwrap_err();
    }
}
