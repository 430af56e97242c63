//! One writer of the load: picks an operation, sends it, counts the outcome.
//!
//! The mix leans to updates, because they have the most forms in the oplog. A refused operation is part of the
//! load; a lost answer makes the writer wait a moment, so that a fail-over passes; anything that says that the
//! harness itself is wrong ends the load with an error. A writer owns its collections, so the order of writes
//! to one document is the order of its random numbers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;
use bson::{Bson, Document, doc};
use mongodb::error::{Error, ErrorKind, WriteFailure};
use mongodb::{Client, ClientSession};
use rand::Rng as _;
use rand::rngs::StdRng;

use super::shelf::{Shelf, with_id};
use super::{Counters, LoadOptions, ddl, one_in, unique, update, values};

/// Codes that mean "ask again later" and not "no": elections, shutdown, network, lost transactions.
const TRANSIENT: [i32; 16] = [6, 7, 24, 89, 91, 112, 189, 246, 251, 9001, 10058, 10107, 11600, 11602, 13435, 13436];

pub(crate) struct Worker {
    pub(crate) client: Client,
    pub(crate) rng: StdRng,
    pub(crate) shelves: Vec<Shelf>,
    pub(crate) unique: Option<unique::Swapper>,
    pub(crate) ddl: Option<ddl::Shaper>,
    pub(crate) pause: Option<Duration>,
    pub(crate) options: LoadOptions,
    pub(crate) counters: Arc<Counters>,
    pub(crate) stop: Arc<AtomicBool>,
}

type Sent = Result<(), Error>;

impl Worker {
    pub(crate) async fn run(mut self) -> Result<()> {
        for shelf in &mut self.shelves {
            shelf.learn().await?;
        }
        let mut due = Instant::now();
        while !self.stop.load(Ordering::Relaxed) {
            if let Some(pause) = self.pause {
                due += pause;
                tokio::time::sleep_until(due.into()).await;
            }
            let outcome = self.one().await;
            self.count(outcome).await;
        }
        Ok(())
    }

    async fn count(&self, outcome: Sent) {
        let counters = &self.counters;
        match outcome {
            Ok(()) => counters.done.fetch_add(1, Ordering::Relaxed),
            Err(error) if is_refusal(&error) => counters.refused.fetch_add(1, Ordering::Relaxed),
            Err(_) => {
                tokio::time::sleep(Duration::from_millis(100)).await;
                counters.lost.fetch_add(1, Ordering::Relaxed)
            }
        };
    }

    async fn one(&mut self) -> Sent {
        let rng = &mut self.rng;
        if let Some(swapper) = self.unique.as_mut().filter(|_| one_in(rng, 8)) {
            return Box::pin(swapper.one(rng)).await;
        }
        if let Some(shaper) = self.ddl.as_mut().filter(|_| one_in(rng, 10)) {
            return Box::pin(shaper.one(rng)).await;
        }
        if self.options.transactions && one_in(rng, 20) {
            return Box::pin(self.transaction()).await;
        }
        let at = rng.random_range(0..self.shelves.len().max(1));
        let Some(shelf) = self.shelves.get_mut(at) else {
            return Ok(());
        };
        ordinary(shelf, rng, &self.options).await
    }

    async fn transaction(&mut self) -> Sent {
        let mut session = self.client.start_session().await?;
        session.start_transaction().await?;
        let steps = self.rng.random_range(1..5);
        let mut sent = Ok(());
        for _ in 0..steps {
            let at = self.rng.random_range(0..self.shelves.len().max(1));
            let Some(shelf) = self.shelves.get_mut(at) else {
                break;
            };
            sent = step(shelf, &mut self.rng, &mut session, &self.options).await;
            if sent.is_err() {
                break;
            }
        }
        if sent.is_err() || one_in(&mut self.rng, 10) {
            session.abort_transaction().await.ok();
            return sent;
        }
        session.commit_transaction().await
    }
}

pub(crate) fn is_refusal(error: &Error) -> bool {
    code(error.kind.as_ref()).is_some_and(|code| !TRANSIENT.contains(&code))
}

fn code(kind: &ErrorKind) -> Option<i32> {
    if let ErrorKind::Command(command) = kind {
        return Some(command.code);
    }
    if let ErrorKind::Write(WriteFailure::WriteError(write)) = kind {
        return Some(write.code);
    }
    let ErrorKind::InsertMany(many) = kind else {
        return None;
    };
    Some(many.write_errors.as_ref()?.first()?.code)
}

pub(crate) async fn step(
    shelf: &mut Shelf,
    rng: &mut StdRng,
    session: &mut ClientSession,
    options: &LoadOptions,
) -> Sent {
    match rng.random_range(0..3) {
        0 => {
            let document = shelf.new_document(rng, options);
            shelf.collection.insert_one(document).session(session).await?;
        }
        1 => {
            let Some(id) = shelf.pick(rng) else {
                return Ok(());
            };
            let update = doc! { "$inc": { "n": 1 }, "$set": { "in_transaction": rng.random::<i32>() } };
            shelf.collection.update_one(doc! { "_id": id }, update).session(session).await?;
        }
        _ => {
            let Some(id) = shelf.take(rng) else {
                return Ok(());
            };
            shelf.collection.delete_one(doc! { "_id": id }).session(session).await?;
        }
    }
    Ok(())
}

