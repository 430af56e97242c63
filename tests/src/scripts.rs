//! Every DDL that a source can log, as lists of commands that the tests run on real servers.
//!
//! One list serves the sink's tests (applied and replayed from every entry) and the end-to-end tests (captured, copied,
//! killed in the middle), so that a form that is added here is tried in all of them. A step says from which server
//! version on it exists; older servers leave it out. Nothing here compares anything.

use bson::{DateTime, Document, doc};
use mongodb::Client;
use oplogue_tests::collector::by_change_stream;

/// A command, the database it runs in, and the first version that knows it (44, 50, 60).
#[derive(Debug, Clone)]
pub(crate) struct Step {
    pub(crate) database: String,
    pub(crate) command: Document,
    since: u32,
    by_oplog_only: bool,
}

impl Step {
    fn new(database: &str, command: Document) -> Self {
        Self { database: database.to_owned(), command, since: 44, by_oplog_only: false }
    }

    fn since(self, since: u32) -> Self {
        Self { since, ..self }
    }

    /// No change stream shows it.
    fn by_oplog_only(self) -> Self {
        Self { by_oplog_only: true, ..self }
    }
}

/// The version of two that knows less: what a target lacks cannot be tried from any source.
pub(crate) fn older<'a>(one: &'a str, other: &'a str) -> &'a str {
    if number(one) < number(other) { one } else { other }
}

/// The steps that servers from `version` on know, and that the way of reading shows. Says what is left out.
pub(crate) fn known(version: &str, steps: Vec<Step>) -> Vec<Step> {
    let (steps, newer): (Vec<Step>, Vec<Step>) = steps.into_iter().partition(|step| step.since <= number(version));
    if !newer.is_empty() {
        println!("left out on MongoDB {version}: {} commands that are newer", newer.len());
    }
    let (steps, hidden): (Vec<Step>, Vec<Step>) =
        steps.into_iter().partition(|step| !(step.by_oplog_only && by_change_stream()));
    for step in hidden {
        println!("left out by change stream: {}, which it does not show", step.command);
    }
    steps
}

/// Runs the steps, all of which the server must know.
pub(crate) async fn run(client: &Client, steps: &[Step]) -> anyhow::Result<()> {
    for step in steps {
        let done = client.database(&step.database).run_command(step.command.clone()).await;
        done.map_err(|e| anyhow::anyhow!("{} in {}: {e}", step.command, step.database))?;
    }
    Ok(())
}

fn number(version: &str) -> u32 {
    let digits: String = version.chars().filter(char::is_ascii_digit).take(2).collect();
    digits.parse().unwrap_or(60)
}

fn insert(into: &str, ids: std::ops::Range<i32>) -> Document {
    let documents: Vec<Document> = ids.map(|id| doc! { "_id": id, "a": id, "in": into }).collect();
    doc! { "insert": into, "documents": documents }
}

fn rename(from: &str, to: &str, drop_target: bool) -> Step {
    Step::new("admin", doc! { "renameCollection": from, "to": to, "dropTarget": drop_target })
}

/// `create` with every option, and `collMod` of what can be changed.
pub(crate) fn options(db: &str) -> Vec<Step> {
    let at = |command| Step::new(db, command);
    let zlib = doc! { "wiredTiger": { "configString": "block_compressor=zlib" } };
    vec![
        at(doc! { "create": "plain" }),
        at(doc! { "create": "cap", "capped": true, "size": 100_000, "max": 5 }),
        at(insert("cap", 0..8)),
        at(doc! { "create": "val", "validator": { "a": { "$gte": 1 } }, "validationLevel": "moderate", "validationAction": "warn" }),
        at(insert("val", 0..3)),
        at(doc! { "create": "coll", "collation": { "locale": "en", "strength": 2 } }),
        at(doc! { "insert": "coll", "documents": [{ "_id": "A" }, { "_id": "b" }] }),
        at(doc! { "delete": "coll", "deletes": [{ "q": { "_id": "a" }, "limit": 1 }] }),
        at(doc! { "insert": "coll", "documents": [{ "_id": "a" }] }),
        at(doc! { "create": "pre", "changeStreamPreAndPostImages": { "enabled": true } }).since(60),
        at(doc! { "collMod": "pre", "changeStreamPreAndPostImages": { "enabled": false } }).since(60),
        at(doc! { "collMod": "plain", "changeStreamPreAndPostImages": { "enabled": true } }).since(60),
        at(doc! { "create": "rec", "recordPreImages": true }),
        at(doc! { "create": "clu", "clusteredIndex": { "key": { "_id": 1 }, "unique": true, "name": "mine" }, "expireAfterSeconds": 31_536_000 })
            .since(60),
        at(insert("clu", 0..3)).since(60),
        at(doc! { "collMod": "clu", "expireAfterSeconds": "off" }).since(60),
        at(doc! { "create": "se", "storageEngine": zlib.clone(), "indexOptionDefaults": { "storageEngine": zlib } }),
        at(doc! { "collMod": "val", "validator": { "a": { "$gte": 0 } }, "validationLevel": "strict", "validationAction": "error" }),
        at(doc! { "collMod": "plain" }),
        at(doc! { "collMod": "cap", "cappedSize": 200_192, "cappedMax": 10 }).since(60),
        at(insert("cap", 8..12)),
    ]
}

