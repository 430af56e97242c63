//! The forms of statements on a sharded collection, read as a `mongos` reads them.
//!
//! Each case plans a write as the sink does, places it, and looks at the commands that would be sent. Rules of the server
//! that these forms follow are named in the modules; no server is asked here.

use std::slice::from_ref;

use bson::{Document, RawDocumentBuf, doc, rawdoc};
use bytes::Bytes;
use oplogue_engine::model::{Namespaces, OpTime};
use oplogue_engine::sink::Patch;

use super::super::plan::plan;
use super::*;
use crate::mongodb::command::{Concern, Manner, build};
use crate::mongodb::mark::Numbering;
use crate::mongodb::patch::Dialect;

const AFTER: Form = Form { overlap: false, fast: true, upsert: false, dialect: Dialect::V5_0 };
const OVERLAP: Form = Form { overlap: true, ..AFTER };

fn key(pattern: Document) -> ShardKey {
    ShardKey::of(&pattern, false).unwrap()
}

fn bytes(document: &RawDocumentBuf) -> Bytes {
    Bytes::copy_from_slice(document.as_bytes())
}

fn write(content: Content) -> Write {
    let id = Namespaces::default().intern("a.b");
    Write {
        target: id,
        source: id,
        key: bytes(&rawdoc! { "_id": 7 }),
        content,
        overlap: false,
        time: OpTime::default(),
        collection: None,
        origin: None,
        moved: false,
        creates: false,
        in_order: false,
    }
}

fn diff(diff: RawDocumentBuf) -> Patch {
    Patch::Diff(bytes(&diff))
}

/// A statement as the server gets it.
fn sent(statement: &Statement<'_>) -> Document {
    let manner = Manner { primary: None, concern: Concern::Majority, bypass_validation: false, mark: None };
    let command = Document::from_reader(build("b", &[statement], manner, Numbering::None).0.as_slice()).unwrap();
    let statements = ["deletes", "updates", "documents"].into_iter().find_map(|name| command.get_array(name).ok());
    statements.unwrap()[0].as_document().unwrap().clone()
}

/// What a write becomes where its document stands under these values: first the deletes, then the rest.
fn placed(key: &ShardKey, form: Form, fallback: bool, write: &Write, stands: &[RawDocumentBuf]) -> Vec<Document> {
    let stands: Vec<Route> = stands.iter().map(|document| key.route(document.as_bytes()).unwrap()).collect();
    let rules = Rules { key, fallback, form };
    let placed = place(write, plan(write, form).unwrap(), &stands, rules).unwrap().unwrap();
    let then = match placed.plan {
        Plan::One(statement) => vec![statement],
        Plan::Steps(list) => list,
        Plan::Refetch => return vec![doc! { "refetch": true }],
        Plan::Nothing => Vec::new(),
    };
    placed.first.iter().chain(&then).map(sent).collect()
}

#[test]
fn an_upsert_names_the_whole_key_and_what_stands_elsewhere_goes_first() {
    let key = key(doc! { "k": 1, "a.b": "hashed" });
    let document = rawdoc! { "_id": 7, "k": 2, "a": { "b": "x" } };
    let upsert = doc! { "q": { "_id": 7, "k": 2, "a.b": "x" }, "u": { "_id": 7, "k": 2, "a": { "b": "x" } },
    "upsert": true };
    let replace = write(Content::Replace(bytes(&document)));
    let insert = write(Content::Insert(bytes(&document)));
    for (write, form) in [(&replace, AFTER), (&replace, OVERLAP), (&insert, OVERLAP)] {
        assert_eq!(placed(&key, form, false, write, &[]), from_ref(&upsert), "stands nowhere");
        assert_eq!(placed(&key, form, false, write, from_ref(&document)), from_ref(&upsert), "stands there");
        let former = rawdoc! { "_id": 7, "k": 1, "a": { "b": "x" } };
        let delete = doc! { "q": { "_id": 7, "k": 1, "a.b": "x" }, "limit": 1 };
        assert_eq!(placed(&key, form, false, write, &[former]), [delete, upsert.clone()]);
    }
}

