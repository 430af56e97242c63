//! Transactions that are prepared and decided about later, as a sharded cluster's coordinator does.
//!
//! A replica set takes `prepareTransaction` from a client when test commands are enabled. Between the two commands
//! anything may happen: other writes, a crash of the collector, a copy. The harness only drives the server here; what
//! must come of it is the test's affair.

use anyhow::{Context as _, Result};
use bson::{Document, Timestamp, doc};
use mongodb::{Client, ClientSession, Collection};

/// An open transaction.
#[derive(Debug)]
pub struct Transaction {
    client: Client,
    session: ClientSession,
    prepared_at: Option<Timestamp>,
}

impl Transaction {
    /// Begins one.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn begin(client: &Client) -> Result<Self> {
        let mut session = client.start_session().await.context("start a session")?;
        session.start_transaction().await.context("start a transaction")?;
        Ok(Self { client: client.clone(), session, prepared_at: None })
    }

    /// The session, to write in it.
    pub fn session(&mut self) -> &mut ClientSession {
        &mut self.session
    }

    /// A collection of the database `shop`, of the client that the session belongs to.
    #[must_use]
    pub fn collection(&self, name: &str) -> Collection<Document> {
        self.client.database("shop").collection(name)
    }

    /// Inserts documents `{_id: "{prefix}0", p: …}` and so on into `shop.{name}`, each with a padding of so many bytes.
    ///
    /// # Errors
    /// What the server answers.
    pub async fn insert(&mut self, name: &str, prefix: &str, count: usize, padding: usize) -> Result<()> {
        let into = self.collection(name);
        for number in 0..count {
            let document = doc! { "_id": format!("{prefix}{number}"), "p": "x".repeat(padding) };
            into.insert_one(document).session(&mut self.session).await.context("insert in a transaction")?;
        }
        Ok(())
    }

    /// Prepares it: from here on the server waits for a decision.
    ///
    /// # Errors
    /// What the server answers.
    pub async fn prepare(&mut self) -> Result<Timestamp> {
        let command = doc! { "prepareTransaction": 1, "writeConcern": { "w": "majority" } };
        let reply = self.client.database("admin").run_command(command).session(&mut self.session).await;
        let time = reply.context("prepare a transaction")?.get_timestamp("prepareTimestamp")?;
        self.prepared_at = Some(time);
        Ok(time)
    }

    /// Commits it, prepared or not.
    ///
    /// # Errors
    /// What the server answers.
    pub async fn commit(mut self) -> Result<()> {
        let Some(time) = self.prepared_at else {
            return self.session.commit_transaction().await.context("commit a transaction");
        };
        let command = doc! { "commitTransaction": 1, "commitTimestamp": time };
        let reply = self.client.database("admin").run_command(command).session(&mut self.session).await;
        reply.map(|_| ()).context("commit a prepared transaction")
    }

    /// Aborts it.
    ///
    /// # Errors
    /// What the server answers.
    pub async fn abort(mut self) -> Result<()> {
        self.session.abort_transaction().await.context("abort a transaction")
    }
}
