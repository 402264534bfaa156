//! Versions of the coordinator's interface (Narayana: 1.0 to 1.3, and 2.0), and what differs between them.

use std::fmt;

use super::excerpt;
use super::status::LraStatus;

/// A version that is spoken here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ApiVersion {
    /// The first: participants can't leave data.
    V1_0,
    /// Participants can leave data.
    V1_1,
    /// Recovery URLs name transactions by their ids.
    V1_2,
    /// As the one before, where this coordinator is concerned.
    V1_3,
    /// An end that takes time is answered with 202.
    V2_0,
}

/// A version that is not spoken here: 417.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("Narayana-LRA-API-version {0:?} is not supported: 1.0, 1.1, 1.2, 1.3 and 2.0 are")]
pub struct UnsupportedVersion(String);

impl ApiVersion {
    /// All of them.
    pub const ALL: &[Self] = &[Self::V1_0, Self::V1_1, Self::V1_2, Self::V1_3, Self::V2_0];

    /// The version that a request names. One that names none comes from a client that was made before there were any: it is answered as clients of 1.x are, and may leave data.
    ///
    /// # Errors
    /// When it names one that is not supported.
    pub fn of_request(header: Option<&str>) -> Result<Self, UnsupportedVersion> {
        let Some(name) = header.map(str::trim).filter(|name| !name.is_empty()) else { return Ok(Self::V1_3) };
        Self::ALL.iter().copied().find(|version| version.name() == name).ok_or_else(|| UnsupportedVersion(excerpt(name)))
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::V1_0 => "1.0",
            Self::V1_1 => "1.1",
            Self::V1_2 => "1.2",
            Self::V1_3 => "1.3",
            Self::V2_0 => "2.0",
        }
    }

    /// Whether a join may leave data. If not, one that does is answered with 412.
    pub fn allows_data(self) -> bool {
        self >= Self::V1_1
    }

    /// Whether recovery URLs are `/recovery/ID/PARTICIPANT`; before, the first segment is the whole URL of the LRA, percent-encoded.
    pub fn recovery_by_id(self) -> bool {
        self >= Self::V1_2
    }

    /// The status code of the answer to close and cancel, where the LRA is in this state when the answer is sent: 200 when it has ended. Otherwise 2.0 tells 202 (with a `Location` at the
    /// status) while it is ending, and 503 when nothing was decided; 1.x always tells 200.
    pub fn end_status_code(self, status: LraStatus) -> u16 {
        match status {
            _ if self < Self::V2_0 || status.is_final() => 200,
            _ if status.is_ending() => 202,
            _ => 503,
        }
    }
}

impl fmt::Display for ApiVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_versions_of_narayana_and_no_other() {
        for version in ApiVersion::ALL {
            assert_eq!(ApiVersion::of_request(Some(version.name())), Ok(*version));
        }
        for bad in ["1", "1.4", "3.0", "2", "v2.0", "2.0.0", "latest"] {
            assert!(ApiVersion::of_request(Some(bad)).unwrap_err().to_string().contains(bad));
        }
    }

    #[test]
    fn a_request_without_a_version_is_of_a_client_that_expects_200() {
        for none in [None, Some(""), Some("  ")] {
            let version = ApiVersion::of_request(none).unwrap();
            assert!(version.allows_data() && version.end_status_code(LraStatus::Closing) == 200);
        }
    }

    #[test]
    fn answers_that_differ() {
        let codes =
            |version: ApiVersion| [LraStatus::Closed, LraStatus::FailedToCancel, LraStatus::Cancelling, LraStatus::Active].map(|s| version.end_status_code(s));
        assert_eq!(codes(ApiVersion::V2_0), [200, 200, 202, 503]);
        assert_eq!(codes(ApiVersion::V1_3), [200; 4]);
        assert_eq!(ApiVersion::ALL.iter().filter(|v| !v.allows_data()).collect::<Vec<_>>(), [&ApiVersion::V1_0]);
        assert!(ApiVersion::V1_2.recovery_by_id() && !ApiVersion::V1_1.recovery_by_id());
    }
}
