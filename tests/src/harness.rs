//! Tests of the harness itself: a set starts, has its users, loses and regains members, and leaves nothing.
//!
//! They stand in the test binary because they need servers. They are few: what the other tests use all the
//! time is proven there. None of them starts the collector.

use std::time::Duration;

use bson::doc;
use mongodb::IndexModel;
use oplogue_tests::compare::{self, Comparison, DifferenceKind};
use oplogue_tests::load::{Load, LoadOptions};
use oplogue_tests::servers::{Options, ReplicaSet, User};

#[tokio::test]
async fn a_single_member_takes_writes_and_steps_down() {
    let set = ReplicaSet::single().await.unwrap();
    let things = set.client().database("shop").collection("things");
    things.insert_one(doc! { "_id": 1 }).await.unwrap();
    set.step_down().await.unwrap();
    things.insert_one(doc! { "_id": 2 }).await.unwrap();
    assert_eq!(things.count_documents(doc! {}).await.unwrap(), 2);
    let dir = set.dir().to_owned();
    drop(set);
    assert!(!dir.exists());
}

#[tokio::test]
async fn the_guides_users_have_the_guides_rights() {
    let set = ReplicaSet::start(Options::guide_source()).await.unwrap();
    let user = oplogue_tests::servers::connect(&set.uri_as_user()).await.unwrap();
    let oplog = user.database("local").collection::<bson::Document>("oplog.rs");
    assert!(oplog.find_one(doc! {}).await.unwrap().is_some());
    user.database("mongoshake").collection("ckpt_default").insert_one(doc! { "_id": 1 }).await.unwrap();
    let refused = user.database("shop").collection("things").insert_one(doc! { "_id": 1 }).await;
    assert!(refused.unwrap_err().to_string().contains("not authorized"));
    let root = set.client();
    root.database("shop").collection("things").insert_one(doc! { "_id": 1 }).await.unwrap();
    assert_eq!(User::guide_target().roles.len(), 1);
}

#[tokio::test]
async fn three_members_survive_the_loss_of_their_primary() {
    let mut set = ReplicaSet::start(Options::default().with_members(3)).await.unwrap();
    let lost = set.primary().await.unwrap();
    set.kill(lost).unwrap();
    let next = set.primary().await.unwrap();
    assert_ne!(lost, next);
    set.restart(lost).await.unwrap();
    let things = set.client().database("shop").collection("things");
    things.insert_one(doc! { "_id": 1 }).await.unwrap();
}

#[tokio::test]
async fn commands_fail_on_request() {
    let set = ReplicaSet::single().await.unwrap();
    let data = doc! { "failCommands": ["insert"], "errorCode": 8000 };
    set.fail_command(doc! { "times": 1 }, data).await.unwrap();
    let things = set.client().database("shop").collection("things");
    things.insert_one(doc! { "_id": 1 }).await.unwrap_err();
    things.insert_one(doc! { "_id": 1 }).await.unwrap();
    set.heal_commands().await.unwrap();
}

#[tokio::test]
async fn the_load_runs_and_compares_equal_only_with_itself() {
    let set = ReplicaSet::single().await.unwrap();
    let client = set.client();
    let options = LoadOptions { ddl: true, coll_mod: true, odd_names: true, ..LoadOptions::default() };
    Load::prepare(&client, &options, 50).await.unwrap();
    let mut load = Load::start(&client, &options);
    load.reach(3_000, Duration::from_secs(120)).await.unwrap();
    let totals = load.stop().await.unwrap();
    assert_eq!(totals.lost, 0, "seed {}: {totals:?}", options.seed);
    let itself = Comparison::new(client.clone(), client.clone());
    let found = itself.run().await.unwrap();
    assert!(found.is_empty(), "{}", compare::report(&found));
    let renamed = Comparison::new(client.clone(), client.clone()).rename("shop", "mall");
    let found = renamed.run().await.unwrap();
    assert_eq!(found[0].kind, DifferenceKind::MissingCollection);
    assert_eq!(found[0].namespace, "mall.c00");
}

