//! Faults on purpose, for tests: named *fail points* on a call's way, at which a process can be made to fail, and *planted bugs*, to see whether the tests find them.
//!
//! All of it is there with the cargo feature `faults` only. Without it the macros are nothing, and so is this module. `bluebox-faulty` is the `bluebox` that has them.
//!
//! - `fail_point!(InRead)`: a point in code that doesn't wait. An error there ends the process, as that of a stage does.
//! - `fail_point!(InRead, return Err(…))`: the same where an error is something that can happen: it is what the second argument does.
//! - `fail_point_async!`: both, in code that waits: a delay holds up the task and not the thread.
//! - `planted!(NoFence)`: whether this bug is planted. `false` without the feature.
//!
//! A process is told by its environment: `BLUEBOX_FAIL_POINT=in.read=kill` names a point and what happens there (`panic`, `error`, `delay`, `kill`), and
//! `BLUEBOX_FAIL_POINT_ARMED` a file: it happens once, to who removes that file. So a test chooses the moment, sees that it has come, and a process that is started again
//! does not fail again. `BLUEBOX_PLANTED_BUG=no-fence` plants a bug.

#[cfg(feature = "faults")]
mod act;
#[cfg(feature = "faults")]
mod list;

#[cfg(feature = "faults")]
pub use act::{fails, fails_later, is_planted, pass, pass_later, plant};
#[cfg(feature = "faults")]
pub use list::{Bug, Point};

/// A fail point; see [`faults`](crate::faults).
#[cfg(feature = "faults")]
#[macro_export]
macro_rules! fail_point {
    ($point:ident) => {
        $crate::faults::pass($crate::faults::Point::$point)
    };
    ($point:ident, $error:expr) => {
        if $crate::faults::fails($crate::faults::Point::$point) {
            $error
        }
    };
}

/// A fail point in code that waits; see [`faults`](crate::faults). `of PLACE: POINT` is the point of this place, if it has one.
#[cfg(feature = "faults")]
#[macro_export]
macro_rules! fail_point_async {
    (of $place:expr, $point:ident, $error:expr) => {
        if let Some(point) = $crate::faults::Point::$point($place)
            && $crate::faults::fails_later(point).await
        {
            $error
        }
    };
    ($point:ident) => {
        $crate::faults::pass_later($crate::faults::Point::$point).await
    };
    ($point:ident, $error:expr) => {
        if $crate::faults::fails_later($crate::faults::Point::$point).await {
            $error
        }
    };
}

/// Whether a bug is planted; see [`faults`](crate::faults).
#[cfg(feature = "faults")]
#[macro_export]
macro_rules! planted {
    ($bug:ident) => {
        $crate::faults::is_planted($crate::faults::Bug::$bug)
    };
}

/// A fail point: nothing, without the feature `faults`.
#[cfg(not(feature = "faults"))]
#[macro_export]
macro_rules! fail_point {
    ($($any:tt)*) => {{}};
}

/// A fail point: nothing, without the feature `faults`.
#[cfg(not(feature = "faults"))]
#[macro_export]
macro_rules! fail_point_async {
    ($($any:tt)*) => {{}};
}

/// Whether a bug is planted: never, without the feature `faults`.
#[cfg(not(feature = "faults"))]
#[macro_export]
macro_rules! planted {
    ($bug:ident) => {
        false
    };
}
