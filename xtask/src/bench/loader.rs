//! The bare bulk loader: the ceiling of the full copy.
//!
//! It does the least that moves the documents: raw batches out of one cursor, the reply's array handed on as the
//! `documents` of an `insert` command, a few commands in flight. No plugin, no order, no checkpoint, no index, no
//! retry. What it reaches is what the two servers and the driver allow on this machine.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use bson::raw::{RawDocument, RawDocumentBuf};
use bson::{cstr, doc};
use futures_util::{StreamExt as _, TryStreamExt as _};
use mongodb::Client;

/// Documents a batch, and commands in flight.
const BATCH: i32 = 5_000;
const IN_FLIGHT: usize = 3;

/// Copies one collection; returns the time it took.
pub(super) async fn copy(source: &Client, target: &Client, db: &str, collection: &str) -> Result<Duration> {
    let started = Instant::now();
    let find = doc! { "find": collection, "batchSize": BATCH };
    let options = mongodb::options::RunCursorCommandOptions::builder().batch_size(BATCH.unsigned_abs()).build();
    let cursor = source.database(db).run_cursor_command(find).with_options(options).batch().await?;
    let target = target.database(db);
    cursor
        .map(|batch| batch.context("read a batch"))
        .try_for_each_concurrent(IN_FLIGHT, |batch| {
            let target = target.clone();
            async move {
                let Some(insert) = insert_command(batch.as_raw_document(), collection)? else {
                    return Ok(());
                };
                let reply = target.run_raw_command(insert).await.context("insert a batch")?;
                anyhow::ensure!(reply.get("writeErrors").is_none(), "the target refused documents: {reply}");
                Ok(())
            }
        })
        .await?;
    Ok(started.elapsed())
}

fn insert_command(reply: &RawDocument, collection: &str) -> Result<Option<RawDocumentBuf>> {
    let cursor = reply.get_document("cursor")?;
    let batch = cursor.get_array("firstBatch").or_else(|_| cursor.get_array("nextBatch"))?;
    if batch.is_empty() {
        return Ok(None);
    }
    let mut insert = RawDocumentBuf::new();
    insert.append(cstr!("insert"), collection);
    insert.append(cstr!("ordered"), false);
    insert.append(cstr!("documents"), batch.to_owned());
    Ok(Some(insert))
}