#[tokio::test]
async fn the_comparison_sees_what_a_decoder_would_not() {
    let (source, target) = tokio::join!(ReplicaSet::single(), ReplicaSet::single());
    let (source, target) = (source.unwrap(), target.unwrap());
    let things = |set: &ReplicaSet| set.client().database("shop").collection("things");
    let (left, right) = (things(&source), things(&target));
    left.insert_many([doc! { "_id": 1, "n": 1 }, doc! { "_id": 2 }, doc! { "_id": 3 }]).await.unwrap();
    right.insert_many([doc! { "_id": 1, "n": 1_i64 }, doc! { "_id": 3 }, doc! { "_id": 4 }]).await.unwrap();
    left.create_index(IndexModel::builder().keys(doc! { "n": 1 }).build()).await.unwrap();
    let found = Comparison::new(source.client(), target.client()).run().await.unwrap();
    let kinds: Vec<DifferenceKind> = found.iter().map(|difference| difference.kind).collect();
    use DifferenceKind::{Document, ExtraDocument, Index, MissingDocument};
    assert_eq!(kinds, [Index, Document, MissingDocument, ExtraDocument], "{}", compare::report(&found));
}

#[tokio::test]
async fn older_servers_start_too() {
    let long = std::env::var_os("OPLOGUE_LONG").is_some();
    for version in ["6.0.5", "5.0.4", "4.4.2"].into_iter().filter(|_| long) {
        let options = Options { version: version.to_owned(), ..Options::guide_source() };
        let set = ReplicaSet::start(options).await.unwrap();
        let things = set.client().database("shop").collection("things");
        things.insert_one(doc! { "_id": version }).await.unwrap();
    }
}

/// Two forms of one thing: the source has the first, the target the second.
fn collection_pairs() -> Vec<(bson::Document, bson::Document)> {
    let series = |options: bson::Document| {
        let mut command = doc! { "create": "c", "timeseries": { "timeField": "t", "metaField": "m" } };
        command.extend(options);
        command
    };
    let view = |on: &str, from: &str| doc! { "create": "c", "viewOn": on, "pipeline": [{ "$lookup": { "from": from, "as": "j", "pipeline": [] } }] };
    let zlib = doc! { "wiredTiger": { "configString": "block_compressor=zlib" } };
    let plain = || doc! { "create": "c" };
    let clustered =
        |name: &str| doc! { "create": "c", "clusteredIndex": { "key": { "_id": 1 }, "unique": true, "name": name } };
    vec![
        (doc! { "create": "c", "capped": true, "size": 8192 }, plain()),
        (doc! { "create": "c", "capped": true, "size": 8192 }, doc! { "create": "c", "capped": true, "size": 16384 }),
        (
            doc! { "create": "c", "capped": true, "size": 8192, "max": 3 },
            doc! { "create": "c", "capped": true, "size": 8192 },
        ),
        (doc! { "create": "c", "validator": { "a": 1 } }, doc! { "create": "c", "validator": { "a": 2 } }),
        (
            doc! { "create": "c", "validator": { "a": 1 }, "validationLevel": "moderate" },
            doc! { "create": "c", "validator": { "a": 1 } },
        ),
        (
            doc! { "create": "c", "validator": { "a": 1 }, "validationAction": "warn" },
            doc! { "create": "c", "validator": { "a": 1 } },
        ),
        (
            doc! { "create": "c", "collation": { "locale": "en" } },
            doc! { "create": "c", "collation": { "locale": "de" } },
        ),
        (doc! { "create": "c", "changeStreamPreAndPostImages": { "enabled": true } }, plain()),
        (doc! { "create": "c", "recordPreImages": true }, plain()),
        (doc! { "create": "c", "storageEngine": &zlib }, plain()),
        (doc! { "create": "c", "indexOptionDefaults": { "storageEngine": zlib } }, plain()),
        (clustered("x"), plain()),
        (clustered("x"), clustered("y")),
        (
            doc! { "create": "c", "clusteredIndex": { "key": { "_id": 1 }, "unique": true }, "expireAfterSeconds": 9000 },
            doc! { "create": "c", "clusteredIndex": { "key": { "_id": 1 }, "unique": true }, "expireAfterSeconds": 9001 },
        ),
        (series(doc! {}), plain()),
        (series(doc! { "expireAfterSeconds": 9000 }), series(doc! {})),
        (
            series(doc! {}),
            doc! { "create": "c", "timeseries": { "timeField": "t", "metaField": "m", "granularity": "hours" } },
        ),
        (series(doc! {}), doc! { "create": "c", "timeseries": { "timeField": "t", "metaField": "k" } }),
        (view("a", "b"), plain()),
        (view("a", "b"), view("x", "b")),
        (view("a", "b"), view("a", "x")),
        (
            doc! { "create": "c", "viewOn": "a", "pipeline": [], "collation": { "locale": "en" } },
            doc! { "create": "c", "viewOn": "a", "pipeline": [] },
        ),
    ]
}

