//! The full copy into a cluster: what is sharded there, by which key, and documents that are copied twice.
//!
//! Where the source is a cluster too, a collection is sharded as it is there, before its first document. From a replica
//! set nothing is sharded; who wants it otherwise makes the empty collections and shards them before the copy. A document
//! that the copy reads a second time may have another value of the shard key by then, and no index would meet the first
//! one; so the target is asked where documents stand before more come. Chunks, zones and splits are not copied.

use bson::{Bson, Document, doc};
use bytes::Bytes;
use oplogue_engine::error::{Error, Kind, Result, Side};
use oplogue_engine::model::key::selector;
use oplogue_engine::model::{DocumentKey, Namespace, OpTime};
use oplogue_engine::source::CollectionPlan;

use super::{MongoCopyTarget, Occupant};
use crate::mongodb::classify;
use crate::mongodb::command::{self, Manner, Statement};
use crate::mongodb::ddl::Executor;
use crate::mongodb::shard_key::ShardKey;
use crate::mongodb::shards::routing::Sharded;
use crate::mongodb::sink::{self, sharded};

/// The settings of the full copy that matter on a sharded target.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Sharding {
    /// Shard collections that are sharded on the source (not `full_sync.do_not_shard_destination`).
    pub like_source: bool,
    /// Target collections whose shard key may differ from the source's (`skip.nsshardkey.verify`).
    pub unverified: Vec<String>,
    /// A document that was copied before and has another value of the shard key now: delete it there
    /// (`full_sync.executor.immutable_shard_key_fallback`). Otherwise the copy stops.
    pub immutable_shard_key_fallback: bool,
}

impl MongoCopyTarget {
    /// What stands there before the copy: an empty collection that is sharded, where nothing may be dropped, was made
    /// for this.
    pub(super) async fn sharded_before(&self, name: &Namespace) -> Result<Occupant> {
        let catalogue = &self.sink.catalogue;
        let kept = !self.options.collection_exist_drop
            && catalogue.shard_key_pattern(name).await?.is_some()
            && self.sink.is_empty(name).await?;
        Ok(if kept { Occupant::Sharded } else { Occupant::Foreign })
    }

    /// How the source has a collection sharded, when the copy is to have it so.
    async fn wanted(&self, plan: &CollectionPlan) -> Result<Option<Sharded>> {
        let Some(source) = self.sink.source.as_ref().filter(|_| self.sharding.like_source) else { return Ok(None) };
        if !self.sink.target().await?.is_mongos || plan.kind != "collection" {
            return Ok(None);
        }
        source.sharded(&plan.namespace).await
    }

    /// Shards a collection that was just made, so that its documents go to their shards at once.
    pub(super) async fn shard_like_source(
        &self,
        executor: &Executor<'_>,
        plan: &CollectionPlan,
        name: &Namespace,
    ) -> Result<()> {
        let Some(wanted) = self.wanted(plan).await? else { return Ok(()) };
        let is_collated = executor.sink.catalogue.refresh(name).await?.is_some_and(|info| info.collated);
        let admin = self.sink.client.database("admin");
        let need = "needs `enableSharding`: role clusterManager on admin";
        // Without effect from 6.0 on, where every database may have sharded collections.
        for command in [doc! { "enableSharding": name.database() }, shard_command(name, &wanted, is_collated)] {
            let doing = format!("shard {name} by {} as on the source ({need})", wanted.key);
            admin.run_command(command).await.map_err(|e| classify::error(Side::Sink, &doing, e))?;
        }
        tracing::info!(namespace = %name, key = %wanted.key, unique = wanted.unique, "sharded as on the source");
        Ok(())
    }

    /// A collection that stays keeps its shard key, which must be the source's unless the settings say otherwise.
    pub(super) async fn compare_key(&self, plan: &CollectionPlan, name: &Namespace) -> Result<()> {
        if self.sharding.unverified.iter().any(|unverified| unverified == name.as_str()) {
            return Ok(());
        }
        let Some(wanted) = self.wanted(plan).await? else { return Ok(()) };
        match self.sink.catalogue.shard_key_pattern(name).await? {
            Some(found) if is_same_key(&found, &wanted.key) => Ok(()),
            found => {
                let found = found.map_or_else(|| "not at all".to_owned(), |found| format!("by {found}"));
                let text = format!(
                    "{name} is sharded by {} on the source and {found} on the target: shard it alike, or name it in \
                     skip.nsshardkey.verify",
                    wanted.key
                );
                Err(Error::new(Side::Sink, Kind::Misconfigured, text))
            }
        }
    }