/// Time-series: buckets, granularity, expiry, indexes, and one that is dropped and made again.
pub(crate) fn time_series(db: &str) -> Vec<Step> {
    let at = |command| Step::new(db, command).since(50);
    let measure = |second: i64, meta: i32| doc! { "t": DateTime::from_millis(1_767_225_600_000 + second * 1000), "m": meta, "v": second };
    let create = |name: &str| doc! { "create": name, "timeseries": { "timeField": "t", "metaField": "m", "granularity": "seconds" } };
    vec![
        at(create("ts")),
        at(doc! { "insert": "ts", "documents": [measure(0, 1), measure(1, 1), measure(2, 2)] }),
        at(doc! { "insert": "ts", "documents": [measure(30, 1)] }),
        at(doc! { "delete": "ts", "deletes": [{ "q": { "m": 2 }, "limit": 0 }] }).since(60),
        at(doc! { "collMod": "ts", "timeseries": { "granularity": "minutes" } }),
        at(doc! { "collMod": "ts", "expireAfterSeconds": 315_360_000 }),
        at(doc! { "createIndexes": "ts", "indexes": [{ "key": { "m": 1, "t": 1 }, "name": "mt" }, { "key": { "t": -1 }, "name": "t" }] }),
        at(doc! { "collMod": "ts", "index": { "name": "mt", "hidden": true } }),
        at(doc! { "createIndexes": "ts", "indexes": [{ "key": { "v": 1 }, "name": "v" }] }).since(60),
        at(doc! { "createIndexes": "ts", "indexes": [{ "key": { "t": 1 }, "name": "tp", "partialFilterExpression": { "m": 1 } }] }).since(60),
        at(doc! { "dropIndexes": "ts", "index": "mt" }),
        at(doc! { "create": "on_ts", "viewOn": "ts", "pipeline": [{ "$match": { "m": 1 } }] }),
        at(create("gone")),
        at(doc! { "insert": "gone", "documents": [measure(5, 1)] }),
        at(doc! { "drop": "gone" }),
        at(create("gone")),
        at(doc! { "insert": "gone", "documents": [measure(6, 1)] }),
    ]
}

/// Views in every state of their lives, on collections, on views and beside collections of their name.
pub(crate) fn views(db: &str) -> Vec<Step> {
    let at = |command| Step::new(db, command);
    vec![
        at(insert("base", 0..3)),
        at(insert("other", 0..3)),
        at(doc! { "create": "v", "viewOn": "base", "pipeline": [{ "$match": { "a": 1 } }] }),
        at(
            doc! { "create": "w", "viewOn": "v", "pipeline": [{ "$lookup": { "from": "other", "localField": "a", "foreignField": "a", "as": "j" } }] },
        ),
        at(
            doc! { "create": "u", "viewOn": "base", "pipeline": [{ "$unionWith": { "coll": "other", "pipeline": [] } }] },
        ),
        at(doc! { "collMod": "v", "viewOn": "other", "pipeline": [] }),
        at(doc! { "drop": "u" }),
        at(insert("u", 0..2)),
        at(doc! { "drop": "u" }),
        at(doc! { "create": "u", "viewOn": "w", "pipeline": [] }),
        at(doc! { "create": "x", "viewOn": "nothing", "pipeline": [] }),
        at(doc! { "drop": "x" }),
    ]
}

/// Every view of a database at once, and views after it. Before 6.0 no role lets a user do that, where there are users.
pub(crate) fn views_dropped_together(db: &str) -> Vec<Step> {
    let at = |command| Step::new(db, command);
    let create = |name: &str| doc! { "create": name, "viewOn": "base", "pipeline": [] };
    vec![
        at(insert("base", 0..3)),
        at(create("v")),
        at(create("w")),
        at(doc! { "drop": "system.views" }),
        at(create("w")),
        at(insert("v", 0..2)),
    ]
}

