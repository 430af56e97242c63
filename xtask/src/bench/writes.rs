//! The writes of the bench: plain, many, and the same every time.
//!
//! The load of the tests is made to be nasty and sends one operation at a time; here the source must be quick and
//! the oplog long. Half are updates, a quarter inserts, a quarter deletes of older documents, each an oplog entry
//! of its own, spread evenly over the collections. Nothing is random.

use anyhow::Result;
use bson::{Bson, Document, doc};
use mongodb::Client;

/// The database of the bench.
pub(super) const DB: &str = "bench";

/// Statements of one command.
const STATEMENTS: u32 = 500;

/// Fills `bench.<name>` with documents of about that size.
pub(super) async fn fill(client: &Client, name: &str, documents: u32, bytes: usize) -> Result<()> {
    let collection = client.database(DB).collection::<Document>(name);
    let mut from = 0;
    while from < documents {
        let to = documents.min(from + 5_000);
        let batch: Vec<Document> = (from..to).map(|id| document(i64::from(id), bytes)).collect();
        collection.insert_many(batch).ordered(false).await?;
        from = to;
    }
    Ok(())
}

/// A stream of operations that continues where the last call ended.
pub(super) struct Writer {
    client: Client,
    collections: Vec<String>,
    first: i64,
    next: i64,
}

impl Writer {
    /// Creates the collections with 4,000 documents each.
    pub(super) async fn start(client: &Client, collections: u32) -> Result<Self> {
        let collections: Vec<String> = (0..collections).map(|number| format!("c{number}")).collect();
        for name in &collections {
            fill(client, name, 4_000, 300).await?;
        }
        Ok(Self { client: client.clone(), collections, first: 0, next: 4_000 })
    }

    /// Writes at least that many operations and returns how many.
    pub(super) async fn write(&mut self, operations: u32) -> Result<u32> {
        let mut done = 0;
        while done < operations {
            for name in &self.collections {
                let db = self.client.database(DB);
                for command in self.commands(name) {
                    db.run_command(command).await?;
                }
                done += STATEMENTS;
            }
            self.first += i64::from(STATEMENTS / 4);
            self.next += i64::from(STATEMENTS / 4);
        }
        Ok(done)
    }

    fn commands(&self, name: &str) -> [Document; 3] {
        let half = i64::from(STATEMENTS / 2);
        let quarter = half / 2;
        let updates: Vec<Bson> = (0..half)
            .map(|at| {
                // Spread over the documents that stay, so that updates of one batch meet different keys.
                let id = self.first + quarter + at * 7 % (self.next - self.first - quarter);
                let update = doc! { "$inc": { "n": 1 }, "$set": { "at": self.next, "text": format!("text {at}") } };
                Bson::Document(doc! { "q": { "_id": id }, "u": update })
            })
            .collect();
        let inserts: Vec<Bson> = (self.next..self.next + quarter).map(|id| Bson::Document(document(id, 300))).collect();
        let deletes: Vec<Bson> = (self.first..self.first + quarter)
            .map(|id| Bson::Document(doc! { "q": { "_id": id }, "limit": 1 }))
            .collect();
        [
            doc! { "update": name, "updates": updates },
            doc! { "insert": name, "documents": inserts },
            doc! { "delete": name, "deletes": deletes },
        ]
    }
}

fn document(id: i64, bytes: usize) -> Document {
    let pad = "x".repeat(bytes.saturating_sub(130));
    doc! {
        "_id": id, "n": 0, "at": 0_i64, "text": "text", "name": format!("name {id}"),
        "tags": ["a", "b"], "nested": { "x": 1, "y": 2.5 }, "pad": pad,
    }
}