    /// Takes out documents that were copied before and go to another value of the shard key now.
    pub(super) async fn clear_former(
        &self,
        place: &Namespace,
        shard_key: &ShardKey,
        chunk: &[Bytes],
        manner: Manner<'_>,
    ) -> Result<Option<OpTime>> {
        let keys: Vec<&[u8]> = chunk.iter().map(AsRef::as_ref).collect();
        let places = self.sink.locate(place, shard_key, &keys).await?;
        if places.is_empty() {
            return Ok(None);
        }
        let mut former: Vec<(Bytes, Vec<_>)> = Vec::new();
        for document in chunk {
            let Some(stands) = places.get(&DocumentKey::of_document(document)?) else { continue };
            let route = shard_key.route(document).map_err(|why| placeless(place, document, &why.to_string()))?;
            let elsewhere: Vec<_> = stands.iter().filter(|stands| **stands != route).cloned().collect();
            if !elsewhere.is_empty() {
                former.push((selector(document)?, elsewhere));
            }
        }
        let Some((first, _)) = former.first() else { return Ok(None) };
        if !self.sharding.immutable_shard_key_fallback {
            let text = format!(
                "copy document {} to {place}: it was copied before and has another value of the target's shard key {} \
                 now; full_sync.executor.immutable_shard_key_fallback = true deletes it there",
                sink::shown_id(first),
                shard_key.text()
            );
            return Err(Error::new(Side::Sink, Kind::Conflict, text));
        }
        let delete = |key, route| {
            let delete = Statement::Delete { key };
            if shard_key.is_collated() { delete } else { delete.routed(route) }
        };
        let deletes: Vec<Statement<'_>> =
            former.iter().flat_map(|(key, routes)| routes.iter().map(|route| delete(key, route))).collect();
        let outcome = command::send(&self.sink.client, place, &deletes.iter().collect::<Vec<_>>(), manner).await?;
        if let Some((_, error)) = outcome.errors.first() {
            let text = format!(
                "delete from {place} what is to stand on another shard: {} (code {})",
                error.message, error.code
            );
            return Err(Error::new(Side::Sink, Kind::Unavailable, text));
        }
        self.sink.counters.moved(outcome.matched);
        Ok(outcome.operation_time)
    }

    /// The replacement of a document that stands there already, on its own shard.
    pub(super) fn replacement<'a>(
        &self,
        place: &Namespace,
        key: &'a [u8],
        document: &'a [u8],
    ) -> Result<Statement<'a>> {
        let statement = Statement::replace(key, document)?;
        match self.sink.catalogue.shard_key(place) {
            None => Ok(statement),
            Some(shard_key) => {
                sharded::upsert_at(&shard_key, statement).map_err(|why| placeless(place, document, &why.to_string()))
            }
        }
    }
}

/// Upserts with the shard that they are for; inserts as they are.
pub(super) fn upserts_at<'a>(
    place: &Namespace,
    shard_key: &ShardKey,
    statements: Vec<Statement<'a>>,
) -> Result<Vec<Statement<'a>>> {
    let placed = statements.into_iter().map(|statement| {
        let document = match &statement {
            Statement::Literal { document, .. } => *document,
            Statement::Insert(_)
            | Statement::Update { .. }
            | Statement::Modify { .. }
            | Statement::Pipeline { .. }
            | Statement::Delete { .. }
            | Statement::Routed { .. } => &[],
        };
        sharded::upsert_at(shard_key, statement).map_err(|why| placeless(place, document, &why.to_string()))
    });
    placed.collect()
}

fn placeless(place: &Namespace, document: &[u8], why: &str) -> Error {
    let text = format!("copy document {} to {place}: {why}", sink::shown_id(document));
    Error::new(Side::Sink, Kind::CannotApply, text)
}

/// `shardCollection` (manual, "shardCollection"): on an empty collection it makes the index of the key as well. A default
/// collation of the collection must be put aside by name.
fn shard_command(name: &Namespace, wanted: &Sharded, is_collated: bool) -> Document {
    let mut command = doc! { "shardCollection": name.as_str(), "key": wanted.key.clone(), "unique": wanted.unique };
    if is_collated {
        command.insert("collation", doc! { "locale": "simple" });
    }
    command
}

/// Whether two patterns place documents alike: the same fields in the same order, the same of them hashed. Directions
/// come as any number.
fn is_same_key(a: &Document, b: &Document) -> bool {
    let is_same = |(a, b): ((&String, &Bson), (&String, &Bson))| a.0 == b.0 && a.1.as_str() == b.1.as_str();
    a.len() == b.len() && a.iter().zip(b).all(is_same)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_collection_is_sharded_as_the_source_has_it() {
        let wanted = |key, unique| Sharded::for_test(key, unique);
        let name = Namespace::new("shop.users");
        assert_eq!(
            shard_command(&name, &wanted(doc! { "a.b": 1, "k": 1 }, true), true),
            doc! { "shardCollection": "shop.users", "key": { "a.b": 1, "k": 1 }, "unique": true,
            "collation": { "locale": "simple" } }
        );
        assert_eq!(
            shard_command(&name, &wanted(doc! { "k": "hashed" }, false), false),
            doc! { "shardCollection": "shop.users", "key": { "k": "hashed" }, "unique": false }
        );
    }

    #[test]
    fn keys_are_the_same_whatever_number_a_direction_is() {
        assert!(is_same_key(&doc! { "a": 1, "b": "hashed" }, &doc! { "a": 1.0, "b": "hashed" }));
        assert!(!is_same_key(&doc! { "a": 1, "b": 1 }, &doc! { "b": 1, "a": 1 }));
        assert!(!is_same_key(&doc! { "a": 1 }, &doc! { "a": "hashed" }));
        assert!(!is_same_key(&doc! { "a": 1 }, &doc! { "a": 1, "b": 1 }));
    }
}
