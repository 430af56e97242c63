//! Compares the documents of one collection, streaming both sides.
//!
//! Both servers sort by `_id` (or by insertion, for capped collections), so equal collections are compared in
//! lockstep with two batches in memory. Only when a pair differs are the remaining documents collected by
//! `_id`, to say which are missing, too many or changed. It reads from the primaries and never decodes a
//! document that is equal.

use std::collections::HashMap;

use anyhow::{Context as _, Result};
use bson::raw::{RawBsonRef, RawDocument, RawDocumentBuf};
use bson::{Document, doc};
use futures_util::StreamExt as _;
use mongodb::{Collection, Cursor};

use super::difference::{Difference, DifferenceKind, both};

/// Documents collected after the first difference; beyond it the first differences must do.
const COLLECTED_MAX: usize = 200_000;

/// `_id`s that are shown where only the order differs.
const ORDER_SHOWN: usize = 50;

pub(super) struct Sides<'a> {
    pub(super) source: Collection<Document>,
    pub(super) target: Collection<Document>,
    pub(super) natural: bool,
    pub(super) ignored_field: Option<&'a str>,
}

/// Returns at most `max` differences.
pub(super) async fn compare(
    sides: Sides<'_>,
    expect: impl Fn(&RawDocument) -> Option<RawDocumentBuf>,
    max: usize,
) -> Result<Vec<Difference>> {
    let namespace = sides.target.namespace().to_string();
    let mut source = open(&sides.source, sides.natural).await.context("read the source")?;
    let mut target = open(&sides.target, sides.natural).await.context("read the target")?;
    loop {
        let left = next_expected(&mut source, &expect).await?.map(|left| without(left, sides.ignored_field));
        let right = next(&mut target).await?.map(|right| without(right, sides.ignored_field));
        if left.is_none() && right.is_none() {
            return Ok(Vec::new());
        }
        if left.as_deref().map(RawDocument::as_bytes) == right.as_deref().map(RawDocument::as_bytes) {
            continue;
        }
        let mut rest = Rest::default();
        rest.add(left, right);
        while rest.len() < COLLECTED_MAX {
            let left = next_expected(&mut source, &expect).await?.map(|left| without(left, sides.ignored_field));
            let right = next(&mut target).await?.map(|right| without(right, sides.ignored_field));
            if left.is_none() && right.is_none() {
                break;
            }
            rest.add(left, right);
        }
        let order = sides.natural.then(|| rest.order());
        let mut found = rest.differences(&namespace, max);
        if let Some(order) = order.filter(|_| found.is_empty()) {
            found.push(Difference::new(&namespace, DifferenceKind::Order, order));
        }
        return Ok(found);
    }
}

async fn open(collection: &Collection<Document>, natural: bool) -> Result<Cursor<RawDocumentBuf>> {
    let order = if natural {
        doc! { "$natural": 1 }
    } else {
        doc! { "_id": 1 }
    };
    let typed = collection.clone_with_type::<RawDocumentBuf>();
    Ok(typed.find(doc! {}).sort(order).batch_size(5_000).await?)
}

async fn next(cursor: &mut Cursor<RawDocumentBuf>) -> Result<Option<RawDocumentBuf>> {
    Ok(cursor.next().await.transpose()?)
}

async fn next_expected(
    cursor: &mut Cursor<RawDocumentBuf>,
    expect: &impl Fn(&RawDocument) -> Option<RawDocumentBuf>,
) -> Result<Option<RawDocumentBuf>> {
    while let Some(document) = next(cursor).await? {
        if let Some(expected) = expect(&document) {
            return Ok(Some(expected));
        }
    }
    Ok(None)
}

/// The document with the ignored field's value put to null.
fn without(document: RawDocumentBuf, ignored: Option<&str>) -> RawDocumentBuf {
    let Some(ignored) = ignored else {
        return document;
    };
    let mut rest = RawDocumentBuf::new();
    for (name, value) in document.iter().flatten() {
        let value = if name.as_str() == ignored { RawBsonRef::Null } else { value };
        rest.append(name, value);
    }
    rest
}

/// What is left of both sides after the first difference.
#[derive(Default)]
struct Rest {
    source: Vec<RawDocumentBuf>,
    target: Vec<RawDocumentBuf>,
}

impl Rest {
    fn add(&mut self, source: Option<RawDocumentBuf>, target: Option<RawDocumentBuf>) {
        self.source.extend(source);
        self.target.extend(target);
    }

    fn len(&self) -> usize {
        self.source.len().max(self.target.len())
    }

    /// The `_id`s of both sides in their order, from the first difference on.
    fn order(&self) -> String {
        let ids = |side: &[RawDocumentBuf]| {
            let shown =
                side.iter().take(ORDER_SHOWN).map(|document| format!("{:?}", document.get("_id").ok().flatten()));
            shown.collect::<Vec<_>>().join(" ")
        };
        format!("  source {}\n  target {}", ids(&self.source), ids(&self.target))
    }

    fn differences(self, namespace: &str, max: usize) -> Vec<Difference> {
        let mut target: HashMap<Vec<u8>, RawDocumentBuf> =
            self.target.into_iter().map(|document| (id(&document), document)).collect();
        let mut found = Vec::new();
        let mut add = |kind, detail| found.push(Difference::new(namespace, kind, detail));
        for left in &self.source {
            match target.remove(&id(left)) {
                Some(right) if right.as_bytes() == left.as_bytes() => {}
                Some(right) => add(DifferenceKind::Document, both(Some(left), Some(&right))),
                None => add(DifferenceKind::MissingDocument, both(Some(left), None)),
            }
        }
        for right in target.values() {
            add(DifferenceKind::ExtraDocument, both(None, Some(right)));
        }
        found.truncate(max);
        found
    }
}

/// The `_id` as bytes. Two types of one number are two keys here: that is a difference worth seeing.
fn id(document: &RawDocument) -> Vec<u8> {
    let mut only = RawDocumentBuf::new();
    if let Ok(Some(id)) = document.get("_id") {
        only.append(bson::cstr!("_id"), id);
    }
    only.into_bytes()
}
