//! Transactions and `applyOps` as real servers log them, from their forms to a crash in the middle of one.
//!
//! A transaction is the one thing in an oplog that is not where it takes effect: it may have begun before the
//! position, be larger than memory, or never come to be. Each test makes that happen on a real source and compares
//! the target byte for byte.

use anyhow::Result;
use bson::{Document, doc};
use mongodb::options::WriteConcern;
use mongodb::{Client, Collection};
use oplogue_tests::collector::by_change_stream;
use oplogue_tests::servers::{Options, connect};

use super::rig::Rig;

mod atomic;
mod forms;
mod inside;
mod large;
mod open;

/// The cache of a source on which transactions of some 20 MB fit.
const CACHE_GB: f32 = 1.0;

/// Padding of which three documents need two entries of the oplog.
const THIRD_OF_AN_ENTRY: usize = 6_000_000;

/// One member on each side, with a cache that takes large transactions.
async fn rig(version: &str, cache_gb: f32) -> Result<Rig> {
    let source = Options { version: version.to_owned(), cache_gb, ..Options::guide_source() };
    Rig::of(source, Options { cache_gb: 1.0, ..Options::guide_target() }).await
}

/// A client that may prepare transactions, which the servers themselves do and no ordinary user.
async fn coordinator(rig: &Rig) -> Result<Client> {
    let (name, password) = ("coordinator", "coordinator-password");
    let role = doc! { "role": "__system", "db": "admin" };
    let user = doc! { "createUser": name, "pwd": password, "roles": [role], "writeConcern": { "w": "majority" } };
    rig.source.client().database("admin").run_command(user).await?;
    connect(&rig.source.uri_as(name, password)).await
}

/// Whether the command `applyOps` is shown by what is read; says so where it is not.
fn shows_apply_ops() -> bool {
    let shown = !by_change_stream();
    if !shown {
        println!("left out by change stream: the command applyOps, which it does not show");
    }
    shown
}

fn collection(rig: &Rig, name: &str) -> Collection<Document> {
    rig.source.client().database("shop").collection(name)
}

/// Creates collections with one document each; `majority`, so that a copy sees them.
async fn seed(rig: &Rig, names: &[&str]) -> Result<()> {
    for name in names {
        let things = collection(rig, name);
        things.insert_one(doc! { "_id": "seed", "n": 1 }).write_concern(WriteConcern::majority()).await?;
    }
    Ok(())
}
