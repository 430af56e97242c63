//! The shard key of a target collection, and where in the cluster it puts a document.
//!
//! A `mongos` sends an upsert only to the one shard that the query names by the whole shard key, and other writes of one
//! document either there or, by `_id` alone, to every shard (manual, "Operational Restrictions in Sharded Clusters"). So
//! a document's value of the key is read from its bytes: a field that is missing counts as null (manual, "Set Missing
//! Shard Key Fields"), and an array can be no value of it. Pure: it reads bytes, asks nobody and knows no chunk.

use bson::Document;
use oplogue_engine::model::raw::{self, Element, Elements, Malformed, kind};
use oplogue_engine::sink::{Content, Patch};
use thiserror::Error;

use super::patch::ObjectDiff;
use super::patch::diff::Node;
use super::writer::RawWriter;

/// How a collection is sharded, where its documents are not told apart by `_id` alone.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ShardKey {
    pattern: Document,
    /// The fields beside the `_id`, as dotted paths.
    paths: Vec<String>,
    /// The collection has a default collation, which shard keys never have.
    collated: bool,
}

/// A document's value of the shard key, as equalities for a query. Two are equal when their bytes are: to the server a
/// value that is equal in another type is a changed one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Route {
    fields: Vec<u8>,
    collated: bool,
}

/// A document that the shard key has no place for.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub(crate) enum Unroutable {
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// Arrays and regular expressions are no values of a shard key.
    #[error("the field `{0}` of the target's shard key holds an array or a regular expression")]
    NoValue(String),
}

impl Route {
    /// The equalities, a raw document.
    pub(crate) fn fields(&self) -> &[u8] {
        &self.fields
    }

    /// Whether the statement must say that shard keys are compared by bytes.
    pub(crate) fn is_collated(&self) -> bool {
        self.collated
    }

    pub(crate) fn bytes(&self) -> usize {
        const COLLATION: usize = 48;
        self.fields.len() + COLLATION
    }
}

impl ShardKey {
    /// A key out of `config.collections`; none when every field of it lies in the `_id`, which is in every query anyway.
    pub(crate) fn of(pattern: &Document, collated: bool) -> Option<Self> {
        let paths: Vec<String> = pattern.keys().filter(|path| !is_of_id(path)).cloned().collect();
        (!paths.is_empty()).then(|| Self { pattern: pattern.clone(), paths, collated })
    }

    /// The pattern as people write it.
    pub(crate) fn text(&self) -> String {
        self.pattern.to_string()
    }

    /// Whether documents are compared by the collection's collation, so that only upserts can name their shard.
    pub(crate) fn is_collated(&self) -> bool {
        self.collated
    }

    /// The value that a whole document has.
    pub(crate) fn route(&self, document: &[u8]) -> Result<Route, Unroutable> {
        let mut w = RawWriter::with_capacity(64);
        for path in &self.paths {
            match at(document, path)? {
                None => w.null(path),
                Some(value) if matches!(value.kind, kind::ARRAY | kind::REGEX) => {
                    return Err(Unroutable::NoValue(path.clone()));
                }
                Some(value) => w.value(path, value.kind, value.value),
            }
        }
        Ok(Route { fields: w.finish(), collated: self.collated })
    }

    /// Appends what a query must return of documents so that [`Self::route`] can be told of them.
    pub(crate) fn project(&self, w: &mut RawWriter) {
        w.int("_id", 1);
        self.paths.iter().for_each(|path| w.int(path, 1));
    }

    /// Whether an update may change the value of the key. What cannot be read is taken for one that may.
    pub(crate) fn may_change_by(&self, content: &Content) -> bool {
        let (Content::Patch(patches) | Content::Patched { patches, .. }) = content else { return false };
        patches.iter().any(|patch| match patch {
            Patch::Diff(diff) => ObjectDiff::parse(diff).map_or(true, |diff| self.is_met_by(&diff, "")),
            Patch::Modifiers(modifiers) => self.is_named_in(modifiers).unwrap_or(true),
        })
    }

    fn is_met_by(&self, diff: &ObjectDiff<'_>, within: &str) -> bool {
        let sections = [diff.deleted, diff.updated, diff.inserted];
        let named = sections.into_iter().flatten().any(|section| {
            let names = Elements::new(section).into_iter().flatten().flatten();
            names.into_iter().any(|field| self.concerns(&below(within, field.name)))
        });
        named
            || diff.children.iter().any(|(name, child)| {
                let path = below(within, name);
                match child {
                    Node::Array(_) => self.concerns(&path),
                    Node::Object(_) if self.paths.iter().any(|key| is_in(&path, key)) => true,
                    Node::Object(child) => self.concerns(&path) && self.is_met_by(child, &path),
                }
            })
    }

