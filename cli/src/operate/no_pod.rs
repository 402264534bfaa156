//! In place of `pod` in the programs of the images: what they run asks no API server, and a client for that would be a fourth of what an image may take.

use std::convert::Infallible;
use std::fmt;

use anyhow::bail;

use super::door::{Connected, Wanted};
use crate::kubernetes::cluster::ClusterOptions;

/// There is none.
#[derive(Clone)]
pub(crate) struct PodDoor(Infallible);

impl fmt::Display for PodDoor {
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {}
    }
}

impl PodDoor {
    /// Says how else.
    pub(super) async fn look_for(_: &ClusterOptions, _: Option<&str>, wanted: &Wanted) -> anyhow::Result<Self> {
        bail!(
            "the program in the image asks no cluster for {}: name what runs beside it (--watch, --proxy, --brokers), or ask from outside, with the whole of `bluebox`",
            wanted.what
        )
    }

    pub(super) fn port(&self) -> u16 {
        match self.0 {}
    }

    pub(super) async fn connect(&self) -> anyhow::Result<Connected> {
        match self.0 {}
    }
}
