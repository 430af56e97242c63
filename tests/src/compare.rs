//! Byte-for-byte comparison of a source with a target: documents, collection options, indexes.
//!
//! "Equal" is the project's promise, so it is checked on the raw bytes the servers return and never on decoded
//! values, which would hide a changed number type, a moved field or a lost NaN payload. Names pass a rename
//! map and a predicate; expected documents may pass a transformation, for plugins that change them. It reports
//! differences and never asserts, never writes except the sentinel of [`Comparison::wait`].

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use bson::raw::{RawDocument, RawDocumentBuf};
use bson::{Document, doc, oid::ObjectId};
use mongodb::Client;

use crate::patience;

mod catalog;
mod difference;
mod documents;

use catalog::{Catalog, Collection};
pub use difference::{Difference, DifferenceKind, report};

/// Databases that are never replicated, or that hold the collector's own state.
const OWN_DATABASES: [&str; 5] = ["admin", "local", "config", "mongoshake", "oplogue"];

/// Differences reported per comparison; the rest would only repeat them.
const DIFFERENCES_MAX: usize = 20;

type Predicate = Box<dyn Fn(&str) -> bool + Send + Sync>;
type Expectation = Box<dyn Fn(&str, &RawDocument) -> Option<RawDocumentBuf> + Send + Sync>;

/// What is compared with what. Build it once and run it as often as needed.
pub struct Comparison {
    source: Client,
    target: Client,
    include: Predicate,
    expect: Expectation,
    renames: Vec<(String, String)>,
    ignored_field: Option<String>,
    indexes: bool,
    options: bool,
}

impl Comparison {
    /// Compares everything but the servers' own databases and the collector's.
    #[must_use]
    pub fn new(source: Client, target: Client) -> Self {
        Self {
            source,
            target,
            include: Box::new(|_| true),
            expect: Box::new(|_, document| Some(document.to_owned())),
            renames: Vec::new(),
            ignored_field: None,
            indexes: true,
            options: true,
        }
    }

    /// Compares only the source namespaces that pass; the others must be absent on the target.
    #[must_use]
    pub fn only(mut self, include: impl Fn(&str) -> bool + Send + Sync + 'static) -> Self {
        self.include = Box::new(include);
        self
    }

    /// Expects a namespace (`a.b` → `c.d`) or a database (`a` → `c`) under another name. The first rule wins.
    #[must_use]
    pub fn rename(mut self, from: &str, to: &str) -> Self {
        self.renames.push((from.to_owned(), to.to_owned()));
        self
    }

    /// Expects each source document in a changed form, or not at all where the function returns none. It gets
    /// the source namespace and the document's bytes.
    #[must_use]
    pub fn expect(
        mut self,
        expect: impl Fn(&str, &RawDocument) -> Option<RawDocumentBuf> + Send + Sync + 'static,
    ) -> Self {
        self.expect = Box::new(expect);
        self
    }

    /// Ignores the value of one top-level field on both sides, though not its place or absence: for fields that a
    /// plugin masks and whose mask is checked apart.
    #[must_use]
    pub fn ignoring_field(mut self, name: &str) -> Self {
        self.ignored_field = Some(name.to_owned());
        self
    }

    /// Leaves indexes out, for runs that do not copy them.
    #[must_use]
    pub fn without_indexes(mut self) -> Self {
        self.indexes = false;
        self
    }

    /// Leaves collection options out, for runs that start without a full copy.
    #[must_use]
    pub fn without_options(mut self) -> Self {
        self.options = false;
        self
    }