/// The same of indexes.
fn index_pairs() -> Vec<(bson::Document, bson::Document)> {
    let index = |spec: bson::Document| doc! { "createIndexes": "c", "indexes": [spec] };
    let keyed = |mut options: bson::Document| {
        let mut spec = doc! { "key": { "a": 1 }, "name": "n" };
        spec.extend(std::mem::take(&mut options));
        index(spec)
    };
    let plain = || doc! { "create": "c" };
    let mut pairs = vec![
        (keyed(doc! {}), plain()),
        (keyed(doc! {}), index(doc! { "key": { "a": -1 }, "name": "n" })),
        (keyed(doc! {}), index(doc! { "key": { "a": 1.0 }, "name": "other" })),
        (
            index(doc! { "key": { "$**": 1 }, "name": "n", "wildcardProjection": { "x": 1 } }),
            index(doc! { "key": { "$**": 1 }, "name": "n" }),
        ),
        (
            index(doc! { "key": { "a": "text" }, "name": "n", "weights": { "a": 2 } }),
            index(doc! { "key": { "a": "text" }, "name": "n" }),
        ),
        (
            index(doc! { "key": { "a": "text" }, "name": "n", "default_language": "german" }),
            index(doc! { "key": { "a": "text" }, "name": "n" }),
        ),
        (index(doc! { "key": { "a": "2dsphere" }, "name": "n" }), index(doc! { "key": { "a": "2d" }, "name": "n" })),
        (
            index(doc! { "key": { "a": "2d" }, "name": "n", "bits": 20 }),
            index(doc! { "key": { "a": "2d" }, "name": "n" }),
        ),
        (index(doc! { "key": { "a": "hashed" }, "name": "n" }), keyed(doc! {})),
    ];
    for option in [
        doc! { "unique": true },
        doc! { "prepareUnique": true },
        doc! { "sparse": true },
        doc! { "hidden": true },
        doc! { "expireAfterSeconds": 9000 },
        doc! { "partialFilterExpression": { "a": { "$gt": 1 } } },
        doc! { "collation": { "locale": "en" } },
        doc! { "storageEngine": { "wiredTiger": { "configString": "prefix_compression=false" } } },
    ] {
        pairs.push((keyed(option), keyed(doc! {})));
    }
    pairs.push((keyed(doc! { "expireAfterSeconds": 9000 }), keyed(doc! { "expireAfterSeconds": 9001 })));
    pairs
}

#[tokio::test]
async fn the_comparison_sees_every_difference_of_the_catalogue() {
    let (source, target) = tokio::join!(ReplicaSet::single(), ReplicaSet::single());
    let (source_set, target_set) = (source.unwrap(), target.unwrap());
    let (source, target) = (source_set.client(), target_set.client());
    for (left, right) in collection_pairs().into_iter().chain(index_pairs()) {
        for (client, command) in [(&source, &left), (&target, &right)] {
            client.database("x").drop().await.unwrap();
            client.database("x").run_command(command.clone()).await.unwrap_or_else(|e| panic!("{command}: {e}"));
        }
        let found = Comparison::new(source.clone(), target.clone()).run().await.unwrap();
        let seen = |kind| found.iter().any(|difference| difference.kind == kind);
        let (options, index) = (seen(DifferenceKind::Options), seen(DifferenceKind::Index));
        assert!(options || index, "{left}\n{right}\n{}", compare::report(&found));
        let same = Comparison::new(source.clone(), source.clone()).run().await.unwrap();
        assert!(same.is_empty(), "{left} differs from itself: {}", compare::report(&same));
    }
}
