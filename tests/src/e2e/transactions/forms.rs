//! Every form in which a server logs several operations as one, or one as several, on each version.
//!
//! What the forms look like differs between 4.4, 5.0 and 6.0, and what a client's `applyOps` does differs from what it
//! says. The unit tests of the decoder know the shapes; here the servers write them. Nothing here is about size or crashes.

use anyhow::Result;
use bson::{Bson, Document, doc};
use mongodb::options::{IndexOptions, ReturnDocument};
use mongodb::{Client, Database, IndexModel};
use oplogue_tests::collector::Collector;
use oplogue_tests::prepared::Transaction;

use super::super::rig::{Rig, handed_over};
use super::{CACHE_GB, THIRD_OF_AN_ENTRY, collection, coordinator, rig, seed, shows_apply_ops};

#[tokio::test]
async fn every_form_of_6_0() -> Result<()> {
    every_form("6.0.27").await
}

#[tokio::test]
async fn every_form_of_5_0() -> Result<()> {
    every_form("5.0.4").await
}

#[tokio::test]
async fn every_form_of_4_4() -> Result<()> {
    every_form("4.4.2").await
}

async fn every_form(version: &str) -> Result<()> {
    let rig = rig(version, CACHE_GB).await?;
    seed(&rig, &["c00", "c01", "gone"]).await?;
    let config = rig.config()?.set("filter.ddl_enable", true);
    let config = match rig.source.has("DDL in change streams", (6, 0)) {
        true => config,
        false => config.by_oplog_only("change streams before 6.0 show no DDL"),
    };
    let mut collector = Collector::start(&config)?;
    handed_over(&mut collector).await?;
    let client = rig.source.client();
    one_entry(&client).await?;
    several_entries(&rig).await?;
    let coordinator = coordinator(&rig).await?;
    prepared(&rig, &coordinator, 1, 10).await?;
    prepared(&rig, &coordinator, 3, THIRD_OF_AN_ENTRY).await?;
    creating(&client).await?;
    if shows_apply_ops() {
        apply_ops(&coordinator).await?;
    }
    retryable(&client.database("shop")).await?;
    rig.finish(rig.comparison(), collector, &[]).await
}

async fn one_entry(client: &Client) -> Result<()> {
    let shop = client.database("shop");
    let (first, second) = (shop.collection::<Document>("c00"), shop.collection::<Document>("c01"));
    let mut transaction = Transaction::begin(client).await?;
    let session = transaction.session();
    first.insert_one(doc! { "_id": "comes and goes" }).session(&mut *session).await?;
    first.update_one(doc! { "_id": "comes and goes" }, doc! { "$set": { "x": 1 } }).session(&mut *session).await?;
    first.delete_one(doc! { "_id": "comes and goes" }).session(&mut *session).await?;
    second.update_one(doc! { "_id": "seed" }, doc! { "$inc": { "n": 1 } }).session(&mut *session).await?;
    second.update_one(doc! { "_id": "seed" }, doc! { "$set": { "a.b": [1, 2] } }).session(&mut *session).await?;
    first.insert_one(doc! { "_id": "stays" }).session(session).await?;
    transaction.commit().await?;
    let mut aborted = Transaction::begin(client).await?;
    first.insert_one(doc! { "_id": "never" }).session(aborted.session()).await?;
    aborted.abort().await
}

async fn several_entries(rig: &Rig) -> Result<()> {
    let mut transaction = Transaction::begin(&rig.source.client()).await?;
    transaction.insert("c00", "large", 4, THIRD_OF_AN_ENTRY).await?;
    transaction.commit().await
}

/// One that is committed and one that is aborted, with writes of others in between.
async fn prepared(rig: &Rig, client: &Client, count: usize, padding: usize) -> Result<()> {
    let second = collection(rig, "c01");
    let mut kept = Transaction::begin(client).await?;
    kept.insert("c00", &format!("kept{padding}-"), count, padding).await?;
    kept.prepare().await?;
    let mut aborted = Transaction::begin(client).await?;
    aborted.insert("c00", &format!("never{padding}-"), count, padding).await?;
    aborted.prepare().await?;
    for number in 0..20 {
        second.insert_one(doc! { "_id": format!("between{padding}-{number}") }).await?;
    }
    aborted.abort().await?;
    second.insert_one(doc! { "_id": format!("after{padding}") }).await?;
    kept.commit().await
}