/// Indexes of every kind, changed and dropped in every way.
pub(crate) fn indexes(db: &str) -> Vec<Step> {
    let at = |command| Step::new(db, command);
    let build = |indexes: Vec<Document>| Step::new(db, doc! { "createIndexes": "i", "indexes": indexes });
    let change = |index: Document| Step::new(db, doc! { "collMod": "i", "index": index });
    vec![
        at(doc! { "create": "empty" }),
        at(
            doc! { "createIndexes": "empty", "indexes": [{ "key": { "a": 1 }, "name": "a" }, { "key": { "b": -1 }, "name": "b" }] },
        ),
        at(doc! { "createIndexes": "implicit", "indexes": [{ "key": { "a": 1 }, "name": "a" }] }),
        at(
            doc! { "insert": "i", "documents": (0..5).map(|id| doc! { "_id": id, "p": id, "q": id }).collect::<Vec<_>>() },
        ),
        build(vec![
            doc! { "key": { "u": 1 }, "name": "u", "unique": true, "partialFilterExpression": { "u": { "$gt": 1 } } },
            doc! { "key": { "$**": 1 }, "name": "wild", "wildcardProjection": { "x": 1 } },
            doc! { "key": { "tx": "text" }, "name": "tx", "weights": { "tx": 3 } },
            doc! { "key": { "g": "2dsphere" }, "name": "g" },
            doc! { "key": { "g2": "2d" }, "name": "g2", "bits": 20 },
            doc! { "key": { "h": "hashed" }, "name": "h" },
            doc! { "key": { "c": 1 }, "name": "c", "collation": { "locale": "de" } },
            doc! { "key": { "e": 1 }, "name": "e", "expireAfterSeconds": 1_000_000 },
            doc! { "key": { "s": 1, "a": -1 }, "name": "s", "sparse": true, "hidden": true },
        ]),
        build(vec![doc! { "key": { "a": 1 }, "name": "a" }]),
        change(doc! { "name": "a", "hidden": true }),
        change(doc! { "keyPattern": { "e": 1 }, "expireAfterSeconds": 2_000_000 }),
        change(doc! { "name": "s", "expireAfterSeconds": 3_000_000 }).since(70),
        build(vec![doc! { "key": { "p": 1 }, "name": "p" }]),
        change(doc! { "name": "p", "prepareUnique": true }).since(60),
        at(doc! { "insert": "i", "documents": [{ "_id": 100, "p": 1_000, "q": 1_000 }] }),
        at(doc! { "delete": "i", "deletes": [{ "q": { "_id": { "$lt": 5 } }, "limit": 0 }] }),
        change(doc! { "name": "p", "unique": true }).since(60),
        build(vec![doc! { "key": { "q": 1 }, "name": "q" }]),
        change(doc! { "name": "q", "prepareUnique": true }).since(60),
        change(doc! { "name": "q", "expireAfterSeconds": 4_000_000 }).since(60),
        at(doc! { "dropIndexes": "i", "index": "wild" }),
        at(doc! { "dropIndexes": "i", "index": { "g": "2dsphere" } }),
        at(doc! { "dropIndexes": "i", "index": ["h", "c"] }),
        at(doc! { "dropIndexes": "empty", "index": "*" }),
        at(doc! { "createIndexes": "again", "indexes": [{ "key": { "k": 1 }, "name": "k", "unique": true }] }),
        at(insert("again", 0..3).tap_k()),
        at(doc! { "dropIndexes": "again", "index": "k" }),
        at(insert("again", 10..12)),
        at(doc! { "createIndexes": "again", "indexes": [{ "key": { "k": 1 }, "name": "k", "sparse": true }] }),
    ]
}

/// Gives the documents of an `insert` distinct values of `k`.
trait TapK {
    fn tap_k(self) -> Self;
}

impl TapK for Document {
    fn tap_k(mut self) -> Self {
        for (at, document) in self.get_array_mut("documents").into_iter().flatten().enumerate() {
            if let Some(document) = document.as_document_mut() {
                document.insert("k", i64::try_from(at).unwrap_or_default());
            }
        }
        self
    }
}