#[test]
fn every_copy_elsewhere_goes_and_the_one_in_its_place_stays() {
    let key = key(doc! { "k": 1 });
    let replace = write(Content::Replace(bytes(&rawdoc! { "_id": 7, "k": 2 })));
    let stands = [rawdoc! { "k": 1 }, rawdoc! { "k": 2 }, rawdoc! { "x": 1 }];
    let expected = [
        doc! { "q": { "_id": 7, "k": 1 }, "limit": 1 },
        doc! { "q": { "_id": 7, "k": null }, "limit": 1 },
        doc! { "q": { "_id": 7, "k": 2 }, "u": { "_id": 7, "k": 2 }, "upsert": true },
    ];
    assert_eq!(placed(&key, AFTER, false, &replace, &stands), expected);
}

#[test]
fn a_plain_insert_finds_its_shard_by_itself() {
    let insert = write(Content::Insert(bytes(&rawdoc! { "_id": 7, "k": 2 })));
    assert_eq!(placed(&key(doc! { "k": 1 }), AFTER, false, &insert, &[]), [doc! { "_id": 7, "k": 2 }]);
}

#[test]
fn a_document_without_the_field_is_upserted_under_null() {
    let replace = write(Content::Replace(bytes(&rawdoc! { "_id": 7 })));
    let upsert = doc! { "q": { "_id": 7, "k": null }, "u": { "_id": 7 }, "upsert": true };
    for stands in [rawdoc! { "_id": 7 }, rawdoc! { "_id": 7, "k": null }] {
        assert_eq!(placed(&key(doc! { "k": 1 }), OVERLAP, false, &replace, &[stands]), from_ref(&upsert));
    }
}

#[test]
fn bytes_still_go_as_a_literal() {
    let zero = bson::Timestamp { time: 0, increment: 0 };
    let replace = write(Content::Replace(bytes(&rawdoc! { "_id": 7, "k": { "$x": 1 }, "t": zero })));
    let all = placed(&key(doc! { "k": 1 }), AFTER, false, &replace, &[]);
    let value = doc! { "_id": 7, "k": { "$x": 1 }, "t": zero };
    let expected = doc! { "q": { "_id": 7, "k": { "$eq": { "$x": 1 } } },
    "u": [{ "$replaceWith": { "$literal": value } }], "upsert": true };
    assert_eq!(all, [expected]);
}

#[test]
fn updates_and_deletes_go_where_the_document_stands() {
    let key = key(doc! { "k": 1 });
    let update = write(Content::Patch(vec![diff(rawdoc! { "u": { "x": 1 } })]));
    let query = |statement: &Document| statement.get_document("q").unwrap().clone();
    let stands = [rawdoc! { "_id": 7, "k": 5 }];
    assert_eq!(query(&placed(&key, AFTER, false, &update, &stands)[0]), doc! { "_id": 7, "k": 5 });
    assert_eq!(query(&placed(&key, OVERLAP, false, &update, &stands)[0]), doc! { "_id": 7, "k": 5 });
    assert_eq!(query(&placed(&key, AFTER, false, &update, &[])[0]), doc! { "_id": 7 }, "nowhere: it will miss");
    let delete = write(Content::Delete);
    let gone = |k: i32| doc! { "q": { "_id": 7, "k": k }, "limit": 1 };
    assert_eq!(placed(&key, AFTER, false, &delete, &stands), [gone(5)]);
    let twice = [rawdoc! { "k": 5 }, rawdoc! { "k": 6 }];
    assert_eq!(placed(&key, OVERLAP, false, &delete, &twice), [gone(5), gone(6)]);
    assert_eq!(placed(&key, OVERLAP, false, &delete, &[]), [doc! { "q": { "_id": 7 }, "limit": 1 }]);
}

