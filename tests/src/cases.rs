//! Random documents and random updates of them, run on a real source: the material of property tests.
//!
//! A case is one document and a few operations on it. Operations are statements of the server's own commands, so that
//! whatever the server makes of them is what a collector has to carry over; those that it refuses are part of the
//! material. Cases run side by side, one command a step. Nothing here knows how changes are captured or applied:
//! oplog entries and change events of the same cases can be tested with the same material.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use bson::{Bson, Document, RawBson, RawDocumentBuf, cstr, doc};
use futures_util::TryStreamExt as _;
use mongodb::Client;
use mongodb::error::ErrorKind;

#[allow(clippy::indexing_slicing, reason = "the indexes are drawn below the length, or counted")]
mod generate;
#[allow(clippy::indexing_slicing, reason = "the indexes are counted")]
mod shrink;

pub use generate::{Generator, OPERATIONS};
pub use shrink::smaller;

/// One document and what happens to it.
#[derive(Debug, Clone, PartialEq)]
pub struct Case {
    /// Its `_id`.
    pub id: i32,
    /// The document before everything, with its `_id`.
    pub start: RawDocumentBuf,
    /// What happens, in order.
    pub operations: Vec<Operation>,
}

/// One statement without its selector: `{u, filter?, arrayFilters?, upsert?}` of an `update`, the same with
/// `modify: true` for a `findAndModify`, or `{delete: true}`.
#[derive(Debug, Clone, PartialEq)]
pub struct Operation(pub RawDocumentBuf);

impl Operation {
    /// An update by modifiers, a replacement (documents) or a pipeline (an array).
    #[must_use]
    pub fn update(update: impl Into<RawBson>) -> Self {
        let mut statement = RawDocumentBuf::new();
        statement.append(cstr!("u"), update.into());
        Self(statement)
    }

    /// An update by a pipeline of one stage.
    #[must_use]
    pub fn stage(stage: RawDocumentBuf) -> Self {
        let mut stages = bson::RawArrayBuf::new();
        stages.push(stage);
        Self::update(stages)
    }

    /// The document is removed.
    #[must_use]
    pub fn delete() -> Self {
        Self(bson::rawdoc! { "delete": true })
    }

    /// The same with another part, such as `upsert: true`.
    #[must_use]
    pub fn with(mut self, name: &'static bson::raw::CStr, value: impl Into<RawBson>) -> Self {
        self.0.append(name, value.into());
        self
    }

    fn flag(&self, name: &str) -> bool {
        self.0.get_bool(name).unwrap_or_default()
    }

    fn selector(&self, id: i32) -> RawDocumentBuf {
        let mut selector = bson::rawdoc! { "_id": id };
        if let Ok(filter) = self.0.get_document("filter") {
            filter.iter().flatten().for_each(|(name, value)| selector.append(name, value));
        }
        selector
    }

    /// The parts that go into a statement as they are.
    fn copy(&self, names: &[&str], into: &mut RawDocumentBuf) {
        for (name, value) in self.0.iter().flatten() {
            if names.contains(&name.as_str()) {
                into.append(name, value);
            }
        }
    }
}

