//! Takes a target over that this job has not copied, before incremental begins on it.
//!
//! Drops and renames between the start and now may be done on the target or not: the sink finds out
//! (`mongodb/sink/adopted.rs`), and is given what the source has logged under the names that the plugins make of them. Nothing here writes to the
//! target: what is found out goes into the store, as identity pairs and the mark of what is done.

use oplogue_connectors::mongodb::sink::{Move, Moved};
use oplogue_engine::checkpoint::Stage;
use oplogue_engine::config::checked::FetchMethod;
use oplogue_engine::error::{Kind, Result};
use oplogue_engine::model::{Namespace, Position};
use oplogue_engine::plugin::PluginChain as _;

use super::Job;

impl Job {
    /// Looks through the moves since `position`. Where DDL is not replayed nothing is to be found out.
    pub(super) async fn adopt(&self, position: &Position) -> Result<()> {
        if !self.config.filter.ddl_enable {
            return Ok(());
        }
        let source = self.source();
        let start = source.resolve(position).await?.time();
        let moves = match self.servers.originals().moves(start, source.written().await?).await {
            Err(error)
                if error.kind() == Kind::Unauthorized && self.config.incr.fetch_method == FetchMethod::ChangeStream =>
            {
                tracing::warn!(
                    %error,
                    "whether the target has seen drops and renames since the start is not known: it must be as the \
                     source was then"
                );
                return Ok(());
            }
            moves => moves?,
        };
        let mut routed = Vec::with_capacity(moves.len());
        for one in moves {
            if let Some(what) = self.routed(one.what)? {
                routed.push(Move { what, ..one });
            }
        }
        self.sink(Stage::Incremental).await?.adopt(&routed).await
    }

    /// A move under the target's names; `None` when it is outside of the filter.
    fn routed(&self, what: Moved) -> Result<Option<Moved>> {
        let route = |name: &Namespace| -> Result<Option<Namespace>> {
            let target = self.chain.route(self.namespaces.intern(name.as_str()))?;
            Ok(target.map(|target| self.namespaces.name(target)))
        };
        Ok(match what {
            Moved::Came(name) => route(&name)?.map(Moved::Came),
            Moved::Went(name) => route(&name)?.map(Moved::Went),
            Moved::Renamed { from, to, replaced } => match (route(&from)?, route(&to)?) {
                (Some(from), Some(to)) => Some(Moved::Renamed { from, to, replaced }),
                (Some(from), None) => Some(Moved::Went(from)),
                // It is copied when its turn comes, whatever stands there.
                (None, Some(to)) => Some(Moved::Came(to)),
                (None, None) => None,
            },
        })
    }
}