#[test]
fn an_update_of_the_key_is_judged_by_the_server_or_written_whole() {
    let key = key(doc! { "k": 1 });
    let update = write(Content::Patch(vec![diff(rawdoc! { "u": { "k": 6 } })]));
    let stands = [rawdoc! { "_id": 7, "k": 5 }];
    let judged = &placed(&key, AFTER, false, &update, &stands)[0];
    assert_eq!(judged, &doc! { "q": { "_id": 7, "k": 5 }, "u": { "$set": { "k": 6 } } });
    assert_eq!(placed(&key, AFTER, true, &update, &stands), [doc! { "refetch": true }]);
    let other = write(Content::Patch(vec![diff(rawdoc! { "u": { "x": 6 } })]));
    assert_ne!(placed(&key, AFTER, true, &other, &stands), [doc! { "refetch": true }]);
}

#[test]
fn a_document_and_an_update_of_its_key_go_one_after_the_other() {
    let key = key(doc! { "k": 1 });
    let base = bytes(&rawdoc! { "_id": 7, "k": 2 });
    let merged = |patch| write(Content::Patched { base: base.clone(), patches: vec![patch], inserted: false });
    let harmless = merged(diff(rawdoc! { "i": { "x": 1 } }));
    let all = placed(&key, AFTER, false, &harmless, &[]);
    assert_eq!(all.len(), 1);
    assert_eq!(all[0].get_document("q").unwrap(), &doc! { "_id": 7, "k": 2 });
    assert!(all[0].get_bool("upsert").unwrap());
    let changing = merged(diff(rawdoc! { "u": { "k": 3 } }));
    let all = placed(&key, AFTER, false, &changing, &[rawdoc! { "k": 1 }]);
    let queries: Vec<&Document> = all.iter().map(|statement| statement.get_document("q").unwrap()).collect();
    assert_eq!(queries, [&doc! { "_id": 7, "k": 1 }, &doc! { "_id": 7, "k": 2 }, &doc! { "_id": 7, "k": 2 }]);
    assert_eq!(placed(&key, AFTER, true, &changing, &[]), [doc! { "refetch": true }]);
}

#[test]
fn a_collation_of_the_collection_is_put_aside_for_upserts_only() {
    let key = ShardKey::of(&doc! { "k": 1 }, true).unwrap();
    let replace = write(Content::Replace(bytes(&rawdoc! { "_id": 7, "k": "b" })));
    let upsert = doc! { "q": { "_id": 7, "k": "b" }, "collation": { "locale": "simple" },
    "u": { "_id": 7, "k": "b" }, "upsert": true };
    let delete = doc! { "q": { "_id": 7 }, "limit": 1 };
    assert_eq!(placed(&key, AFTER, false, &replace, &[rawdoc! { "k": "a" }]), [delete.clone(), upsert]);
    assert_eq!(placed(&key, AFTER, false, &write(Content::Delete), &[rawdoc! { "k": "a" }]), [delete]);
}

#[test]
fn a_document_with_an_array_in_the_key_has_no_place() {
    let key = key(doc! { "k": 1 });
    let replace = write(Content::Replace(bytes(&rawdoc! { "_id": 7, "k": [1] })));
    let rules = Rules { key: &key, fallback: true, form: AFTER };
    let refused = place(&replace, plan(&replace, AFTER).unwrap(), &[], rules).unwrap().unwrap_err();
    let error = no_place(&refused);
    assert_eq!(error.code, 61);
    assert!(error.message.contains("`k`"), "{}", error.message);
}

#[test]
fn refusals_about_the_key_are_told_from_others() {
    let error = |code| StatementError {
        at: std::time::Instant::now(),
        code,
        message: "no".to_owned(),
        key_pattern: None,
        key_value: None,
    };
    let update = Content::Patch(Vec::new());
    let document = Content::Replace(Bytes::new());
    for code in [20, 61, 66, 72, 31025] {
        assert!(is_about_the_key(&update, &error(code)), "{code}");
    }
    assert!(!is_about_the_key(&update, &error(121)) && !is_about_the_key(&document, &error(66)));
    let named = changed_key(&key(doc! { "k": "hashed" }), &error(31025));
    for part in ["hashed", "incr_sync.executor.immutable_shard_key_fallback", "31025"] {
        assert!(named.message.contains(part), "{}", named.message);
    }
}
