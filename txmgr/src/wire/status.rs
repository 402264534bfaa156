//! The names of states, as MicroProfile LRA 2.0 writes them (`LRAStatus`, `ParticipantStatus`).

use std::fmt;
use std::str::FromStr;

use super::excerpt;

/// A text that names no state.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no status {0:?}: they are {1}")]
pub struct UnknownStatus(String, &'static str);

macro_rules! states {
    ($(#[$doc:meta])* $all:ident, $list:literal { $($(#[$says:meta])* $state:ident,)+ }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum $all {
            $($(#[$says])* $state,)+
        }

        impl $all {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$state),+];

            /// Its name on the wire.
            pub fn name(self) -> &'static str {
                match self { $(Self::$state => stringify!($state)),+ }
            }
        }

        impl fmt::Display for $all {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.name())
            }
        }

        impl FromStr for $all {
            type Err = UnknownStatus;

            /// Names are compared with their case, as `Enum.valueOf` does.
            fn from_str(name: &str) -> Result<Self, UnknownStatus> {
                Self::ALL.iter().copied().find(|state| state.name() == name).ok_or_else(|| UnknownStatus(excerpt(name), $list))
            }
        }
    };
}

states! {
    /// The state of an LRA (MicroProfile LRA 2.0, "LRA State Model"): Active → Closing → Closed or FailedToClose; Active → Cancelling → Cancelled or FailedToCancel; and a nested one may go
    /// Closed → Cancelling.
    LraStatus, "Active, Closing, Closed, FailedToClose, Cancelling, Cancelled, FailedToCancel" {
        /// It has not been asked to close or to cancel.
        Active,
        /// Participants are asked to complete.
        Closing,
        /// All have completed.
        Closed,
        /// At least one will never complete.
        FailedToClose,
        /// Participants are asked to compensate.
        Cancelling,
        /// All have compensated.
        Cancelled,
        /// At least one will never compensate.
        FailedToCancel,
    }
}

states! {
    /// The state of a participant (MicroProfile LRA 2.0, "Participant State Model"): Active → Completing → Completed or FailedToComplete; Active → Compensating → Compensated or
    /// FailedToCompensate; and in a nested LRA Completed → Compensating.
    ParticipantStatus, "Active, Completing, Completed, FailedToComplete, Compensating, Compensated, FailedToCompensate" {
        /// It has not been asked to complete or to compensate.
        Active,
        /// It has been asked to complete.
        Completing,
        /// It has completed.
        Completed,
        /// It will never complete.
        FailedToComplete,
        /// It has been asked to compensate.
        Compensating,
        /// It has compensated.
        Compensated,
        /// It will never compensate.
        FailedToCompensate,
    }
}

impl LraStatus {
    /// Whether participants are being asked.
    pub fn is_ending(self) -> bool {
        matches!(self, Self::Closing | Self::Cancelling)
    }

    /// Whether it has ended. A nested LRA that is Closed may still be cancelled by its parent.
    pub fn is_final(self) -> bool {
        !matches!(self, Self::Active | Self::Closing | Self::Cancelling)
    }

    /// Whether it has failed: it stays until an operator forgets it.
    pub fn is_failed(self) -> bool {
        matches!(self, Self::FailedToClose | Self::FailedToCancel)
    }

    /// Whether it was decided to cancel it.
    pub fn is_cancel(self) -> bool {
        matches!(self, Self::Cancelling | Self::Cancelled | Self::FailedToCancel)
    }
}

impl ParticipantStatus {
    /// Whether it has answered for good.
    pub fn is_final(self) -> bool {
        !matches!(self, Self::Active | Self::Completing | Self::Compensating)
    }

    /// Whether it has failed for good.
    pub fn is_failed(self) -> bool {
        matches!(self, Self::FailedToComplete | Self::FailedToCompensate)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_back() {
        for status in LraStatus::ALL {
            assert_eq!(status.name().parse(), Ok(*status));
        }
        for status in ParticipantStatus::ALL {
            assert_eq!(status.name().parse(), Ok(*status));
        }
    }

    #[test]
    fn every_other_name_is_refused_and_the_right_ones_are_said() {
        for bad in ["", "active", "Closed ", "Compensated"] {
            let error = bad.parse::<LraStatus>().unwrap_err().to_string();
            assert!(error.contains("FailedToCancel"), "{error}");
        }
        assert!("Cancelled".parse::<ParticipantStatus>().is_err());
    }
}