/// One write of any kind to one collection.
pub(crate) async fn ordinary(shelf: &mut Shelf, rng: &mut StdRng, options: &LoadOptions) -> Sent {
    match rng.random_range(0..100) {
        0..15 => insert(shelf, rng, options).await,
        15..22 => insert_many(shelf, rng, options).await,
        22..32 => replace(shelf, rng, options).await,
        32..72 => update_one(shelf, rng).await,
        72..74 => find_and_modify(shelf, rng).await,
        74..77 => update_many(shelf, rng).await,
        77..80 => upsert(shelf, rng).await,
        80..86 => bulk(shelf, rng, options).await,
        86..95 => delete(shelf, rng).await,
        95..99 => another_number_type(shelf, rng, options).await,
        _ => delete_some(shelf, rng).await,
    }
}

async fn insert(shelf: &mut Shelf, rng: &mut StdRng, options: &LoadOptions) -> Sent {
    let document = shelf.new_document(rng, options);
    shelf.collection.insert_one(document).await.map(drop)
}

async fn insert_many(shelf: &mut Shelf, rng: &mut StdRng, options: &LoadOptions) -> Sent {
    let count = rng.random_range(1..20);
    let documents: Vec<Document> = (0..count).map(|_| shelf.new_document(rng, options)).collect();
    shelf.collection.insert_many(documents).ordered(rng.random::<bool>()).await.map(drop)
}

async fn replace(shelf: &mut Shelf, rng: &mut StdRng, options: &LoadOptions) -> Sent {
    let Some(id) = shelf.pick(rng) else {
        return Ok(());
    };
    let body = values::body(rng, options.padding_max, options.odd_names);
    shelf.collection.replace_one(doc! { "_id": id }, body).await.map(drop)
}

async fn update_one(shelf: &mut Shelf, rng: &mut StdRng) -> Sent {
    let Some(id) = shelf.pick(rng) else {
        return Ok(());
    };
    let update = update::random(rng);
    let mut filter = doc! { "_id": id };
    filter.extend(update.filter);
    let mut send = shelf.collection.update_one(filter, update.modifications);
    if let Some(filters) = update.array_filters {
        send = send.array_filters(filters);
    }
    send.await.map(drop)
}

/// `findAndModify`, whose images the server keeps beside its entry; one in four deletes.
async fn find_and_modify(shelf: &mut Shelf, rng: &mut StdRng) -> Sent {
    let Some(id) = shelf.pick(rng) else {
        return Ok(());
    };
    if one_in(rng, 4) {
        shelf.live.retain(|other| *other != id);
        return shelf.collection.find_one_and_delete(doc! { "_id": id }).await.map(drop);
    }
    let update = doc! { "$inc": { "n": 1 }, "$set": { "found": values::value(rng, 1) } };
    shelf.collection.find_one_and_update(doc! { "_id": id }, update).await.map(drop)
}

async fn update_many(shelf: &mut Shelf, rng: &mut StdRng) -> Sent {
    let from = rng.random_range(0..1_000);
    let filter = doc! { "status": "paid", "n": { "$gte": from, "$lt": from + 30 } };
    let update = doc! { "$inc": { "n": 1 }, "$push": { "arr": { "$each": [from], "$slice": -8 } } };
    shelf.collection.update_many(filter, update).await.map(drop)
}

async fn upsert(shelf: &mut Shelf, rng: &mut StdRng) -> Sent {
    let id = Bson::String(format!("upsert-{}", rng.random_range(0..50)));
    let update = doc! { "$inc": { "n": 1 }, "$setOnInsert": { "status": "new", "v": values::value(rng, 2) } };
    let send = shelf.collection.update_one(doc! { "_id": id.clone() }, update).upsert(true);
    send.await?;
    if !shelf.live.contains(&id) {
        shelf.live.push(id);
    }
    Ok(())
}

/// One `update` command with several statements, ordered or not.
async fn bulk(shelf: &mut Shelf, rng: &mut StdRng, options: &LoadOptions) -> Sent {
    let mut statements = Vec::new();
    for _ in 0..rng.random_range(2..12) {
        let Some(id) = shelf.pick(rng) else {
            return Ok(());
        };
        let change = if one_in(rng, 4) {
            with_id(id.clone(), values::body(rng, options.padding_max, options.odd_names))
        } else {
            doc! { "$inc": { "n": 1 }, "$set": { format!("f{}", rng.random_range(0..6)): values::value(rng, 1) } }
        };
        statements.push(doc! { "q": { "_id": id }, "u": change });
    }
    let namespace = shelf.collection.namespace();
    let command = doc! { "update": &namespace.coll, "updates": statements, "ordered": rng.random::<bool>() };
    shelf.collection.client().database(&namespace.db).run_command(command).await.map(drop)
}

async fn delete(shelf: &mut Shelf, rng: &mut StdRng) -> Sent {
    let Some(id) = shelf.take(rng) else {
        return Ok(());
    };
    shelf.collection.delete_one(doc! { "_id": id }).await.map(drop)
}

async fn delete_some(shelf: &mut Shelf, rng: &mut StdRng) -> Sent {
    let from = rng.random_range(0..1_000);
    let filter = doc! { "status": "new", "n": { "$gte": from, "$lt": from + 10 } };
    shelf.collection.delete_many(filter).await.map(drop)
}

/// Deletes a document and inserts one whose `_id` is the same number in another type: to the server one key,
/// to a replicator that hashes bytes two, and then their order is lost.
async fn another_number_type(shelf: &mut Shelf, rng: &mut StdRng, options: &LoadOptions) -> Sent {
    let Some(old) = shelf.pick(rng) else {
        return Ok(());
    };
    let Some(new) = values::same_number_in_another_type(&old) else {
        return Ok(());
    };
    shelf.collection.delete_one(doc! { "_id": old.clone() }).await?;
    shelf.live.retain(|id| *id != old);
    shelf.live.push(new.clone());
    let body = values::body(rng, options.padding_max, options.odd_names);
    shelf.collection.insert_one(with_id(new, body)).await.map(drop)
}