    /// Compares now. Empty means equal. Both sides must be still for the answer to mean anything.
    ///
    /// # Errors
    /// When a server does not answer.
    pub async fn run(&self) -> Result<Vec<Difference>> {
        let source = Catalog::read(&self.source).await.context("read the source's catalogue")?;
        let target = Catalog::read(&self.target).await.context("read the target's catalogue")?;
        let mut found = Vec::new();
        let mut expected = Vec::new();
        for collection in source.collections().filter(|item| (self.include)(&item.namespace)) {
            let name = self.target_name(&collection.namespace);
            match target.get(&name) {
                Some(other) => self.compare(collection, other, &mut found).await?,
                None => found.push(Difference::new(&name, DifferenceKind::MissingCollection, "")),
            }
            expected.push(name);
            if found.len() >= DIFFERENCES_MAX {
                return Ok(found);
            }
        }
        for collection in target.collections().filter(|item| !expected.contains(&item.namespace)) {
            found.push(Difference::new(&collection.namespace, DifferenceKind::ExtraCollection, ""));
        }
        Ok(found)
    }

    /// Waits until a sentinel written to `sentinel` (`db.collection` of the source, one that is replicated) has
    /// reached the target, and then until both sides are equal. Writing must have stopped before.
    ///
    /// # Errors
    /// When the deadline passes: the message carries the differences that remain, or why they are not known.
    pub async fn wait(&self, sentinel: &str, timeout: Duration) -> Result<()> {
        let (started, timeout) = (Instant::now(), patience::at_most(timeout));
        self.pass(sentinel, timeout).await?;
        loop {
            // DDL that the collector still runs may break a read off.
            let outcome = self.run().await;
            if matches!(&outcome, Ok(found) if found.is_empty()) {
                return Ok(());
            }
            if started.elapsed() > timeout {
                let found = outcome?;
                anyhow::bail!("source and target still differ after {timeout:?}:\n{}", report(&found));
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// Waits until a sentinel written to `namespace` of the source has reached the target. Other namespaces and other
    /// documents may still be on their way.
    async fn pass(&self, namespace: &str, timeout: Duration) -> Result<()> {
        let (started, timeout) = (Instant::now(), patience::at_most(timeout));
        let marker = doc! { "_id": ObjectId::new(), "sentinel": true };
        let filter = doc! { "_id": marker.get_object_id("_id")? };
        let source = collection(&self.source, namespace)?;
        source.insert_one(marker).await.context("write the sentinel")?;
        let target = collection(&self.target, &self.target_name(namespace))?;
        while target.find_one(filter.clone()).await.context("look for the sentinel")?.is_none() {
            anyhow::ensure!(
                started.elapsed() < timeout,
                "the sentinel written to {namespace} has not reached the target within {timeout:?}"
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }

    /// The name under which a source namespace is expected on the target.
    #[must_use]
    pub fn target_name(&self, namespace: &str) -> String {
        for (from, to) in &self.renames {
            if namespace == from {
                return to.clone();
            }
            let rest = namespace.strip_prefix(from.as_str()).filter(|rest| rest.starts_with('.'));
            if let (Some(rest), false) = (rest, from.contains('.')) {
                return format!("{to}{rest}");
            }
        }
        namespace.to_owned()
    }

    async fn compare(&self, source: &Collection, target: &Collection, found: &mut Vec<Difference>) -> Result<()> {
        if self.options {
            catalog::compare_options(source, target, &|name| self.target_name(name), found);
        }
        if self.indexes {
            catalog::compare_indexes(source, target, found);
        }
        if source.has_documents() && found.len() < DIFFERENCES_MAX {
            let sides = documents::Sides {
                source: collection(&self.source, &source.namespace)?,
                target: collection(&self.target, &target.namespace)?,
                natural: source.is_capped(),
                ignored_field: self.ignored_field.as_deref(),
            };
            let expect = |document: &RawDocument| (self.expect)(&source.namespace, document);
            let differences = documents::compare(sides, expect, DIFFERENCES_MAX).await;
            found.extend(differences.with_context(|| format!("compare {}", source.namespace))?);
        }
        Ok(())
    }
}

fn collection(client: &Client, namespace: &str) -> Result<mongodb::Collection<Document>> {
    let (db, name) = namespace.split_once('.').with_context(|| format!("{namespace} is no namespace"))?;
    Ok(client.database(db).collection(name))
}
