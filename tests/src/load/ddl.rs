//! DDL in a database of its own: collections come, change, move and go between ordinary writes.
//!
//! The names are few, so that a name is soon used again by another collection: the case in which a replayed
//! drop destroys data. What the server refuses (a rename onto an existing name) is part of the load. It stays
//! in database `ddl` and leaves the collections of the other writers alone.

use bson::{Document, doc};
use mongodb::Client;
use mongodb::error::Error;
use rand::Rng as _;
use rand::rngs::StdRng;

use super::LoadOptions;

const DB: &str = "ddl";
const NAMES: i32 = 6;

#[derive(Debug)]
pub(crate) struct Shaper {
    client: Client,
    coll_mod: bool,
    pre_images: bool,
    serial: i32,
}

impl Shaper {
    pub(crate) fn new(client: &Client, options: &LoadOptions) -> Self {
        let pre_images = options.series >= (6, 0);
        Self { client: client.clone(), coll_mod: options.coll_mod, pre_images, serial: 0 }
    }

    pub(crate) async fn one(&mut self, rng: &mut StdRng) -> Result<(), Error> {
        self.serial += 1;
        let name = format!("d{}", rng.random_range(0..NAMES));
        match rng.random_range(0..12) {
            0 => self.run(create(&name, rng, self.pre_images)).await,
            1 => self.run(doc! { "drop": &name }).await,
            2 => self.rename(&name, rng).await,
            3 | 4 => self.run(create_index(&name, rng)).await,
            5 => self.run(doc! { "dropIndexes": &name, "index": index_name(rng) }).await,
            6 if self.coll_mod => self.run(coll_mod(&name, rng, self.pre_images)).await,
            _ => self.insert(&name).await,
        }
    }

    async fn run(&self, command: Document) -> Result<(), Error> {
        self.client.database(DB).run_command(command).await.map(drop)
    }

    async fn rename(&self, from: &str, rng: &mut StdRng) -> Result<(), Error> {
        let to = format!("d{}", rng.random_range(0..NAMES));
        let command = doc! {
            "renameCollection": format!("{DB}.{from}"), "to": format!("{DB}.{to}"), "dropTarget": rng.random::<bool>(),
        };
        self.client.database("admin").run_command(command).await.map(drop)
    }

    async fn insert(&mut self, name: &str) -> Result<(), Error> {
        let documents: Vec<Document> =
            (0..5).map(|at| doc! { "a": self.serial * 10 + at, "b": { "c": at }, "born": name }).collect();
        self.client.database(DB).collection(name).insert_many(documents).await.map(drop)
    }
}

fn create(name: &str, rng: &mut StdRng, pre_images: bool) -> Document {
    match rng.random_range(0..5) {
        0 => doc! { "create": name },
        1 => {
            doc! { "create": name, "validator": { "a": { "$exists": true } }, "validationLevel": "moderate" }
        }
        2 => doc! { "create": name, "collation": { "locale": "en", "strength": 2 } },
        3 if pre_images => doc! { "create": name, "changeStreamPreAndPostImages": { "enabled": true } },
        3 => doc! { "create": name },
        _ => doc! { "create": name, "capped": true, "size": 1_048_576 },
    }
}

fn create_index(name: &str, rng: &mut StdRng) -> Document {
    let index = match rng.random_range(0..4) {
        0 => doc! { "key": { "a": 1 }, "name": "by_a", "unique": true },
        1 => doc! { "key": { "b.c": -1, "a": 1 }, "name": "by_b", "sparse": true },
        2 => doc! { "key": { "born": "hashed" }, "name": "by_born" },
        _ => {
            doc! { "key": { "a": 1, "b": 1 }, "name": "part", "partialFilterExpression": { "a": { "$gt": 5 } } }
        }
    };
    doc! { "createIndexes": name, "indexes": [index] }
}

fn index_name(rng: &mut StdRng) -> &'static str {
    ["by_a", "by_b", "by_born", "part", "*"][rng.random_range(0..5)]
}

fn coll_mod(name: &str, rng: &mut StdRng, pre_images: bool) -> Document {
    match rng.random_range(0..3) {
        0 => doc! { "collMod": name, "validator": { "a": { "$gte": 0 } } },
        1 => doc! { "collMod": name, "index": { "name": "by_b", "hidden": rng.random::<bool>() } },
        _ if pre_images => {
            doc! { "collMod": name, "changeStreamPreAndPostImages": { "enabled": rng.random::<bool>() } }
        }
        _ => doc! { "collMod": name, "validationLevel": "moderate" },
    }
}
