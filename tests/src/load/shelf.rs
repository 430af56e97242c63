//! One collection under load: its handle and the `_id`s believed to be in it.
//!
//! The list is a guess, not a truth: a lost answer or a refused write leaves it a little wrong, and the next
//! writes then change nothing or are refused, which is fine for a load. Serial numbers of new `_id`s never
//! repeat within a collection, so that equal numbers of different types do not collide by accident.

use anyhow::{Context as _, Result};
use bson::{Bson, Document, doc};
use mongodb::{Client, Collection, IndexModel};
use rand::Rng as _;
use rand::rngs::StdRng;

use super::{LoadOptions, values};

#[derive(Debug)]
pub(crate) struct Shelf {
    pub(crate) collection: Collection<Document>,
    pub(crate) live: Vec<Bson>,
    next: u64,
}

impl Shelf {
    pub(crate) fn new(client: &Client, namespace: &str) -> Self {
        let (db, name) = namespace.split_once('.').unwrap_or(("shop", namespace));
        Self { collection: client.database(db).collection(name), live: Vec::new(), next: 0 }
    }

    /// A number that differs between collections and not between runs.
    pub(crate) fn salt(&self) -> u64 {
        let name = self.collection.namespace().to_string();
        name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
    }

    pub(crate) async fn create_indexes(&self) -> Result<()> {
        let status = IndexModel::builder().keys(doc! { "status": 1, "n": -1 }).build();
        let nested = IndexModel::builder().keys(doc! { "obj.a.b": 1 }).build();
        self.collection.create_indexes([status, nested]).await?;
        Ok(())
    }

    pub(crate) async fn fill(&mut self, rng: &mut StdRng, documents: usize, options: &LoadOptions) -> Result<()> {
        let mut left = documents;
        while left > 0 {
            let count = left.min(1_000);
            let batch: Vec<Document> = (0..count).map(|_| self.new_document(rng, options)).collect();
            self.collection
                .insert_many(batch)
                .await
                .with_context(|| format!("fill {} (seed {})", self.collection.namespace(), options.seed))?;
            left -= count;
        }
        Ok(())
    }

    /// A document under an `_id` that was not used before; the `_id` counts as live from now on.
    pub(crate) fn new_document(&mut self, rng: &mut StdRng, options: &LoadOptions) -> Document {
        let id = values::id(rng, self.next);
        self.next += 1;
        self.live.push(id.clone());
        with_id(id, values::body(rng, options.padding_max, options.odd_names))
    }

    /// A live `_id`.
    pub(crate) fn pick(&self, rng: &mut StdRng) -> Option<Bson> {
        if self.live.is_empty() {
            return None;
        }
        self.live.get(rng.random_range(0..self.live.len())).cloned()
    }

    /// A live `_id` that is dead from now on.
    pub(crate) fn take(&mut self, rng: &mut StdRng) -> Option<Bson> {
        if self.live.is_empty() {
            return None;
        }
        Some(self.live.swap_remove(rng.random_range(0..self.live.len())))
    }

    /// Finds out what the collection holds, so that documents written before the load are changed too.
    pub(crate) async fn learn(&mut self) -> Result<()> {
        use futures_util::TryStreamExt as _;
        let ids = self.collection.find(doc! {}).projection(doc! { "_id": 1 }).sort(doc! { "_id": 1 }).await?;
        let ids: Vec<Document> = ids.try_collect().await?;
        self.live = ids.into_iter().filter_map(|mut document| document.remove("_id")).collect();
        // Beyond every serial of an earlier fill, whatever was deleted since.
        self.next = self.next.max(1_000_000 * u64::from(!self.live.is_empty()));
        Ok(())
    }
}

/// The body with its `_id` in front.
pub(crate) fn with_id(id: Bson, body: Document) -> Document {
    let mut document = doc! { "_id": id };
    document.extend(body);
    document
}
