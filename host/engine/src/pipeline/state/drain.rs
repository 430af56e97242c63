//! The shutdown as the state machine sees it: what is still written, and what is left to the next start.
//!
//! The source has stopped, so what waits for more of it can never go on in this run: writes that are parked until the
//! overlap mark, DDL that is put off until then, and a copy over the filter's border, which takes as long as it takes.
//! Those stay unacknowledged, the position stands before them, and the next start meets them again. Everything else
//! runs dry as it always does; nothing here waits or gives up a write.

use super::fence::{FenceId, Phase, Purpose};
use super::{Core, bug};
use crate::error::Result;
use crate::model::Ddl;
use crate::schedule::Lane;

/// What a shutdown leaves to the next start: the position stands before all of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Left {
    /// Documents that collide on unique indexes until the overlap is over.
    pub parked: usize,
    /// DDL that waits for the end of the overlap.
    pub postponed: usize,
    /// Copies over the filter's border.
    pub copies: usize,
    /// Changes behind those copies.
    pub held: usize,
}

impl Left {
    /// Whether everything was written.
    #[must_use]
    pub fn is_nothing(self) -> bool {
        self == Self::default()
    }
}

/// What was handed out and has not come back, by the words in which the log says it.
const OUT_DDL: &str = "a DDL";
const OUT_SETTLE: &str = "a settlement of unique keys";
const OUT_MARK: &str = "the indexes of the overlap mark";
const OUT_WHOLE: &str = "a transaction written as one";

impl Core {
    /// No more than what is on its way will come: what was taken is written, and nothing long is begun any more.
    pub fn drain(&mut self) {
        self.draining = true;
    }

    /// A copy over the filter's border was given up for the shutdown: it and what is behind it stay unacknowledged.
    ///
    /// # Errors
    /// `Bug` for an unknown fence.
    pub fn given_up(&mut self, id: FenceId) -> Result<()> {
        let fence = self.fences.iter_mut().find(|fence| fence.id == id).ok_or_else(|| bug("unknown fence".into()))?;
        fence.phase = Phase::Left;
        Ok(())
    }

    /// Whether something was handed out that has not come back. What waits then, waits for a later run.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        self.lanes.iter().any(Lane::is_busy) || self.fences.iter().any(|fence| fence.phase.is_out())
    }

    /// Lanes and fences that were handed out and have not come back, for the log.
    #[must_use]
    pub fn outstanding(&self) -> Vec<String> {
        let busy = self.lanes.iter().filter(|lane| lane.is_busy()).count();
        let lanes = (busy > 0).then(|| format!("writes on {busy} lanes"));
        let fences = self.fences.iter().filter(|fence| fence.phase.is_out()).map(|fence| {
            let settling = fence.phase == Phase::Settling;
            match fence.purpose {
                _ if settling => OUT_SETTLE,
                Purpose::Ddl { .. } => OUT_DDL,
                Purpose::Settle => OUT_SETTLE,
                Purpose::Mark => OUT_MARK,
                Purpose::Whole(_) => OUT_WHOLE,
            }
            .to_owned()
        });
        lanes.into_iter().chain(fences).collect()
    }

    /// What waits for a later run. Only a core that drains and is not busy leaves it.
    #[must_use]
    pub fn left(&self) -> Left {
        Left {
            parked: self.parked.documents(),
            postponed: self.postponed.len(),
            copies: self.fences.iter().filter(|fence| fence.phase == Phase::Left).count(),
            held: self.held.count(),
        }
    }

    /// A shutdown begins no copy over the border: whether this fence is one that is left to the next start.
    pub(super) fn leaves(&mut self, at: usize) -> bool {
        let Some(fence) = self.fences.get_mut(at).filter(|_| self.draining) else {
            return false;
        };
        let Purpose::Ddl { change: Some(change), .. } = &fence.purpose else {
            return false;
        };
        let is_copy = matches!(change.ddl.as_deref(), Some(Ddl::CopyIn { .. }));
        if is_copy {
            fence.phase = Phase::Left;
        }
        is_copy
    }
}
