//! Splits a collection into ranges of its `_id` index.
//!
//! Bounds come from a random sample (or, where documents are few and large, from the index itself), sorted by the
//! server, because only the server knows its order across types and collations. Equal neighbours are dropped: a range
//! between equal bounds is an error to the server. The first range has no lower bound and the last no upper one, so
//! that together they cover every `_id`, whatever arrives while the copy runs.

use bson::{RawDocumentBuf, rawdoc};
use bytes::Bytes;
use oplogue_engine::error::{Result, Side};
use oplogue_engine::model::raw::{self, kind};
use oplogue_engine::model::{DocumentKey, Namespace};
use oplogue_engine::source::{CollectionPlan, Partition, ScanOrder};

use super::catalogue::stored_in;
use super::{SnapshotSource, whole};
use crate::mongodb::{classify, reply};

/// More ranges than this give nothing but bookkeeping.
const PARTITIONS_MAX: u64 = 4096;

/// Sampled ids for each bound, so that ranges come out about even.
const SAMPLES_A_BOUND: u64 = 10;

/// The server samples at random only up to a twentieth of a collection; beyond that it reads everything.
const SAMPLED_FRACTION: u64 = 20;

pub(super) async fn partition(
    source: &SnapshotSource,
    plan: &CollectionPlan,
    partition_bytes: u64,
) -> Result<Vec<Partition>> {
    let Some(namespace) = stored_in(plan) else {
        return Ok(Vec::new());
    };
    if raw::find(&plan.options, "capped")?.is_some_and(|capped| capped.value == [1]) {
        return Ok(vec![whole(namespace, ScanOrder::Natural, plan.uuid)]);
    }
    // Buckets are clustered by `_id`, so they stand in its order too.
    if plan.kind == "timeseries" && !bounds_clustered(source).await? {
        return Ok(vec![whole(namespace, ScanOrder::Natural, plan.uuid)]);
    }
    let count = plan.bytes.div_ceil(partition_bytes.max(1)).min(PARTITIONS_MAX).min(plan.documents);
    if count <= 1 {
        return Ok(vec![whole(namespace, ScanOrder::Id, plan.uuid)]);
    }
    let ids = ids(source, &namespace, plan.documents, count).await?;
    let whole = whole(namespace, ScanOrder::Id, plan.uuid);
    Ok(ranges(&whole, bounds(&ids, count)?))
}

/// Whether the source takes a hint of `_id` for a collection that is clustered by it: 5.0 knows no such index (code 2).
async fn bounds_clustered(source: &SnapshotSource) -> Result<bool> {
    const MONGODB_6_0: i32 = 17;
    let answer = source.run("admin", "ask the source what it is", bson::doc! { "hello": 1 }).await?;
    Ok(answer.get_i32("maxWireVersion").unwrap_or_default() >= MONGODB_6_0)
}

async fn ids(source: &SnapshotSource, namespace: &Namespace, documents: u64, count: u64) -> Result<Vec<Bytes>> {
    let samples = count * SAMPLES_A_BOUND.min(documents / SAMPLED_FRACTION / count);
    let doing = format!("sample the ids of {namespace}");
    let command = if samples < count * 2 { scan(namespace) } else { sample(namespace, samples) };
    let cursor = source.cursor(namespace.database(), command).await;
    let cursor = cursor.map_err(|e| classify::error(Side::Source, &doing, e))?;
    let mut ids = Vec::new();
    reply::drain(Side::Source, &doing, cursor, |id| {
        // A copy: a slice would keep the whole reply alive for as long as its bound.
        ids.push(Bytes::copy_from_slice(&id));
        Ok(())
    })
    .await?;
    Ok(ids)
}

fn sample(namespace: &Namespace, samples: u64) -> RawDocumentBuf {
    rawdoc! {
        "aggregate": namespace.collection(),
        "pipeline": [
            { "$sample": { "size": i64::try_from(samples).unwrap_or(i64::MAX) } },
            { "$project": { "_id": 1 } },
            { "$sort": { "_id": 1 } },
        ],
        "cursor": {},
        "allowDiskUse": true,
    }
}

/// All ids out of the index alone: few, because documents are large.
fn scan(namespace: &Namespace) -> RawDocumentBuf {
    rawdoc! {
        "find": namespace.collection(),
        "projection": { "_id": 1 },
        "sort": { "_id": 1 },
        "hint": { "_id": 1 },
    }
}

/// At most `count - 1` bounds out of sorted ids, evenly spread, no two equal.
fn bounds(ids: &[Bytes], count: u64) -> Result<Vec<Bytes>> {
    let count = usize::try_from(count).unwrap_or(usize::MAX).min(ids.len().max(1));
    let mut bounds: Vec<Bytes> = Vec::with_capacity(count);
    let mut last = None;
    for id in (1..count).filter_map(|n| ids.get(n * ids.len() / count)) {
        let key = DocumentKey::of_document(id)?;
        if last != Some(key) && !is_extreme(id)? {
            bounds.push(id.clone());
        }
        last = Some(key);
    }
    Ok(bounds)
}

/// Nothing lies below `MinKey` or above `MaxKey`, and the server refuses an empty range.
fn is_extreme(document: &[u8]) -> Result<bool> {
    Ok(raw::find(document, "_id")?.is_some_and(|id| matches!(id.kind, kind::MIN_KEY | kind::MAX_KEY)))
}

fn ranges(whole: &Partition, bounds: Vec<Bytes>) -> Vec<Partition> {
    let mut ranges = Vec::with_capacity(bounds.len() + 1);
    let mut min = None;
    for max in bounds {
        ranges.push(Partition { min, max: Some(max.clone()), ..whole.clone() });
        min = Some(max);
    }
    ranges.push(Partition { min, ..whole.clone() });
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(value: impl Into<bson::RawBson>) -> Bytes {
        let mut document = RawDocumentBuf::new();
        document.append(bson::cstr!("_id"), value.into());
        Bytes::copy_from_slice(document.as_bytes())
    }

    #[test]
    fn bounds_that_the_server_calls_equal_are_dropped() {
        let ids = [id(f64::NAN), id(1), id(1.0), id(1_i64), id("a"), id("b")];
        let found = bounds(&ids, 6).unwrap();
        assert_eq!(found, [id(1), id("a"), id("b")]);
    }

    #[test]
    fn extremes_are_no_bounds() {
        let ids = [id(bson::RawBson::MinKey), id(bson::RawBson::MinKey), id(1), id(bson::RawBson::MaxKey)];
        assert_eq!(bounds(&ids, 4).unwrap(), [id(1)]);
    }

    #[test]
    fn ranges_leave_nothing_out() {
        let namespace = Namespace::new("d.c");
        let whole = whole(namespace, ScanOrder::Id, Some([7; 16]));
        let ranges = ranges(&whole, vec![id(1), id(5)]);
        assert_eq!((ranges[0].min.clone(), ranges[0].max.clone()), (None, Some(id(1))));
        assert_eq!((ranges[1].min.clone(), ranges[1].max.clone()), (Some(id(1)), Some(id(5))));
        assert_eq!((ranges[2].min.clone(), ranges[2].max.clone()), (Some(id(5)), None));
    }

    #[test]
    fn few_ids_make_few_ranges() {
        assert_eq!(bounds(&[id(1), id(2)], 100).unwrap(), [id(2)]);
        assert_eq!(bounds(&[], 100).unwrap(), Vec::<Bytes>::new());
    }
}
