//! Lists, renames and a user's plugin inside transactions: what passes, passes changed; what does not, leaks nowhere.
//!
//! The operations of a transaction go through the same chain as plain entries, in every form that a transaction can
//! have. A hidden collection stands between the visible ones in each of them. Order and size are other tests' affair.

use anyhow::Result;
use bson::{Document, doc};
use mongodb::Client;
use oplogue_tests::collector::Collector;
use oplogue_tests::example::{self, FIELD, MaskField};
use oplogue_tests::prepared::Transaction;
use oplogue_tests::servers::Options;

use super::super::rig::{Rig, handed_over};
use super::{CACHE_GB, THIRD_OF_AN_ENTRY, coordinator, rig, seed, shows_apply_ops};

#[tokio::test]
async fn filters_renames_and_plugins_apply_inside() -> Result<()> {
    let rig = rig(&Options::guide_source().version, CACHE_GB).await?;
    seed(&rig, &["c00", "c01", "hidden"]).await?;
    let plugin = MaskField::install(rig.source.dir())?;
    let config = plugin.join(rig.config()?).set("filter.namespace.white", "shop.c00;shop.c01;shop.made");
    let config = config.set("transform.namespace", "shop.c01:mall.first;shop.made:mall.made");
    let mut collector = Collector::start(&config.set("filter.ddl_enable", true))?;
    handed_over(&mut collector).await?;
    let coordinator = coordinator(&rig).await?;
    for (way, padding) in [("one", 10), ("several", THIRD_OF_AN_ENTRY), ("prepared", 10), ("aborted", 10)] {
        let mut transaction = Transaction::begin(&coordinator).await?;
        fill(&coordinator, &mut transaction, way, padding).await?;
        if matches!(way, "prepared" | "aborted") {
            transaction.prepare().await?;
        }
        match way {
            "aborted" => transaction.abort().await?,
            _ => transaction.commit().await?,
        }
    }
    if shows_apply_ops() {
        through_apply_ops(&rig).await?;
    }
    let passes = |name: &str| matches!(name, "shop.c00" | "shop.c01" | "shop.made");
    let comparison = rig.comparison().only(passes).ignoring_field(FIELD);
    let comparison = comparison.rename("shop.c01", "mall.first").rename("shop.made", "mall.made");
    rig.finish(comparison, collector, &[]).await?;
    for namespace in ["shop.c00", "mall.first", "mall.made"] {
        let unmasked = example::unmasked(&rig.target.client(), namespace).await?;
        anyhow::ensure!(unmasked == 0, "{unmasked} unmasked documents in {namespace}");
    }
    Ok(())
}

/// Writes to what passes and to what does not, in turns, and creates one of each.
async fn fill(client: &Client, transaction: &mut Transaction, way: &str, padding: usize) -> Result<()> {
    let shop = client.database("shop");
    let document = |n: usize| {
        let email = format!("{way}{n}@example.test");
        doc! { "_id": format!("{way}{n}"), FIELD: email, "p": "x".repeat(padding) }
    };
    if way == "one" {
        shop.create_collection("made").session(transaction.session()).await?;
        shop.create_collection("made_hidden").session(transaction.session()).await?;
        shop.collection("made_hidden").insert_one(document(0)).session(transaction.session()).await?;
        shop.collection("made").insert_one(document(0)).session(transaction.session()).await?;
    }
    for name in ["c00", "hidden", "c01"] {
        let things = transaction.collection(name);
        for n in 0..2 {
            things.insert_one(document(n)).session(transaction.session()).await?;
        }
        let email = doc! { "$set": { FIELD: format!("changed-{way}@example.test") } };
        things.update_one(doc! { "_id": "seed" }, email).session(transaction.session()).await?;
    }
    Ok(())
}

async fn through_apply_ops(rig: &Rig) -> Result<()> {
    let insert = |name: &str| {
        let document = doc! { "_id": "applied", FIELD: "applied@example.test" };
        doc! { "op": "i", "ns": format!("shop.{name}"), "o": document }
    };
    let list: Vec<Document> = ["c00", "hidden", "c01"].map(insert).to_vec();
    rig.source.client().database("admin").run_command(doc! { "applyOps": list }).await?;
    Ok(())
}
