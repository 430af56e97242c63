//! The document of the target that a duplicate collided with, and the index that says so.
//!
//! A ruling may delete what is found here, so it is found as the index finds it: by the value that the server names,
//! among the documents that the index holds (a partial or a sparse one holds some only). Where the server's value is no
//! value of a document, as with a collation, nothing is found rather than something else. Nothing here writes.

use bson::{Bson, Document, RawDocumentBuf, doc};
use bytes::Bytes;
use futures_util::TryStreamExt as _;
use oplogue_engine::error::{Error, Kind, Result, Side};
use oplogue_engine::model::{DocumentKey, Namespace};

use super::{MongoSink, is_own_id, is_unique};
use crate::mongodb::classify;
use crate::mongodb::command::{self, StatementError};
use crate::mongodb::patience::answered;
use crate::mongodb::writer::RawWriter;

/// What stands in a duplicate's way.
#[derive(Debug, Clone)]
pub(in crate::mongodb) struct Obstacle {
    /// Its identity.
    pub(in crate::mongodb) id: DocumentKey,
    /// Matches it for as long as it has the value: one that gave it up meanwhile must stay.
    pub(in crate::mongodb) selector: Bytes,
    pub(in crate::mongodb) document: Bytes,
}

impl MongoSink {
    /// The target's document that a change lost to: the one with the same unique value, else the one of its `_id`.
    ///
    /// # Errors
    /// Those of the target.
    pub(in crate::mongodb) async fn winner(
        &self,
        name: &Namespace,
        key: &[u8],
        error: &StatementError,
    ) -> Result<Option<Bytes>> {
        if is_unique(error) {
            return Ok(self.obstacle(name, error).await?.map(|obstacle| obstacle.document));
        }
        let mut w = RawWriter::with_capacity(key.len() + 64);
        command::selector(&mut w, "filter", key);
        self.find_one(name, w).await
    }

    /// What holds the unique value; `None` when nothing does any more, or it cannot be told.
    ///
    /// # Errors
    /// Those of the target.
    pub(in crate::mongodb) async fn obstacle(
        &self,
        name: &Namespace,
        error: &StatementError,
    ) -> Result<Option<Obstacle>> {
        let indexes = self.violated(name, error).await?;
        let ([index, ..], Some(value)) = (indexes.as_slice(), &error.key_value) else { return Ok(None) };
        // The value that the server names under a collation is the one it compares, not the document's.
        if indexes.iter().any(|index| index.contains_key("collation")) {
            return Ok(None);
        }
        let value = raw(value)?;
        let mut w = RawWriter::with_capacity(value.as_bytes().len() + 256);
        w.document("filter", |w| {
            w.array("$and", |w| {
                command::selector(w, "", value.as_bytes());
                for held in held_by(index) {
                    w.raw_document("", held.as_bytes());
                }
            });
        });
        let Some(document) = self.find_one(name, w).await? else { return Ok(None) };
        let id = DocumentKey::of_document(&document)?;
        let selector = selector(&document, value.as_bytes())?;
        Ok(Some(Obstacle { id, selector, document }))
    }

    /// The names of the indexes that a duplicate may have violated.
    ///
    /// # Errors
    /// Those of the target.
    pub(in crate::mongodb) async fn violated_names(
        &self,
        name: &Namespace,
        error: &StatementError,
    ) -> Result<Vec<String>> {
        if is_own_id(error) {
            return Ok(vec!["_id_".to_owned()]);
        }
        let indexes = self.violated(name, error).await?;
        Ok(indexes.iter().filter_map(|index| index.get_str("name").ok()).map(str::to_owned).collect())
    }

    /// The unique indexes with the fields that the server names.
    async fn violated(&self, name: &Namespace, error: &StatementError) -> Result<Vec<Document>> {
        let Some(pattern) = &error.key_pattern else { return Ok(Vec::new()) };
        let doing = format!("list the indexes of {name}");
        let failed = |e| classify::error(Side::Sink, &doing, e);
        let command = doc! { "listIndexes": name.collection() };
        let database = self.client.database(name.database());
        let cursor = answered(Side::Sink, &doing, database.run_cursor_command(command)).await?.map_err(failed)?;
        let all: Vec<Document> = cursor.try_collect().await.map_err(failed)?;
        let is_it = |index: &Document| {
            index.get_bool("unique").unwrap_or(false) && index.get_document("key").is_ok_and(|key| key == pattern)
        };
        Ok(all.into_iter().filter(is_it).collect())
    }