    fn is_named_in(&self, modifiers: &[u8]) -> Result<bool, Malformed> {
        for operator in Elements::new(modifiers)? {
            let operator = operator?;
            if operator.kind != kind::DOCUMENT {
                continue;
            }
            for field in Elements::new(operator.value)? {
                if self.concerns(&String::from_utf8_lossy(field?.name)) {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    /// Whether a change of `path` can change a value of the key: it is a field of it, lies in one or holds one.
    fn concerns(&self, path: &str) -> bool {
        self.paths.iter().any(|key| is_in(path, key) || is_in(key, path))
    }
}

fn is_of_id(path: &str) -> bool {
    is_in(path, "_id")
}

/// Whether `path` is `of` or lies below it.
fn is_in(path: &str, of: &str) -> bool {
    path.strip_prefix(of).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

fn below(within: &str, name: &[u8]) -> String {
    let name = String::from_utf8_lossy(name);
    if within.is_empty() { name.into_owned() } else { format!("{within}.{name}") }
}

/// The value at a dotted path. An array on the way is returned in place of what lies in it.
fn at<'d>(document: &'d [u8], path: &str) -> Result<Option<Element<'d>>, Malformed> {
    let (first, rest) = path.split_once('.').map_or((path, None), |(first, rest)| (first, Some(rest)));
    let Some(found) = raw::find(document, first)? else { return Ok(None) };
    match (rest, found.kind) {
        (None, _) | (Some(_), kind::ARRAY) => Ok(Some(found)),
        (Some(rest), kind::DOCUMENT) => at(found.value, rest),
        (Some(_), _) => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bson::{RawDocumentBuf, doc, rawdoc};
    use bytes::Bytes;

    fn key(pattern: Document) -> ShardKey {
        ShardKey::of(&pattern, false).unwrap()
    }

    fn route(key: &ShardKey, document: &RawDocumentBuf) -> Document {
        Document::from_reader(key.route(document.as_bytes()).unwrap().fields()).unwrap()
    }

    #[test]
    fn a_document_is_placed_by_every_field_of_the_key() {
        let key = key(doc! { "region": 1, "user.name": "hashed" });
        let whole = rawdoc! { "_id": 1, "user": { "age": 3, "name": "x" }, "region": 5_i64 };
        assert_eq!(route(&key, &whole), doc! { "region": 5_i64, "user.name": "x" });
        let object = rawdoc! { "region": { "a": 1 }, "user": 7 };
        assert_eq!(route(&key, &object), doc! { "region": { "a": 1 }, "user.name": null });
    }

    #[test]
    fn a_missing_field_is_null_and_no_change_from_it() {
        let key = key(doc! { "a": 1, "b.c": 1 });
        let (missing, null) = (rawdoc! { "_id": 1 }, rawdoc! { "_id": 1, "a": null, "b": { "c": null } });
        assert_eq!(route(&key, &missing), doc! { "a": null, "b.c": null });
        assert_eq!(key.route(missing.as_bytes()), key.route(null.as_bytes()));
    }

    #[test]
    fn a_value_of_another_type_is_another_value() {
        let key = key(doc! { "k": 1 });
        assert_ne!(key.route(rawdoc! { "k": 1 }.as_bytes()), key.route(rawdoc! { "k": 1_i64 }.as_bytes()));
    }

    #[test]
    fn arrays_are_no_value_wherever_they_stand_on_the_path() {
        let key = key(doc! { "a.b": 1 });
        let refused = Err(Unroutable::NoValue("a.b".to_owned()));
        for document in [rawdoc! { "a": [{ "b": 1 }] }, rawdoc! { "a": { "b": [1] } }] {
            assert_eq!(key.route(document.as_bytes()), refused);
        }
    }

    #[test]
    fn a_key_within_the_id_needs_nothing() {
        for pattern in [doc! { "_id": 1 }, doc! { "_id": "hashed" }, doc! { "_id.tenant": 1, "_id": 1 }] {
            assert_eq!(ShardKey::of(&pattern, false), None);
        }
        assert_eq!(key(doc! { "k": 1, "_id": 1 }).paths, ["k"]);
        assert_eq!(key(doc! { "_idea": 1 }).paths, ["_idea"]);
    }

    fn bytes(document: &RawDocumentBuf) -> Bytes {
        Bytes::copy_from_slice(document.as_bytes())
    }

    #[test]
    fn updates_that_may_change_the_key_are_told_from_others() {
        let key = key(doc! { "a.b": 1, "k": "hashed" });
        let diff = |diff: RawDocumentBuf| key.may_change_by(&Content::Patch(vec![Patch::Diff(bytes(&diff))]));
        assert!(diff(rawdoc! { "u": { "k": 2 } }) && diff(rawdoc! { "d": { "a": false } }));
        assert!(diff(rawdoc! { "i": { "a": { "x": 1 } } }) && diff(rawdoc! { "sa": { "u": { "b": 1 } } }));
        assert!(diff(rawdoc! { "sa": { "sb": { "u": { "c": 1 } } } }), "the value changes inside");
        assert!(diff(rawdoc! { "sa": { "a": true, "u0": 1 } }), "an array on the way");
        assert!(diff(rawdoc! { "x": 1 }), "not to be read");
        assert!(!diff(rawdoc! { "u": { "kk": 2, "b": 1 }, "sa": { "u": { "c": 1 } } }));
        assert!(!diff(rawdoc! { "sz": { "u": { "k": 1 } } }));
    }

    #[test]
    fn modifiers_are_looked_at_by_their_paths() {
        let key = key(doc! { "a.b": 1 });
        let named = |update: RawDocumentBuf| key.may_change_by(&Content::Patch(vec![Patch::Modifiers(bytes(&update))]));
        assert!(named(rawdoc! { "$set": { "a.b": 1 } }) && named(rawdoc! { "$unset": { "a": true } }));
        assert!(named(rawdoc! { "$set": { "x": 1 }, "$inc": { "a.b.c": 1 } }));
        assert!(!named(rawdoc! { "$set": { "a.c": 1, "ab": 1 } }));
    }
}
