//! A rebalance storm: boxes come and go in good order, and nothing dies.

use std::time::Duration;

use super::{MOST_CALLEES, System, TICK};
use crate::clock::Moment;
use crate::history::Role;
use crate::plan::Fault;
use crate::random::Random;

/// How long a number of boxes stays as it is.
const HOLD: Duration = Duration::from_secs(3);

impl System {
    /// Down to 1, up to 4, down to 1, and back to as many as there were. Before and after it there is time for what died before to be taken over.
    pub(super) async fn storm(&mut self, fault: Fault) -> anyhow::Result<()> {
        self.settle().await?;
        let mut random = Random::new(fault.choice);
        let began = Moment::now();
        for boxes in [1, MOST_CALLEES, 1, self.settings.callees] {
            self.scale(boxes, &mut random).await?;
            self.pass(HOLD).await?;
        }
        self.pass(self.settings.session).await?;
        self.history.storms.push((began, Moment::now()));
        Ok(())
    }

    async fn scale(&mut self, boxes: u16, random: &mut Random) -> anyhow::Result<()> {
        for at in 0..self.units.len() {
            let unit = &mut self.units[at];
            if unit.id.role == Role::Caller {
                continue;
            }
            if unit.id.index < boxes && unit.is_away() {
                unit.want();
            } else if unit.id.index >= boxes && unit.is_up() {
                unit.leave(&mut self.history);
            } else {
                continue;
            }
            // Sometimes together, sometimes one while the others still share out what the one before had.
            self.pass(Duration::from_millis(random.between(0, 800))).await?;
        }
        while self.units.iter().any(|unit| unit.id.role == Role::Callee && if unit.id.index < boxes { !unit.is_up() } else { !unit.is_away() }) {
            self.pass(TICK).await?;
        }
        Ok(())
    }
}