    /// One document, raw. `w` has the filter.
    async fn find_one(&self, name: &Namespace, filter: RawWriter) -> Result<Option<Bytes>> {
        let mut w = RawWriter::with_capacity(filter.len() + 64);
        w.string("find", name.collection());
        w.splice(&filter.finish());
        w.int("limit", 1);
        w.boolean("singleBatch", true);
        let doing = format!("look for what stands in the way in {name}");
        let failed = |e| classify::error(Side::Sink, &doing, e);
        let database = self.client.database(name.database());
        let asked = database.run_raw_cursor_command(command::raw(w.finish())?);
        let mut found = answered(Side::Sink, &doing, asked).await?.map_err(failed)?;
        Ok(match found.advance().await.map_err(failed)? {
            true => Some(Bytes::copy_from_slice(found.current().as_bytes())),
            false => None,
        })
    }
}

/// What a document must fulfil to be in an index that does not hold all of them.
fn held_by(index: &Document) -> Vec<RawDocumentBuf> {
    let partial = index.get_document("partialFilterExpression").ok().cloned();
    let sparse = index.get_bool("sparse").unwrap_or(false).then(|| {
        let fields = index.get_document("key").into_iter().flat_map(Document::keys);
        doc! { "$or": fields.map(|field| doc! { field: { "$exists": true } }).collect::<Vec<_>>() }
    });
    partial.into_iter().chain(sparse).filter_map(|filter| RawDocumentBuf::try_from(&filter).ok()).collect()
}

/// `_id` and the value of the index.
fn selector(document: &[u8], value: &[u8]) -> Result<Bytes> {
    use oplogue_engine::model::raw::{Elements, find};
    let mut w = RawWriter::with_capacity(value.len() + 64);
    if let Some(id) = find(document, "_id")? {
        w.element(&id);
    }
    for element in Elements::new(value)? {
        let element = element?;
        if element.name != b"_id" {
            w.element(&element);
        }
    }
    Ok(Bytes::from(w.finish()))
}

fn raw(document: &Document) -> Result<RawDocumentBuf> {
    RawDocumentBuf::try_from(document)
        .map_err(|e| Error::new(Side::Sink, Kind::Malformed, "read the value of a duplicate").caused_by(e))
}

/// A key pattern as raw bytes; empty when it cannot be written.
pub(super) fn pattern_bytes(error: &StatementError) -> Bytes {
    let pattern = error.key_pattern.as_ref().map(|pattern| Bson::Document(pattern.clone()));
    let raw = pattern.and_then(|pattern| pattern.as_document().and_then(|p| RawDocumentBuf::try_from(p).ok()));
    raw.map(|raw| Bytes::from(raw.into_bytes())).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_that_holds_some_documents_only_is_asked_for_those() {
        let all = |index: Document| held_by(&index).len();
        assert_eq!(all(doc! { "key": { "u": 1 } }), 0);
        assert_eq!(all(doc! { "key": { "u": 1 }, "partialFilterExpression": { "a": true } }), 1);
        let sparse = held_by(&doc! { "key": { "u": 1, "v": 1 }, "sparse": true });
        let expected = doc! { "$or": [{ "u": { "$exists": true } }, { "v": { "$exists": true } }] };
        assert_eq!(Document::try_from(sparse[0].clone()).unwrap(), expected);
    }

    #[test]
    fn an_obstacle_is_named_by_its_id_and_its_value() {
        let document = bson::rawdoc! { "_id": 7, "u": 1, "more": true };
        let selector = selector(document.as_bytes(), bson::rawdoc! { "u": 1 }.as_bytes()).unwrap();
        assert_eq!(selector, bson::rawdoc! { "_id": 7, "u": 1 }.into_bytes());
    }
}