impl Case {
    /// The case as a line to keep: the bytes in hexadecimal. Text would lose what the cases are about, such as a NaN's
    /// payload or two fields of one name.
    #[must_use]
    pub fn to_line(&self) -> String {
        let mut list = bson::RawArrayBuf::new();
        self.operations.iter().for_each(|operation| list.push(operation.0.clone()));
        let mut whole = RawDocumentBuf::new();
        whole.append(cstr!("start"), self.start.clone());
        whole.append(cstr!("operations"), list);
        whole.as_bytes().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// A case out of a kept line.
    ///
    /// # Errors
    /// When the line is not what [`Self::to_line`] writes.
    pub fn from_line(line: &str) -> Result<Self> {
        let digits = line.trim().as_bytes().chunks(2).map(std::str::from_utf8);
        let bytes: Result<Vec<u8>> = digits.map(|pair| Ok(u8::from_str_radix(pair?, 16)?)).collect();
        let whole = RawDocumentBuf::from_bytes(bytes.context("read a kept case")?)?;
        let start = whole.get_document("start")?.to_owned();
        let listed = whole.get_array("operations")?.into_iter();
        let operations: Result<Vec<Operation>> = listed
            .map(|operation| Ok(Operation(operation?.as_document().context("an operation")?.to_owned())))
            .collect();
        Ok(Self { id: start.get_i32("_id")?, start, operations: operations? })
    }

    /// The case for a reader.
    #[must_use]
    pub fn shown(&self) -> String {
        let operations: Vec<String> = self.operations.iter().map(|operation| shown(&operation.0)).collect();
        format!("{} ← {}", shown(&self.start), operations.join(" ← "))
    }
}

/// A raw document for a reader.
#[must_use]
pub fn shown(document: &RawDocumentBuf) -> String {
    let readable: std::result::Result<Document, _> = document.clone().try_into();
    readable.map_or_else(|_| format!("{document:?}"), |document| document.to_string())
}

/// Runs the operation `number` of every case on `database.collection`. What the server refuses is refused silently.
///
/// # Errors
/// When a command fails as a whole.
pub async fn run(client: &Client, database: &str, collection: &str, cases: &[Case], number: usize) -> Result<()> {
    let mut updates = bson::RawArrayBuf::new();
    let mut deletes = bson::RawArrayBuf::new();
    for case in cases {
        let Some(operation) = case.operations.get(number) else { continue };
        let selector = operation.selector(case.id);
        if operation.flag("delete") {
            deletes.push(bson::rawdoc! { "q": selector, "limit": 1 });
        } else if operation.flag("modify") {
            find_and_modify(client, database, collection, operation, selector).await?;
        } else {
            let mut statement = bson::rawdoc! { "q": selector };
            operation.copy(&["u", "upsert", "arrayFilters"], &mut statement);
            updates.push(statement);
        }
    }
    for (verb, list, statements) in [("update", "updates", updates), ("delete", "deletes", deletes)] {
        if !statements.is_empty() {
            let mut command = RawDocumentBuf::new();
            command.append(bson::raw::CString::try_from(verb)?, collection);
            command.append(cstr!("ordered"), false);
            command.append(bson::raw::CString::try_from(list)?, statements);
            client.database(database).run_raw_command(command).await.with_context(|| format!("run step {number}"))?;
        }
    }
    Ok(())
}

async fn find_and_modify(
    client: &Client,
    database: &str,
    collection: &str,
    operation: &Operation,
    selector: RawDocumentBuf,
) -> Result<()> {
    let mut command = bson::rawdoc! { "findAndModify": collection, "query": selector };
    for (name, value) in operation.0.iter().flatten() {
        match name.as_str() {
            "u" => command.append(cstr!("update"), value),
            "upsert" | "arrayFilters" => command.append(name, value),
            _ => {}
        }
    }
    match client.database(database).run_raw_command(command).await {
        Err(e) if !matches!(e.kind.as_ref(), ErrorKind::Command(_)) => Err(e.into()),
        _ => Ok(()),
    }
}

/// Every document of a collection, raw, by its `_id`.
///
/// # Errors
/// When the server does not answer.
pub async fn documents(client: &Client, database: &str, collection: &str) -> Result<BTreeMap<i32, RawDocumentBuf>> {
    let cursor = client.database(database).collection::<RawDocumentBuf>(collection).find(doc! {}).await?;
    let all: Vec<RawDocumentBuf> = cursor.try_collect().await?;
    all.into_iter().map(|document| Ok((document.get_i32("_id")?, document))).collect()
}

/// A document in raw form.
///
/// # Panics
/// Never for documents that the bson crate can hold at all.
#[must_use]
pub fn raw(document: &Document) -> RawDocumentBuf {
    RawDocumentBuf::try_from(document).unwrap_or_default()
}

/// A value in raw form.
#[must_use]
pub fn raw_value(value: Bson) -> RawBson {
    RawBson::try_from(value).unwrap_or(RawBson::Null)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kept_line_is_read_back() {
        let mut start = bson::rawdoc! { "_id": 7, "a": f64::from_bits(0x7ff8_0000_dead_beef) };
        start.append(cstr!("a"), 2);
        let operations = vec![Operation::update(bson::rawdoc! { "$set": { "x": 1 } }).with(cstr!("upsert"), true)];
        let case = Case { id: 7, start, operations };
        assert_eq!(Case::from_line(&case.to_line()).unwrap(), case);
    }
}
