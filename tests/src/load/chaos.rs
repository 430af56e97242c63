//! A random workload of writes, transactions and DDL on the same collections, operation by operation.
//!
//! The ordinary load keeps DDL in a database of its own; here the very collections that are written to are created,
//! dropped, renamed over each other, indexed and changed. Operation `n` of a seed is always the same attempt, so the
//! operations up to a failure can be run again. It writes to the source only, counts what the server refuses and
//! waits for nothing.

use bson::{Bson, Document, doc};
use mongodb::error::Error;
use mongodb::{Client, ClientSession};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use super::operations::{is_refusal, ordinary, step};
use super::shelf::Shelf;
use super::{LoadOptions, Totals, one_in};

/// What the workload may do.
#[derive(Debug, Clone)]
pub struct ChaosOptions {
    /// Seed of every operation.
    pub seed: u64,
    /// `dropDatabase` among the DDL.
    pub drop_database: bool,
    /// Renames stay among the first or among the last namespaces, split here: a white list's border.
    pub border: usize,
}

/// The databases of the workload; the first two hold the namespaces below the usual border.
pub const DATABASES: [&str; 3] = ["north", "west", "south"];

/// Ten names each.
const NAMES: usize = 10;

/// The namespaces of the workload, the databases one after the other.
#[must_use]
pub fn namespaces() -> Vec<String> {
    let names = |db: &str| (0..NAMES).map(|number| format!("{db}.n{number}")).collect::<Vec<_>>();
    DATABASES.into_iter().flat_map(names).collect()
}

/// The workload and what it believes to be in the source.
#[derive(Debug)]
pub struct Chaos {
    client: Client,
    options: ChaosOptions,
    load: LoadOptions,
    shelves: Vec<Shelf>,
    next: u64,
    totals: Totals,
}

impl Chaos {
    /// A workload that has done nothing yet; `load` says what its documents are made of.
    #[must_use]
    pub fn new(client: &Client, options: ChaosOptions, load: &LoadOptions) -> Self {
        let shelves = namespaces().iter().map(|name| Shelf::new(client, name)).collect();
        let load = LoadOptions { seed: options.seed, padding_max: 60, ..load.clone() };
        Self { client: client.clone(), options, load, shelves, next: 0, totals: Totals::default() }
    }

    /// The number of the next operation.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.next
    }

    /// How to run it again up to this point.
    #[must_use]
    pub fn told(&self) -> String {
        format!("OPLOGUE_SEED={} before operation {}", self.options.seed, self.next)
    }

    /// What was done so far.
    #[must_use]
    pub fn totals(&self) -> Totals {
        self.totals
    }

    /// Sends the next operation; an answer that is lost is a lost operation, never an error.
    pub async fn one(&mut self) {
        let mut rng = StdRng::seed_from_u64(self.options.seed ^ self.next.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        self.next += 1;
        let sent = match rng.random_range(0..100) {
            0..12 => Box::pin(self.shape(&mut rng)).await,
            12..20 => Box::pin(self.transaction(&mut rng)).await,
            _ => {
                let at = self.some(&mut rng);
                match self.shelves.get_mut(at) {
                    Some(shelf) => Box::pin(ordinary(shelf, &mut rng, &self.load)).await,
                    None => Ok(()),
                }
            }
        };
        match sent {
            Ok(()) => self.totals.done += 1,
            Err(error) if is_refusal(&error) => self.totals.refused += 1,
            Err(_) => self.totals.lost += 1,
        }
    }

    fn some(&self, rng: &mut StdRng) -> usize {
        rng.random_range(0..self.shelves.len())
    }

    /// A namespace on the same side of the border, now and then in another database.
    fn neighbour(&self, rng: &mut StdRng, of: usize) -> usize {
        let database = of / NAMES * NAMES;
        let names = if one_in(rng, 8) { 0..self.shelves.len() } else { database..database + NAMES };
        let (below, above) = (0..self.options.border, self.options.border..self.shelves.len());
        let side = if below.contains(&of) { below } else { above };
        let (from, to) = (names.start.max(side.start), names.end.min(side.end));
        rng.random_range(from..to)
    }

    async fn shape(&mut self, rng: &mut StdRng) -> Result<(), Error> {
        let at = self.some(rng);
        let (db, name) = self.parts(at);
        match rng.random_range(0..100) {
            0..20 => self.run(&db, create(&name, rng, &self.load)).await,
            20..24 => self.run(&db, create_view(&name)).await,
            24..34 => {
                self.run(&db, doc! { "drop": &name }).await?;
                self.forget(at);
                Ok(())
            }
            34..50 => self.rename(at, rng).await,
            50..74 => self.run(&db, create_index(&name, rng, self.load.series)).await,
            74..86 => self.run(&db, doc! { "dropIndexes": &name, "index": index_name(rng) }).await,
            86..98 => self.run(&db, coll_mod(&name, rng, self.load.series)).await,
            98..100 if self.options.drop_database && one_in(rng, 3) => {
                self.run(&db, doc! { "dropDatabase": 1 }).await?;
                let first = at / NAMES * NAMES;
                (first..first + NAMES).for_each(|at| self.forget(at));
                Ok(())
            }
            _ => self.run(&db, doc! { "drop": view(&name) }).await,
        }
    }

    async fn rename(&mut self, from: usize, rng: &mut StdRng) -> Result<(), Error> {
        let to = self.neighbour(rng, from);
        let (source, target) = (self.parts(from), self.parts(to));
        let command = doc! {
            "renameCollection": format!("{}.{}", source.0, source.1),
            "to": format!("{}.{}", target.0, target.1),
            "dropTarget": rng.random_ratio(2, 3),
        };
        self.run("admin", command).await?;
        let moved = self.shelves.get_mut(from).map(|shelf| std::mem::take(&mut shelf.live)).unwrap_or_default();
        if let Some(shelf) = self.shelves.get_mut(to) {
            shelf.live = moved;
        }
        Ok(())
    }

    /// Several steps on several collections; now and then one is created inside, and now and then all is aborted.
    async fn transaction(&mut self, rng: &mut StdRng) -> Result<(), Error> {
        let mut session = self.client.start_session().await?;
        session.start_transaction().await?;
        let mut sent = Ok(());
        for _ in 0..rng.random_range(1..7) {
            let at = self.some(rng);
            sent = if one_in(rng, 8) {
                let (db, name) = self.parts(at);
                self.create_inside(&mut session, &db, &name).await
            } else {
                match self.shelves.get_mut(at) {
                    Some(shelf) => step(shelf, rng, &mut session, &self.load).await,
                    None => Ok(()),
                }
            };
            if sent.is_err() {
                break;
            }
        }
        if sent.is_err() || one_in(rng, 8) {
            session.abort_transaction().await.ok();
            return sent;
        }
        session.commit_transaction().await
    }

    async fn create_inside(&self, session: &mut ClientSession, db: &str, name: &str) -> Result<(), Error> {
        self.client.database(db).run_command(doc! { "create": name }).session(session).await.map(drop)
    }

    async fn run(&self, db: &str, command: Document) -> Result<(), Error> {
        self.client.database(db).run_command(command).await.map(drop)
    }

    fn parts(&self, at: usize) -> (String, String) {
        let namespace = self.shelves.get(at).map(|shelf| shelf.collection.namespace());
        namespace.map(|namespace| (namespace.db, namespace.coll)).unwrap_or_default()
    }

    fn forget(&mut self, at: usize) {
        if let Some(shelf) = self.shelves.get_mut(at) {
            shelf.live.clear();
        }
    }
}

