//! Documents that exchange the values of a unique secondary index.
//!
//! A replicator that writes documents in parallel meets duplicate keys here that the source never had: A gives
//! its value up before B takes it, in source order, and in another order B collides. The values come from a
//! small pool, so chains and cycles are frequent. The source's order is always legal.

use anyhow::Result;
use bson::{Document, doc};
use mongodb::error::Error;
use mongodb::{Client, Collection, IndexModel};
use rand::Rng as _;
use rand::rngs::StdRng;

use super::one_in;

const DOCUMENTS: i32 = 40;

fn collection(client: &Client) -> Collection<Document> {
    client.database("shop").collection("unique")
}

/// Creates `shop.unique` with its index and documents.
pub(crate) async fn prepare(client: &Client) -> Result<()> {
    let collection = collection(client);
    let options = mongodb::options::IndexOptions::builder().unique(true).build();
    collection.create_index(IndexModel::builder().keys(doc! { "u": 1 }).options(options).build()).await?;
    let documents = (0..DOCUMENTS).map(|number| doc! { "_id": number, "u": number, "v": 0 });
    collection.insert_many(documents).await?;
    Ok(())
}

#[derive(Debug)]
pub(crate) struct Swapper {
    client: Client,
    serial: i32,
}

impl Swapper {
    pub(crate) fn new(client: &Client) -> Self {
        Self { client: client.clone(), serial: 0 }
    }

    pub(crate) async fn one(&mut self, rng: &mut StdRng) -> Result<(), Error> {
        let (a, b) = (rng.random_range(0..DOCUMENTS), rng.random_range(0..DOCUMENTS));
        self.serial += 1;
        if a == b {
            return self.set(a, 1_000_000 + self.serial).await;
        }
        let (Some(of_a), Some(of_b)) = (self.value(a).await?, self.value(b).await?) else {
            return self.refill(a).await;
        };
        if one_in(rng, 4) {
            return self.hand_over(a, b, of_a).await;
        }
        if one_in(rng, 3) {
            return self.swap_in_transaction(a, of_a, b, of_b).await;
        }
        self.set(a, -self.serial).await?;
        self.set(b, of_a).await?;
        self.set(a, of_b).await
    }

    async fn value(&self, id: i32) -> Result<Option<i32>, Error> {
        let found = collection(&self.client).find_one(doc! { "_id": id }).await?;
        Ok(found.and_then(|document| document.get_i32("u").ok()))
    }

    async fn set(&self, id: i32, value: i32) -> Result<(), Error> {
        let update = doc! { "$set": { "u": value }, "$inc": { "v": 1 } };
        collection(&self.client).update_one(doc! { "_id": id }, update).await.map(drop)
    }

    async fn refill(&self, id: i32) -> Result<(), Error> {
        let update = doc! { "$set": { "u": 2_000_000 + self.serial } };
        collection(&self.client).update_one(doc! { "_id": id }, update).upsert(true).await.map(drop)
    }

    /// Deletes one document and gives its value to another.
    async fn hand_over(&self, from: i32, to: i32, value: i32) -> Result<(), Error> {
        collection(&self.client).delete_one(doc! { "_id": from }).await?;
        self.set(to, value).await
    }

    async fn swap_in_transaction(&self, a: i32, of_a: i32, b: i32, of_b: i32) -> Result<(), Error> {
        let collection = collection(&self.client);
        let mut session = self.client.start_session().await?;
        session.start_transaction().await?;
        for (id, value) in [(a, -self.serial), (b, of_a), (a, of_b)] {
            let update = doc! { "$set": { "u": value } };
            collection.update_one(doc! { "_id": id }, update).session(&mut session).await?;
        }
        session.commit_transaction().await
    }
}
