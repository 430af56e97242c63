//! Clusters of older servers: two shards whose streams are merged, with every database at home on one of them.
//!
//! What would make and move chunks there is not what this harness can ask for, and chunks that move are followed only
//! from 6.0 on anyway: older clusters are read with their balancer off. So the collections here are those that no chunk
//! of ever moves.

use anyhow::Result;
use bson::{Document, doc};
use oplogue_tests::collector::{Collector, HAND_OVER};
use oplogue_tests::servers::cluster::Cluster;
use oplogue_tests::servers::wire::{Gossip, check};
use oplogue_tests::servers::{Options, ReplicaSet};

use super::rig::{PATIENCE, Rig};

/// What a run says of any cluster that could not tell leftovers of moved chunks apart.
const BALANCER: &str = "balancer";

const EVERYWHERE: [&str; 5] = ["shop.orders", "shop.notes", "shop.newest", "crm.people", "crm.later"];

#[tokio::test]
async fn of_5_0() -> Result<()> {
    two_shards("5.0.4").await
}

#[tokio::test]
async fn of_4_4() -> Result<()> {
    two_shards("4.4.2").await
}

async fn two_shards(version: &str) -> Result<()> {
    let options = Options { version: version.to_owned(), ..Options::default() };
    let target = ReplicaSet::start(Options { name: "target".to_owned(), ..Options::default() });
    let (cluster, target) = tokio::join!(Cluster::start(&options, 2), target);
    let rig = Rig { cluster: cluster?, target: target?, gossip: Gossip::default() };
    rig.cluster.create_database("shop", 0).await?;
    rig.cluster.create_database("crm", 1).await?;
    write(&rig, 0, "shop", insert("orders", 0..300)).await?;
    write(&rig, 1, "crm", insert("people", 0..300)).await?;
    let mut collector = Collector::start(&rig.config()?)?;
    collector.wait_log(HAND_OVER, PATIENCE).await?;
    for round in 0..30 {
        let (first, moved) = (300 + round * 10, round * 3);
        write(&rig, 0, "shop", insert("orders", first..first + 10)).await?;
        write(&rig, 1, "crm", insert("people", first..first + 10)).await?;
        for (shard, database, name) in [(0, "shop", "orders"), (1, "crm", "people")] {
            let set = doc! { "q": { "_id": moved }, "u": { "$set": { "n": round, "in.k": round } } };
            let delete = doc! { "q": { "_id": moved + 1 }, "limit": 1 };
            write(&rig, shard, database, doc! { "update": name, "updates": [set] }).await?;
            write(&rig, shard, database, doc! { "delete": name, "deletes": [delete] }).await?;
        }
        if round == 10 {
            collector.kill9();
            collector.run()?;
        }
    }
    // DDL of one shard each.
    write(&rig, 0, "shop", insert("notes", 0..5)).await?;
    write(&rig, 0, "shop", doc! { "createIndexes": "orders", "indexes": [{ "key": { "n": 1 }, "name": "n" }] }).await?;
    write(&rig, 1, "crm", insert("gone", 0..5)).await?;
    write(&rig, 1, "crm", doc! { "drop": "gone" }).await?;
    write(&rig, 1, "crm", insert("later", 0..5)).await?;
    if version == "4.4.2" {
        // Logged like the documents of a chunk that moves. A shard of 5.0 or later refuses the command.
        let copy = doc! { "cloneCollectionAsCapped": "orders", "toCollection": "newest", "size": 4096 };
        write(&rig, 0, "shop", copy).await?;
        write(&rig, 0, "shop", insert("newest", 900..902)).await?;
    }
    rig.finish(&EVERYWHERE, collector, &[BALANCER, "an earlier run of this job"]).await?;
    let left = rig.target.client().database("crm").list_collection_names().await?;
    anyhow::ensure!(!left.contains(&"gone".to_owned()), "{left:?}");
    Ok(())
}

fn insert(into: &str, ids: std::ops::Range<i32>) -> Document {
    let documents: Vec<Document> = ids.map(|id| doc! { "_id": id, "in": { "k": 0 } }).collect();
    doc! { "insert": into, "documents": documents }
}

async fn write(rig: &Rig, shard: usize, database: &str, mut command: Document) -> Result<()> {
    command.insert("writeConcern", doc! { "w": "majority" });
    let mut router = rig.cluster.router(&rig.gossip);
    check(router.run(shard, database, command).await?).map(|_| ())
}