fn create(name: &str, rng: &mut StdRng, load: &LoadOptions) -> Document {
    match rng.random_range(0..6) {
        0 => doc! { "create": name },
        1 => doc! { "create": name, "validator": { "n": { "$exists": true } }, "validationLevel": "moderate" },
        2 => doc! { "create": name, "collation": { "locale": "en", "strength": 2 } },
        3 | 4 if load.series < (6, 0) => doc! { "create": name },
        3 => doc! { "create": name, "changeStreamPreAndPostImages": { "enabled": true } },
        4 => doc! { "create": name, "clusteredIndex": { "key": { "_id": 1 }, "unique": true } },
        _ if !load.capped => doc! { "create": name },
        _ => doc! { "create": name, "capped": true, "size": 1_048_576, "max": 500 },
    }
}

fn view(name: &str) -> String {
    format!("view_{name}")
}

fn create_view(name: &str) -> Document {
    doc! { "create": view(name), "viewOn": name, "pipeline": [{ "$match": { "n": 1 } }] }
}

fn create_index(name: &str, rng: &mut StdRng, series: (u32, u32)) -> Document {
    // 5.0.4 lists a projection in this form, whatever it was given; 6.0.27 lists what it was given.
    let projection = if series < (6, 0) {
        doc! { "obj": true, "_id": false }
    } else {
        doc! { "obj": 1 }
    };
    let index = match rng.random_range(0..7) {
        0 => doc! { "key": { "email": 1 }, "name": "by_email", "unique": true },
        1 => doc! { "key": { "obj.a.b": -1, "n": 1 }, "name": "by_b", "sparse": true },
        2 => doc! { "key": { "status": "hashed" }, "name": "by_status" },
        3 => doc! { "key": { "$**": 1 }, "name": "all", "wildcardProjection": projection },
        4 => doc! { "key": { "pad": "text" }, "name": "words" },
        5 => doc! { "key": { "n": 1 }, "name": "by_n", "collation": { "locale": "fr" }, "hidden": true },
        _ => {
            doc! { "key": { "n": 1, "total": 1 }, "name": "part", "partialFilterExpression": { "n": { "$gt": 5 } } }
        }
    };
    doc! { "createIndexes": name, "indexes": [index] }
}

fn index_name(rng: &mut StdRng) -> Bson {
    let names = ["by_email", "by_b", "by_status", "all", "words", "by_n", "part", "*"];
    Bson::from(names[rng.random_range(0..names.len())])
}

fn coll_mod(name: &str, rng: &mut StdRng, series: (u32, u32)) -> Document {
    match rng.random_range(0..4) {
        0 => doc! { "collMod": name, "validator": { "n": { "$gte": 0 } }, "validationAction": "warn" },
        1 => doc! { "collMod": name, "index": { "name": "by_b", "hidden": rng.random::<bool>() } },
        2 => doc! { "collMod": name, "validator": {}, "validationLevel": "off" },
        _ if series < (6, 0) => doc! { "collMod": name, "validationLevel": "moderate" },
        _ => doc! { "collMod": name, "changeStreamPreAndPostImages": { "enabled": rng.random::<bool>() } },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn renames_stay_on_their_side_of_the_border() {
        let client = Client::with_uri_str("mongodb://127.0.0.1:1").await.unwrap();
        let options = ChaosOptions { seed: 1, drop_database: true, border: 13 };
        let chaos = Chaos::new(&client, options, &LoadOptions::default());
        let mut rng = StdRng::seed_from_u64(1);
        let mut databases = [0, 0];
        for from in 0..namespaces().len() {
            for _ in 0..50 {
                let to = chaos.neighbour(&mut rng, from);
                assert_eq!(from < 13, to < 13);
                databases[usize::from(from / NAMES == to / NAMES)] += 1;
            }
        }
        assert!(databases[0] > 0 && databases[1] > 4 * databases[0], "{databases:?}");
    }
}
