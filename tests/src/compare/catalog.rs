//! What a server says about its collections: options and indexes, without what can never be equal.
//!
//! A collection's UUID belongs to its server and the namespaces of views and indexes follow the rename; the
//! rest must be equal byte for byte. Options are compared as the server prints them; the fields of an index
//! specification in sorted order, since that order is an accident of the client, but its key pattern as is. What follows
//! from a server's version (the number type of a TTL, the validator of time-series buckets) is left out.
//! The servers' own databases and `system.views`, `system.profile` are left out.

use std::collections::BTreeMap;

use anyhow::Result;
use bson::{Bson, Document, doc};
use futures_util::TryStreamExt as _;
use mongodb::Client;

use super::OWN_DATABASES;
use super::difference::{Difference, DifferenceKind};

pub(super) struct Collection {
    pub(super) namespace: String,
    kind: String,
    options: Document,
    indexes: BTreeMap<String, Document>,
}

impl Collection {
    /// Whether the namespace stores documents itself: views and time-series collections show others'.
    pub(super) fn has_documents(&self) -> bool {
        self.kind == "collection"
    }

    pub(super) fn is_capped(&self) -> bool {
        self.options.get_bool("capped").unwrap_or_default()
    }
}

pub(super) struct Catalog(BTreeMap<String, Collection>);

impl Catalog {
    pub(super) async fn read(client: &Client) -> Result<Self> {
        let mut all = BTreeMap::new();
        for name in client.list_database_names().await? {
            if OWN_DATABASES.contains(&name.as_str()) {
                continue;
            }
            let db = client.database(&name);
            let cursor = db.run_cursor_command(doc! { "listCollections": 1 }).await?;
            for entry in cursor.try_collect::<Vec<Document>>().await? {
                let collection = Self::read_collection(&db, &name, entry).await?;
                let own = [".system.views", ".system.profile"];
                if !own.iter().any(|suffix| collection.namespace.ends_with(suffix)) {
                    all.insert(collection.namespace.clone(), collection);
                }
            }
        }
        Ok(Self(all))
    }

    pub(super) fn collections(&self) -> impl Iterator<Item = &Collection> {
        self.0.values()
    }

    pub(super) fn get(&self, namespace: &str) -> Option<&Collection> {
        self.0.get(namespace)
    }

    async fn read_collection(db: &mongodb::Database, db_name: &str, entry: Document) -> Result<Collection> {
        let name = entry.get_str("name")?;
        let kind = entry.get_str("type").unwrap_or("collection").to_owned();
        let mut indexes = BTreeMap::new();
        if kind == "collection" {
            let command = doc! { "listIndexes": name };
            // A collection may be dropped between the two commands; it then has no index to compare.
            if let Ok(cursor) = db.run_cursor_command(command).await {
                for index in cursor.try_collect::<Vec<Document>>().await? {
                    indexes.insert(index.get_str("name")?.to_owned(), sorted(index));
                }
            }
        }
        let mut options = entry.get_document("options").cloned().unwrap_or_default();
        if name.starts_with("system.buckets.") {
            // It follows from `timeseries`, and from the server's version.
            options.remove("validator");
        }
        Ok(Collection { namespace: format!("{db_name}.{name}"), kind, options, indexes })
    }
}

/// Compares type and options; `rename` maps the collection that a view stands on.
pub(super) fn compare_options(
    source: &Collection,
    target: &Collection,
    rename: &dyn Fn(&str) -> String,
    found: &mut Vec<Difference>,
) {
    let mut expected = source.options.clone();
    if let (true, Some((db, _))) = (source.kind == "view", source.namespace.split_once('.')) {
        let here = |name: &str| {
            let renamed = rename(&format!("{db}.{name}"));
            renamed.split_once('.').map_or_else(|| name.to_owned(), |(_, name)| name.to_owned())
        };
        if let Ok(on) = source.options.get_str("viewOn") {
            expected.insert("viewOn", here(on));
        }
        if let Some(pipeline) = expected.get_mut("pipeline") {
            rename_sources(pipeline, &here);
        }
    }
    if source.kind != target.kind || bytes(&expected) != bytes(&target.options) {
        let detail = format!("  source {} {expected}\n  target {} {}", source.kind, target.kind, target.options);
        found.push(Difference::new(&target.namespace, DifferenceKind::Options, detail));
    }
}

/// Renames what the stages of a view's pipeline read from, at any depth: also where a test's view would have to name a
/// field `from`, which none does.
fn rename_sources(value: &mut Bson, rename: &dyn Fn(&str) -> String) {
    if let Bson::Array(values) = value {
        values.iter_mut().for_each(|value| rename_sources(value, rename));
    }
    let Bson::Document(stage) = value else { return };
    for (name, inside) in stage.iter_mut() {
        if let (Bson::String(source), "from" | "coll" | "$unionWith") = (&mut *inside, name.as_str()) {
            *source = rename(source);
        }
        rename_sources(inside, rename);
    }
}

/// Compares the indexes by name, the one on `_id` included.
pub(super) fn compare_indexes(source: &Collection, target: &Collection, found: &mut Vec<Difference>) {
    let names: std::collections::BTreeSet<&String> = source.indexes.keys().chain(target.indexes.keys()).collect();
    for name in names {
        let (left, right) = (source.indexes.get(name), target.indexes.get(name));
        if left.map(bytes) != right.map(bytes) {
            let show = |side: Option<&Document>| side.map_or("(none)".to_owned(), ToString::to_string);
            let detail = format!("  source {}\n  target {}", show(left), show(right));
            found.push(Difference::new(&target.namespace, DifferenceKind::Index, detail));
        }
    }
}

/// The specification with its fields in name order and without `ns`, which servers before 4.4 print.
fn sorted(index: Document) -> Document {
    let mut fields: BTreeMap<String, Bson> = index.into_iter().filter(|(name, _)| name != "ns").collect();
    // The user's own form of an index on a time-series.
    if let Some(Bson::Document(original)) = fields.get("originalSpec").cloned() {
        fields.insert("originalSpec".to_owned(), Bson::Document(sorted(original)));
    }
    // A `collMod` leaves it in the type that the server's version prefers.
    if let Some(Bson::Int64(seconds)) = fields.get("expireAfterSeconds").cloned() {
        fields.insert("expireAfterSeconds".to_owned(), Bson::Double(seconds as f64));
    }
    if let Some(Bson::Int32(seconds)) = fields.get("expireAfterSeconds").cloned() {
        fields.insert("expireAfterSeconds".to_owned(), Bson::Double(f64::from(seconds)));
    }
    fields.into_iter().collect()
}

fn bytes(document: &Document) -> Vec<u8> {
    document.to_vec().unwrap_or_default()
}
