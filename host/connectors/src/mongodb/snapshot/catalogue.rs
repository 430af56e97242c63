//! What the source holds: databases, collections with their options and identities, and rough sizes.
//!
//! Options stay raw bytes, since the target must get exactly what the source has. Sizes are estimates for progress
//! and partitioning: a user without `collStats` gets the count alone, and nothing fails for want of it. The server's
//! own collections (`system.*`) are left out, except `system.js`, which holds users' functions.

use std::collections::HashMap;

use bson::{Bson, RawDocumentBuf, Timestamp, cstr, doc, rawdoc};
use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _};
use oplogue_engine::error::{Kind, Result, Side};
use oplogue_engine::model::raw::{self, kind};
use oplogue_engine::model::{CollectionUuid, Namespace, OpTime};
use oplogue_engine::source::{CollectionPlan, until_majority_has};

use super::{SnapshotOptions, SnapshotSource};
use crate::mongodb::{classify, reply};

/// Where the server keeps the documents of a time-series collection.
pub(super) const BUCKETS: &str = "system.buckets.";

/// How many collections are measured at once.
const MEASURED_AT_ONCE: usize = 8;

pub(super) async fn collections(source: &SnapshotSource) -> Result<Vec<CollectionPlan>> {
    let mut plans = Vec::new();
    for database in databases(source).await? {
        plans.extend(of_database(source, &database).await?);
    }
    let measured = futures_util::stream::iter(plans.into_iter().map(|plan| measure(source, plan)));
    measured.buffered(MEASURED_AT_ONCE).try_collect().await
}

async fn databases(source: &SnapshotSource) -> Result<Vec<String>> {
    let doing = "list the databases (needs `readAnyDatabase`)";
    let mut command = doc! { "listDatabases": 1, "nameOnly": true };
    if let Some(time) = source.majority_now().await? {
        command.insert("readConcern", doc! { "level": "local", "afterClusterTime": time });
    }
    let answer = source.run("admin", doing, command).await?;
    let listed = answer.get_array("databases").into_iter().flatten().filter_map(Bson::as_document);
    let mut names: Vec<_> = listed.filter_map(|database| database.get_str("name").ok()).map(str::to_owned).collect();
    names.retain(|name| match name.as_str() {
        "local" => false,
        "admin" | "config" => source.options.special_databases.contains(name),
        _ if *name == source.options.own_database => source.options.special_databases.contains(name),
        _ => !source.options.skip_databases.contains(name),
    });
    names.sort();
    Ok(names)
}

/// One entry of `listCollections`.
struct Entry {
    name: String,
    kind: String,
    options: Bytes,
    uuid: Option<CollectionUuid>,
}

async fn of_database(source: &SnapshotSource, database: &str) -> Result<Vec<CollectionPlan>> {
    let mut entries = list(source, database, rawdoc! {}, source.majority_now().await?).await?;
    let buckets: HashMap<String, CollectionUuid> =
        entries.iter().filter_map(|entry| Some((entry.name.strip_prefix(BUCKETS)?.to_owned(), entry.uuid?))).collect();
    entries.retain(|entry| entry.name == "system.js" || !entry.name.starts_with("system."));
    let SnapshotOptions { own_database, own_collection, .. } = &source.options;
    entries.retain(|entry| database != own_database || entry.name != *own_collection);
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(entries.into_iter().map(|entry| entry.plan(database, &buckets)).collect())
}

/// The name that a planned collection has now. A rename within the database keeps the UUID; one across databases makes
/// a new collection, whose documents are all in the oplog.
///
/// The answer is of a moment behind all that was read so far: a member that is behind the one that was read could give
/// the name that a rename has taken away. That it is gone counts when a majority has it so: a drop that an election
/// takes back is in no stream, and neither are the documents that were not read for it.
pub(super) async fn place(source: &SnapshotSource, plan: &CollectionPlan) -> Result<Option<Namespace>> {
    let (Some(stored), Some(uuid)) = (stored_in(plan), plan.uuid) else {
        return Ok(Some(plan.namespace.clone()));
    };
    let written = source.leader().await?.newest;
    if let Some(name) = find(source, plan, &stored, uuid, written).await? {
        return Ok(Some(name));
    }
    let waits = || tracing::info!(namespace = %plan.namespace, "waiting until the source's majority has dropped it");
    until_majority_has(written, waits, || async { Ok(source.leader().await?.majority) }).await?;
    find(source, plan, &stored, uuid, written).await
}

/// Where a collection is for a member that has all up to `written`.
async fn find(
    source: &SnapshotSource,
    plan: &CollectionPlan,
    stored: &Namespace,
    uuid: CollectionUuid,
    written: OpTime,
) -> Result<Option<Namespace>> {
    let database = stored.database();
    let since = (!source.asks_the_leader()).then(|| written.timestamp());
    let same = list(source, database, rawdoc! { "name": stored.collection() }, since).await?;
    if same.iter().any(|entry| entry.uuid == Some(uuid)) {
        return Ok(Some(plan.namespace.clone()));
    }
    let all = list(source, database, rawdoc! {}, since).await?;
    let found = all.into_iter().find(|entry| entry.uuid == Some(uuid));
    Ok(found.map(|entry| Namespace::of(database, entry.name.strip_prefix(BUCKETS).unwrap_or(&entry.name))))
}

