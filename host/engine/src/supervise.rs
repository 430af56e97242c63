//! The only place that starts tasks: each has a name and an owner that joins it.
//!
//! A supervisor cancels its tasks when it is dropped, so that a failed start leaves nothing behind. A task that
//! panics is reported as a bug of that task, by name; it never disappears silently.

use std::future::Future;
use std::time::Duration;

use tokio::task::{AbortHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use crate::error::{Error, Kind, Result, Side};

/// Runs `work` on a thread where it may take its time, and waits for it.
///
/// # Errors
/// `Bug` when the work panics.
pub async fn off_thread<T: Send + 'static>(name: &'static str, work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|e| Error::new(Side::Internal, Kind::Bug, format!("{name} panicked")).caused_by(e))
}

/// Owns named tasks.
#[derive(Debug, Default)]
pub struct Supervisor {
    tasks: JoinSet<(&'static str, Result<()>)>,
    names: Vec<(tokio::task::Id, &'static str, AbortHandle)>,
    cancel: CancellationToken,
}

impl Supervisor {
    /// A supervisor whose token is a child of `parent`: cancelling the parent asks every task to end.
    #[must_use]
    pub fn new(parent: &CancellationToken) -> Self {
        Self { tasks: JoinSet::new(), names: Vec::new(), cancel: parent.child_token() }
    }

    /// The token that asks this supervisor's tasks to end.
    #[must_use]
    pub fn token(&self) -> CancellationToken {
        self.cancel.clone()
    }

    /// Starts a task. Its error, or its panic, comes out of [`Supervisor::next_end`].
    pub fn spawn(&mut self, name: &'static str, task: impl Future<Output = Result<()>> + Send + 'static) {
        let handle = self.tasks.spawn(async move { (name, task.await) });
        self.names.push((handle.id(), name, handle));
    }

    /// Starts a task on a thread of its own, for work that must not run inside the pipeline's poll (plugins).
    pub fn spawn_blocking(&mut self, name: &'static str, task: impl FnOnce() -> Result<()> + Send + 'static) {
        let handle = self.tasks.spawn_blocking(move || (name, task()));
        self.names.push((handle.id(), name, handle));
    }

    /// Waits for the next task to end and says which one and how; `None` when all have ended.
    pub async fn next_end(&mut self) -> Option<(&'static str, Result<()>)> {
        let ended = self.tasks.join_next_with_id().await?;
        Some(match ended {
            Ok((id, (name, result))) => {
                self.forget(id);
                (name, result)
            }
            Err(join_error) => {
                let name = self.forget(join_error.id()).unwrap_or("unnamed");
                let result = if join_error.is_cancelled() {
                    Ok(())
                } else {
                    Err(Error::new(Side::Internal, Kind::Bug, format!("task {name} panicked")).caused_by(join_error))
                };
                (name, result)
            }
        })
    }

    fn forget(&mut self, id: tokio::task::Id) -> Option<&'static str> {
        let at = self.names.iter().position(|(known, _, _)| *known == id)?;
        Some(self.names.swap_remove(at).1)
    }

    /// Asks all tasks to end and waits up to `deadline` for them; names the late ones every five seconds and aborts
    /// what is left. Returns the first error among them.
    pub async fn shutdown(mut self, deadline: Duration) -> Result<()> {
        self.cancel.cancel();
        let give_up = tokio::time::Instant::now() + deadline;
        let mut first_error = Ok(());
        loop {
            let notice = (tokio::time::Instant::now() + Duration::from_secs(5)).min(give_up);
            match tokio::time::timeout_at(notice, self.next_end()).await {
                Ok(None) => return first_error,
                Ok(Some((name, Err(error)))) => {
                    if first_error.is_ok() {
                        first_error = Err(error.context(name));
                    }
                }
                Ok(Some((_, Ok(())))) => {}
                Err(_) => {
                    let late: Vec<_> = self.names.iter().map(|(_, name, _)| *name).collect();
                    tracing::warn!(tasks = ?late, "still waiting for tasks to end");
                    if tokio::time::Instant::now() >= give_up {
                        self.tasks.shutdown().await;
                        return first_error;
                    }
                }
            }
        }
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        self.cancel.cancel();
        self.tasks.abort_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_is_a_named_bug() {
        let mut tasks = Supervisor::new(&CancellationToken::new());
        tasks.spawn("lane 3", async { panic!("boom") });
        let (name, result) = tasks.next_end().await.unwrap();
        assert_eq!(name, "lane 3");
        assert_eq!(result.unwrap_err().kind(), Kind::Bug);
    }

    #[tokio::test]
    async fn shutdown_cancels_and_joins() {
        let mut tasks = Supervisor::new(&CancellationToken::new());
        let token = tasks.token();
        tasks.spawn("waiter", async move {
            token.cancelled().await;
            Ok(())
        });
        tasks.shutdown(Duration::from_secs(5)).await.unwrap();
    }
}