/// Renames, and everything that the server does by making a collection and renaming it.
pub(crate) fn renames(db: &str, other: &str) -> Vec<Step> {
    let at = |command| Step::new(db, command);
    let full = |db: &str, name: &str| format!("{db}.{name}");
    let out = |to: bson::Bson| Step::new(db, doc! { "aggregate": "src", "pipeline": [{ "$out": to }], "cursor": {} });
    let reduce = |out: bson::Bson| {
        let (map, reduce) = ("function() { emit(this._id, 1) }", "function(k, v) { return 1 }");
        Step::new(db, doc! { "mapReduce": "src", "map": map, "reduce": reduce, "out": out })
    };
    vec![
        at(insert("src", 0..4)),
        at(insert("r", 0..3)),
        at(doc! { "createIndexes": "r", "indexes": [{ "key": { "a": 1 }, "name": "a", "unique": true }] }),
        rename(&full(db, "r"), &full(db, "r2"), false),
        at(insert("r", 50..52)),
        rename(&full(db, "r2"), &full(db, "r"), true),
        at(insert("r", 60..62)),
        rename(&full(db, "r"), &full(other, "r"), false),
        Step::new(other, insert("r", 70..72)),
        at(insert("r", 80..82)),
        rename(&full(other, "r"), &full(db, "r"), true),
        at(insert("r", 90..92)),
        at(doc! { "convertToCapped": "r", "size": 65_536 }),
        at(insert("r", 100..102)),
        at(doc! { "cloneCollectionAsCapped": "src", "toCollection": "cloned", "size": 65_536 }),
        at(insert("cloned", 10..12)),
        at(doc! { "create": "e", "capped": true, "size": 65_536 }),
        at(insert("e", 0..4)),
        at(doc! { "emptycapped": "e" }).by_oplog_only(),
        at(insert("e", 4..6)),
        out("out".into()),
        at(insert("out", 200..202)),
        out("out".into()),
        out(doc! { "db": other, "coll": "far" }.into()),
        at(
            doc! { "aggregate": "src", "pipeline": [{ "$set": { "merged": true } }, { "$merge": { "into": "out" } }], "cursor": {} },
        ),
        reduce("reduced".into()),
        reduce(doc! { "replace": "reduced" }.into()),
        reduce(doc! { "merge": "reduced" }.into()),
        at(doc! { "compact": "src", "force": true }),
    ]
}

/// Names that are easily taken for one another, or for something else.
pub(crate) fn names(db: &str) -> Vec<Step> {
    let at = |command| Step::new(db, command);
    let (long, longest) = ("n".repeat(230), "m".repeat(255 - db.len() - 1));
    let odd = "odd name.with.dots ü日本";
    vec![
        at(insert("case", 0..2)),
        at(insert("CASE", 5..7)),
        at(doc! { "drop": "case" }),
        at(insert("Case", 8..9)),
        at(doc! { "drop": "CASE" }),
        at(insert("case", 10..12)),
        at(insert(&long, 0..2)),
        at(insert(&longest, 0..2)),
        rename(&format!("{db}.{long}"), &format!("{db}.{odd}"), false),
        at(insert(odd, 5..7)),
        at(doc! { "createIndexes": odd, "indexes": [{ "key": { "a": 1 }, "name": "a" }] }),
        at(insert("system.js", 0..2)),
        at(doc! { "insert": "drop", "documents": [
            { "drop": "case", "_id": 1 }, { "renameCollection": "x", "_id": 2 }, { "dropDatabase": 1, "_id": 3 },
            { "applyOps": [], "_id": 4 }, { "create": "case", "_id": 5 },
        ] }),
        at(doc! { "update": "drop", "updates": [{ "q": { "_id": 1 }, "u": { "collMod": "case", "_id": 1 } }] }),
    ]
}

/// A database that is dropped with everything in it and made again.
pub(crate) fn dropped_database(db: &str) -> Vec<Step> {
    let mut steps = views(db);
    steps.extend(time_series(db));
    steps.push(Step::new(db, doc! { "dropDatabase": 1 }));
    steps.push(Step::new(db, insert("v", 0..3)));
    steps.push(Step::new(db, doc! { "create": "base", "viewOn": "v", "pipeline": [] }));
    steps.push(Step::new(db, doc! { "dropDatabase": 1 }));
    steps.push(Step::new(db, insert("base", 40..42)));
    steps
}

/// All of them, in databases that begin with `prefix`.
pub(crate) fn everything(prefix: &str) -> Vec<Step> {
    let db = |name: &str| format!("{prefix}{name}");
    [
        options(&db("o")),
        time_series(&db("t")),
        views(&db("v")),
        views_dropped_together(&db("w")).into_iter().map(|step| step.since(60)).collect(),
        indexes(&db("i")),
        renames(&db("r"), &db("s")),
        names(&db("n")),
        dropped_database(&db("d")),
    ]
    .concat()
}