/// The collections of a database, from a member that has all up to `since`.
async fn list(
    source: &SnapshotSource,
    database: &str,
    filter: RawDocumentBuf,
    since: Option<Timestamp>,
) -> Result<Vec<Entry>> {
    let doing = format!("list the collections of {database} (needs `listCollections`)");
    let mut command = rawdoc! { "listCollections": 1, "filter": filter, "cursor": {} };
    if let Some(time) = since {
        command.append(cstr!("readConcern"), rawdoc! { "level": "local", "afterClusterTime": time });
    }
    let cursor = source.cursor(database, command).await.map_err(|e| classify::error(Side::Source, &doing, e))?;
    let mut entries = Vec::new();
    reply::drain(Side::Source, &doing, cursor, |bytes| {
        entries.push(Entry::read(&bytes)?);
        Ok(())
    })
    .await?;
    Ok(entries)
}

impl Entry {
    fn read(bytes: &Bytes) -> Result<Self> {
        let text = |name| -> Result<String> {
            let found = raw::find(bytes, name)?.filter(|element| element.kind == kind::STRING);
            let found = found.and_then(|element| element.value.get(4..element.value.len().saturating_sub(1)));
            Ok(String::from_utf8_lossy(found.unwrap_or_default()).into_owned())
        };
        let options = raw::find(bytes, "options")?.map(|element| bytes.slice(element.offset..element.end()));
        let uuid = uuid_of_entry(bytes)?;
        let options = options.unwrap_or_else(|| Bytes::copy_from_slice(rawdoc! {}.as_bytes()));
        Ok(Self { name: text("name")?, kind: text("type")?, options, uuid })
    }

    /// The identity of a time-series is that of its buckets: the oplog's entries carry it.
    fn plan(self, database: &str, buckets: &HashMap<String, CollectionUuid>) -> CollectionPlan {
        CollectionPlan {
            namespace: Namespace::of(database, &self.name),
            uuid: self.uuid.or_else(|| buckets.get(&self.name).copied()),
            kind: self.kind,
            options: self.options,
            documents: 0,
            bytes: 0,
        }
    }
}

/// The identity in an entry of `listCollections`.
pub(super) fn uuid_of_entry(bytes: &Bytes) -> Result<Option<CollectionUuid>> {
    Ok(match raw::find(bytes, "info")? {
        Some(info) => raw::find(info.value, "uuid")?.and_then(|element| uuid(element.kind, element.value)),
        None => None,
    })
}

/// A UUID is a binary value of 16 bytes and subtype 4: length, subtype, bytes.
fn uuid(kind: u8, value: &[u8]) -> Option<CollectionUuid> {
    (kind == kind::BINARY).then(|| value.get(5..)?.try_into().ok()).flatten()
}

/// The namespace in which the documents of a collection are stored; none for a view.
pub(in crate::mongodb) fn stored_in(plan: &CollectionPlan) -> Option<Namespace> {
    match plan.kind.as_str() {
        "view" => None,
        "timeseries" => {
            let buckets = format!("{BUCKETS}{}", plan.namespace.collection());
            Some(Namespace::of(plan.namespace.database(), &buckets))
        }
        _ => Some(plan.namespace.clone()),
    }
}

async fn measure(source: &SnapshotSource, mut plan: CollectionPlan) -> Result<CollectionPlan> {
    let Some(namespace) = stored_in(&plan) else {
        return Ok(plan);
    };
    let doing = format!("measure {namespace}");
    match statistics(source, &namespace, &doing).await {
        Ok((documents, bytes)) => (plan.documents, plan.bytes) = (documents, bytes),
        Err(fault) if fault.kind() == Kind::Unauthorized => plan.documents = count(source, &namespace, &doing).await?,
        // Dropped since it was listed.
        Err(fault) if fault.kind() == Kind::CannotApply => {}
        Err(fault) => return Err(fault),
    }
    Ok(plan)
}

async fn statistics(source: &SnapshotSource, namespace: &Namespace, doing: &str) -> Result<(u64, u64)> {
    let command = doc! {
        "aggregate": namespace.collection(),
        "pipeline": [
            { "$collStats": { "storageStats": {} } },
            { "$project": { "documents": "$storageStats.count", "bytes": "$storageStats.size" } },
        ],
        "cursor": {},
    };
    let answer = source.run(namespace.database(), doing, command).await?;
    let cursor = answer.get_document("cursor").ok();
    let first = cursor.and_then(|cursor| cursor.get_array("firstBatch").ok()?.first()?.as_document());
    let number = |name| first.and_then(|first| first.get(name)).map_or(0, whole_number);
    Ok((number("documents"), number("bytes")))
}

async fn count(source: &SnapshotSource, namespace: &Namespace, doing: &str) -> Result<u64> {
    let answer = source.run(namespace.database(), doing, doc! { "count": namespace.collection() }).await?;
    Ok(answer.get("n").map_or(0, whole_number))
}

/// The server answers with whichever number type holds the value.
#[allow(clippy::wildcard_enum_match_arm, reason = "BSON has twenty types and three of them count")]
fn whole_number(value: &Bson) -> u64 {
    match value {
        Bson::Int32(n) => u64::try_from(*n).unwrap_or_default(),
        Bson::Int64(n) => u64::try_from(*n).unwrap_or_default(),
        Bson::Double(n) if *n >= 0.0 => *n as u64,
        _ => 0,
    }
}
