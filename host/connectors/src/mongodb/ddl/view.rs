//! Views: made, made anew, dropped.
//!
//! A view holds no data, so a changed one is dropped and made again, which needs no privilege beyond those of a
//! collection. The server logs nothing but its definition, and no UUID: what keeps a replay from harm is that nothing
//! here ever drops anything that is not a view.

use oplogue_engine::checkpoint::ViewPair;
use oplogue_engine::error::Result;
use oplogue_engine::model::raw::{self, Malformed};
use oplogue_engine::model::{Namespace, OpTime};

use super::create::create_command;
use super::{BUCKETS, Executor, NAMESPACE_EXISTS, skipped};
use crate::mongodb::identity::Shape;

/// In overlap views stand that are to come later: a definition can close a circle with them or differ from them in
/// collation. Then the present one is redefined further on, or the source could not have had both.
const MET_LATER: [i32; 4] =
    [NAMESPACE_EXISTS, NAMESPACE_EXISTS_4_4, GRAPH_CONTAINS_CYCLE, OPTION_NOT_SUPPORTED_ON_VIEW];
/// What 4.4 says when a collection has the name of the view.
const NAMESPACE_EXISTS_4_4: i32 = 17399;
const GRAPH_CONTAINS_CYCLE: i32 = 5;
const OPTION_NOT_SUPPORTED_ON_VIEW: i32 = 167;

impl Executor<'_> {
    /// `source` is the name that the view has there.
    pub(super) async fn create_view(
        &self,
        source: Namespace,
        name: &Namespace,
        options: &[u8],
    ) -> Result<Option<OpTime>> {
        if is_bucket_view(options)? {
            return Ok(skipped("create", name));
        }
        if self.is_view(name).await? {
            self.take_away(name).await?;
        }
        self.sink.catalogue.record_view(ViewPair { source, target: name.clone() }).await?;
        let w = create_command(name, options, self.concern)?;
        let tolerated: &[i32] = if self.overlap { &MET_LATER } else { &[] };
        let time = self.run(name.database(), "create (of a view)", name, w, tolerated).await?;
        self.sink.catalogue.refresh(name).await?;
        Ok(time)
    }

    pub(super) async fn drop_view(&self, name: &Namespace) -> Result<Option<OpTime>> {
        // A time-series collection logs the end of its view too, and goes with its buckets.
        if self.is_view(name).await? { self.drop_now(name).await } else { Ok(skipped("drop (view)", name)) }
    }

    /// Drops every view of a database; the plugin chain asks for it only when all of them are this job's.
    pub(super) async fn drop_views(&self, database: &Namespace) -> Result<Option<OpTime>> {
        let mut time = None;
        for (name, info) in self.sink.catalogue.refresh_database(database.database()).await? {
            if info.shape == Shape::View {
                time = self.drop_now(&name).await?.max(time);
            }
        }
        Ok(time)
    }

    async fn is_view(&self, name: &Namespace) -> Result<bool> {
        Ok(self.sink.catalogue.refresh(name).await?.is_some_and(|info| info.shape == Shape::View))
    }
}

/// The view that a time-series shows itself through; it comes with the time-series.
fn is_bucket_view(options: &[u8]) -> Result<bool, Malformed> {
    let on = raw::find(options, "viewOn")?;
    Ok(on.is_some_and(|on| on.value.get(4..).is_some_and(|text| text.starts_with(BUCKETS.as_bytes()))))
}
