//! The numbers of words. A number is for good; 0 is none of them, so that what is not there is not taken for the first.

use super::Unreadable;
use crate::callback::Phase;
use crate::saga::StepStatus;
use crate::wire::status::{LraStatus, ParticipantStatus};

/// A word that has a number in records.
pub(super) trait Word: Copy + PartialEq + 'static {
    /// All of them.
    const WORDS: &[Self];

    /// Its number.
    fn number(self) -> u32;

    /// The one with this number.
    fn numbered(number: u32) -> Result<Self, Unreadable> {
        Self::WORDS.iter().copied().find(|word| word.number() == number).ok_or(Unreadable("a state that this version does not know"))
    }
}

impl Word for LraStatus {
    const WORDS: &[Self] = Self::ALL;

    fn number(self) -> u32 {
        match self {
            Self::Active => 1,
            Self::Closing => 2,
            Self::Closed => 3,
            Self::FailedToClose => 4,
            Self::Cancelling => 5,
            Self::Cancelled => 6,
            Self::FailedToCancel => 7,
        }
    }
}

impl Word for ParticipantStatus {
    const WORDS: &[Self] = Self::ALL;

    fn number(self) -> u32 {
        match self {
            Self::Active => 1,
            Self::Completing => 2,
            Self::Completed => 3,
            Self::FailedToComplete => 4,
            Self::Compensating => 5,
            Self::Compensated => 6,
            Self::FailedToCompensate => 7,
        }
    }
}

impl Word for StepStatus {
    const WORDS: &[Self] = Self::ALL;

    fn number(self) -> u32 {
        match self {
            Self::Waiting => 1,
            Self::Running => 2,
            Self::Done => 3,
            Self::Refused => 4,
            Self::Unknown => 5,
            Self::NeverRan => 6,
            Self::Undoing => 7,
            Self::Undone => 8,
            Self::FailedToUndo => 9,
        }
    }
}

impl Word for Phase {
    const WORDS: &[Self] = Self::ALL;

    fn number(self) -> u32 {
        match self {
            Self::Enlist => 1,
            Self::Complete => 2,
            Self::Compensate => 3,
            Self::Status => 4,
            Self::Forget => 5,
            Self::After => 6,
            Self::Action => 7,
            Self::Undo => 8,
        }
    }
}