/// Collections and indexes made in a transaction, with writes to them and to others around.
async fn creating(client: &Client) -> Result<()> {
    let shop = client.database("shop");
    let mut transaction = Transaction::begin(client).await?;
    let session = transaction.session();
    let others = shop.collection::<Document>("c01");
    others.insert_one(doc! { "_id": "before the create" }).session(&mut *session).await?;
    shop.create_collection("made").session(&mut *session).await?;
    let made = shop.collection::<Document>("made");
    let unique = IndexOptions::builder().unique(true).build();
    made.create_index(IndexModel::builder().keys(doc! { "u": 1 }).options(unique).build())
        .session(&mut *session)
        .await?;
    made.insert_one(doc! { "_id": 1, "u": 1 }).session(&mut *session).await?;
    made.update_one(doc! { "_id": 1 }, doc! { "$set": { "u": 2 } }).session(&mut *session).await?;
    made.insert_one(doc! { "_id": 2, "u": 5 }).session(&mut *session).await?;
    others.insert_one(doc! { "_id": "after the create" }).session(&mut *session).await?;
    // Implicitly, by its first document.
    let implicit = shop.collection::<Document>("implicit");
    implicit.insert_one(doc! { "_id": 1 }).session(session).await?;
    transaction.commit().await?;
    made.insert_one(doc! { "_id": 3, "u": 3 }).await?;
    Ok(())
}

/// The command, which servers log in one entry, in one for each nested command, or in one for each operation.
async fn apply_ops(client: &Client) -> Result<()> {
    let insert = |collection: &str, document: Document| {
        doc! { "op": "i", "ns": format!("shop.{collection}"), "o": document }
    };
    let command = |o: Document, ns: &str| doc! { "op": "c", "ns": format!("{ns}.$cmd"), "o": o };
    let update = |o: Document, o2: Document| doc! { "op": "u", "ns": "shop.c00", "o": o, "o2": o2 };
    let admin = client.database("admin");
    let things = client.database("shop").collection("c00");
    things.insert_many((0..4).map(|n| doc! { "_id": format!("applied{n}"), "n": n })).await?;
    let delete = doc! { "op": "d", "ns": "shop.c00", "o": { "_id": "applied3", "n": 77 } };
    let nested = command(doc! { "applyOps": [insert("c00", doc! { "_id": "nested" })] }, "admin");
    // Without this the server makes an index of the first version.
    let id_index = doc! { "key": { "_id": 1 }, "name": "_id_", "v": 2 };
    let create = |name: &str| command(doc! { "create": name, "idIndex": id_index.clone() }, "shop");
    let nested_ddl = doc! { "applyOps": [create("nested"), insert("nested", doc! { "_id": 1 })] };
    let lists: [Vec<Document>; 5] = [
        vec![insert("c00", doc! { "_id": "applied" }), insert("c01", doc! { "_id": "applied" })],
        // What the command does differs from what it says: it replaces, it goes by `_id` alone, it creates.
        vec![
            insert("c00", doc! { "_id": "applied0", "new": true }),
            update(doc! { "$set": { "x": 1 } }, doc! { "_id": "applied1", "n": 77 }),
            update(doc! { "$set": { "x": 1 } }, doc! { "_id": "applied99" }),
            delete,
        ],
        vec![nested, insert("c01", doc! { "_id": "beside" })],
        vec![
            insert("c00", doc! { "_id": "before" }),
            create("applied"),
            insert("applied", doc! { "_id": 1 }),
            command(doc! { "drop": "gone" }, "shop"),
            insert("c00", doc! { "_id": "behind" }),
        ],
        vec![command(nested_ddl, "admin")],
    ];
    for list in lists {
        let list: Vec<Bson> = list.into_iter().map(Bson::Document).collect();
        admin.run_command(doc! { "applyOps": list }).await?;
    }
    Ok(())
}

/// Retryable statements have `prevOpTime` and session too, and some leave images of documents in the oplog.
async fn retryable(shop: &Database) -> Result<()> {
    let things = shop.collection::<Document>("c00");
    things.insert_many((0..5).map(|n| doc! { "_id": format!("again{n}"), "n": n })).await?;
    let id = |n: i32| doc! { "_id": format!("again{n}") };
    let change = doc! { "$inc": { "n": 10 } };
    things.find_one_and_update(id(0), change.clone()).await?;
    things.find_one_and_update(id(1), change).return_document(ReturnDocument::After).await?;
    things.find_one_and_delete(id(2)).await?;
    things.find_one_and_replace(id(3), doc! { "replaced": true }).await?;
    // Servers that can keep images beside the oplog are told to keep them in it.
    let inside = doc! { "setParameter": 1, "storeFindAndModifyImagesInSideCollection": false };
    let known = shop.client().database("admin").run_command(inside).await.is_ok();
    if known {
        things.find_one_and_update(id(0), doc! { "$set": { "image": "in the oplog" } }).await?;
        things.find_one_and_delete(id(1)).await?;
    }
    things.delete_many(doc! { "_id": { "$in": ["again3", "again4"] } }).await?;
    Ok(())
}
