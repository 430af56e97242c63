//! A reader that asks once more after a passing fault: a copy of days must not begin again for one lost answer.
//!
//! Every question behind the plan goes through here, the cursors' included, which go on behind what they returned last.
//! Each has its own tries, in a row; what does not pass within them, or does not pass at all, ends the copy.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use crate::budget::Permit;
use crate::error::{Action, Result};
use crate::model::{Namespace, OpTime};
use crate::retry::Backoff;
use crate::source::{CollectionPlan, Partition, SnapshotCursor, SnapshotReader};

/// How often in a row one question may fail.
const TRIES: u32 = 5;

/// A reader, asked again.
pub(super) struct Persistent(pub(super) Arc<dyn SnapshotReader>);

/// The tries of one question, or of a cursor's until it gives an answer.
struct Tries(Backoff);

impl Tries {
    fn new() -> Self {
        Self(Backoff::new(Duration::from_millis(100), Duration::from_secs(5)))
    }

    /// The answer, if it is one to keep; after a passing fault a pause.
    async fn over<T>(&mut self, answer: Result<T>) -> ControlFlow<Result<T>> {
        match answer {
            Err(error) if error.action() == Action::Rewind && self.0.tries() < TRIES => {
                let pause = self.0.pause();
                tracing::info!(%error, pause_ms = pause.as_millis(), "the copy reads again");
                tokio::time::sleep(pause).await;
                ControlFlow::Continue(())
            }
            Err(error) => ControlFlow::Break(Err(error)),
            Ok(answer) => {
                self.0.reset();
                ControlFlow::Break(Ok(answer))
            }
        }
    }
}

/// Asks until an answer is kept. A macro, since the futures of an async closure that borrows its question are not `Send`.
macro_rules! ask {
    ($tries:expr, $question:expr) => {
        loop {
            let answer = $question.await;
            if let ControlFlow::Break(answer) = $tries.over(answer).await {
                break answer;
            }
        }
    };
}

#[async_trait]
impl SnapshotReader for Persistent {
    async fn collections(&self) -> Result<Vec<CollectionPlan>> {
        let mut tries = Tries::new();
        ask!(tries, self.0.collections())
    }

    async fn partition(&self, plan: &CollectionPlan, partition_bytes: u64) -> Result<Vec<Partition>> {
        let mut tries = Tries::new();
        ask!(tries, self.0.partition(plan, partition_bytes))
    }

    async fn place(&self, plan: &CollectionPlan) -> Result<Option<Namespace>> {
        let mut tries = Tries::new();
        ask!(tries, self.0.place(plan))
    }

    async fn moved(&self, plan: &CollectionPlan) -> Result<Vec<Partition>> {
        let mut tries = Tries::new();
        ask!(tries, self.0.moved(plan))
    }

    async fn open(&self, partition: &Partition, after: OpTime) -> Result<Box<dyn SnapshotCursor>> {
        let mut tries = Tries::new();
        let cursor = ask!(tries, self.0.open(partition, after))?;
        Ok(Box::new(PersistentCursor { cursor, tries }))
    }

    async fn indexes(&self, namespace: &Namespace) -> Result<Vec<Bytes>> {
        let mut tries = Tries::new();
        ask!(tries, self.0.indexes(namespace))
    }
}

struct PersistentCursor {
    cursor: Box<dyn SnapshotCursor>,
    tries: Tries,
}

#[async_trait]
impl SnapshotCursor for PersistentCursor {
    async fn next(&mut self) -> Result<Option<(Bytes, Permit)>> {
        ask!(self.tries, self.cursor.next())
    }

    fn moved(&self) -> bool {
        self.cursor.moved()
    }
}
