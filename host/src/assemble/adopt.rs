//! Takes a target over that this job has not copied, before incremental begins on it.
//!
//! Drops and renames since the start may be done on the target or not: the sink finds out (`mongodb/sink/adopted.rs`), and
//! is given what the source has logged under the names that the plugins make of them. Names that several collections of
//! the source go to are left out, since no command is executed about such as a whole. Nothing here writes to the target:
//! what is found out goes into the store, as identity pairs.

use std::collections::{HashMap, HashSet};

use oplogue_connectors::mongodb::sink::{Move, Moved};
use oplogue_engine::checkpoint::Stage;
use oplogue_engine::config::checked::FetchMethod;
use oplogue_engine::error::{Error, Kind, Result, Side};
use oplogue_engine::model::{Namespace, OpTime, Position};
use oplogue_engine::plugin::PluginChain as _;
use oplogue_engine::source::majority_has;

use super::Job;

/// How often the oplog is looked through.
const READS_MAX: usize = 5;

impl Job {
    /// Looks through the moves since `position`, once in the life of a job that has not copied its target. Where DDL is not
    /// replayed nothing is to be found out.
    pub(super) async fn adopt(&self, position: &Position) -> Result<()> {
        if !self.config.filter.ddl_enable {
            return Ok(());
        }
        let is_exact = self.config.checkpoint.start_is_exact;
        let sink = self.sink(Stage::Incremental, None).await?;
        let source = self.source();
        let start = source.resolve(position).await?.time();
        if sink.knows_its_target(start).await? {
            return Ok(());
        }
        if start.secs > 1 && !source.window().await?.oldest.begins_by(start) {
            // The source has no entry of that time any more, which is for its opening to say.
            return Ok(());
        }
        let until = if is_exact {
            // Whoever stored this position had applied the entry that stands there.
            start
        } else {
            let written = source.written().await?;
            let waits = || tracing::info!(until = %written, "waiting until the majority of the source has all of it");
            majority_has(&*source, written, waits).await?;
            written
        };
        let moves = match self.moves(start, until).await {
            Err(error) if error.kind() == Kind::Unauthorized && is_exact => Vec::new(),
            Err(error)
                if error.kind() == Kind::Unauthorized && self.config.incr.fetch_method == FetchMethod::ChangeStream =>
            {
                let text = "whether the target has seen drops and renames since the start stands in the source's oplog: \
                            give the source's user `read` on `local`, or, if the target has seen none of those behind it, say \
                            checkpoint.start_is_exact = true";
                return Err(Error::new(Side::Config, Kind::Misconfigured, text).caused_by(error));
            }
            moves => moves?,
        };
        let mut names = Names::default();
        for plan in self.reader().collections().await? {
            names.route(self, &plan.namespace)?;
        }
        let mut routed = Vec::with_capacity(moves.len());
        for one in moves {
            if let Some(what) = names.routed(self, one.what)? {
                routed.push(Move { what, ..one });
            }
        }
        routed.retain(|one| names.are_of_one(&one.what));
        sink.adopt(start, &routed, is_exact).await
    }

    /// While the server cuts its oplog off, a reading from the oldest entry may be overtaken.
    async fn moves(&self, from: OpTime, until: OpTime) -> Result<Vec<Move>> {
        let originals = self.servers.originals();
        for _ in 1..READS_MAX {
            match originals.moves(from, until).await {
                Err(error) if matches!(error.kind(), Kind::HistoryLost | Kind::CursorLost) => {
                    tracing::info!(%error, "looking for drops and renames once more");
                }
                found => return found,
            }
        }
        originals.moves(from, until).await
    }
}

/// The names of the source that go to each name of the target.
#[derive(Default)]
struct Names(HashMap<Namespace, HashSet<Namespace>>);

impl Names {
    /// The target's name of a collection; `None` when it is outside of the filter.
    fn route(&mut self, job: &Job, name: &Namespace) -> Result<Option<Namespace>> {
        let target = job.chain.route(job.namespaces.intern(name.as_str()))?;
        let target = target.map(|target| job.namespaces.name(target));
        if let Some(target) = &target {
            self.0.entry(target.clone()).or_default().insert(name.clone());
        }
        Ok(target)
    }

    /// A move under the target's names; `None` when it is outside of the filter.
    fn routed(&mut self, job: &Job, what: Moved) -> Result<Option<Moved>> {
        Ok(match what {
            Moved::Came { name, .. } => {
                let routed = self.route(job, &name)?;
                routed.map(|name| Moved::Came { name, replaced: None, over_border: false })
            }
            Moved::Went(name) => self.route(job, &name)?.map(Moved::Went),
            Moved::Renamed { from, to, replaced } => match (self.route(job, &from)?, self.route(job, &to)?) {
                (Some(from), Some(to)) => Some(Moved::Renamed { from, to, replaced }),
                (Some(from), None) => Some(Moved::Went(from)),
                // It is copied when its turn comes, whatever stands there.
                (None, Some(name)) => Some(Moved::Came { name, replaced, over_border: true }),
                (None, None) => None,
            },
        })
    }

    /// Whether a move is about names that one collection of the source goes to.
    fn are_of_one(&self, what: &Moved) -> bool {
        what.names().all(|name| self.0.get(name).is_some_and(|sources| sources.len() == 1))
    }
}
