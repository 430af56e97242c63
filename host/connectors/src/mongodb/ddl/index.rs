//! `createIndexes` and `dropIndexes`.
//!
//! A specification goes over as the source has it, without the namespace that old servers put in. What cannot stand
//! yet, because the collection is in overlap, is kept for the overlap mark: unique indexes that do not hold, indexes that
//! a document of another moment does not fit, and those that would let documents expire whose life is still to be prolonged.

use std::collections::{HashMap, HashSet};

use bson::RawDocumentBuf;
use bytes::Bytes;
use futures_util::TryStreamExt as _;
use oplogue_engine::error::{Action, Error, Kind, Result, Side};
use oplogue_engine::model::raw::{self, Elements, Malformed, kind};
use oplogue_engine::model::{CollectionUuid, Namespace, NamespaceId, OpTime};

use super::super::patience::answered;
use super::{
    CANNOT_CONVERT_INDEX_TO_UNIQUE, DdlRefused, Executor, INDEX_NOT_FOUND, NAMESPACE_NOT_FOUND, Turn, skipped, visible,
};
use crate::mongodb::command::{Concern, DUPLICATE_KEY};
use crate::mongodb::identity::{CollectionInfo, Standing};
use crate::mongodb::sink::MongoSink;
use crate::mongodb::sink::cure::is_by_index;
use crate::mongodb::writer::RawWriter;
use crate::mongodb::{classify, command};

const INDEX_OPTIONS_CONFLICT: i32 = 85;
const INDEX_KEY_SPECS_CONFLICT: i32 = 86;
const CANNOT_CREATE_INDEX: i32 = 67;
const INVALID_INDEX_OPTION: i32 = 197;

/// An index that waits for the overlap mark.
#[derive(Debug)]
pub(in crate::mongodb) struct Postponed {
    target: NamespaceId,
    spec: Bytes,
    /// The entry that asked for it.
    time: OpTime,
}

impl Executor<'_> {
    pub(super) async fn create_indexes(&self, target: NamespaceId, specs: &[Bytes]) -> Result<Option<OpTime>> {
        let (mut target, mut name) = (target, self.name_of(target));
        let mut present = self.sink.catalogue.refresh(&name).await?;
        if self.is_in_copy() {
            return Ok(skipped("createIndexes", &name));
        }
        if let Some(source) = self.source {
            match self.sink.catalogue.standing(&name, source) {
                Standing::Own(_) | Standing::Nameless | Standing::Absent => {}
                Standing::Unclaimed(uuid) => self.sink.catalogue.must_claim(&name, source, uuid).await?,
                // An index that had to wait for the mark when its collection was renamed, and did not live to see it, is
                // the collection's under its new name.
                Standing::Other | Standing::Gone => match self.elsewhere(Some(source)) {
                    Some(place) => {
                        present = self.sink.catalogue.refresh(&place).await?;
                        (target, name) = (self.sink.namespaces.intern(place.as_str()), place);
                    }
                    None => return Ok(skipped("createIndexes", &name)),
                },
            }
        }
        let (mut time, mut refused) = (None, None);
        for spec in specs {
            if self.overlap && expires(spec)? {
                self.postpone(&name, target, spec).await;
                continue;
            }
            let w = index_command(&name, present, &[spec], self.concern, false)?;
            let built = match self.try_run(name.database(), w).await? {
                Ok(at) => Ok(at),
                Err(e) => self.index_refused(&name, target, present, spec, e).await,
            };
            match built {
                Ok(at) => time = at.max(time),
                // Those beside one that the target does not take are built all the same.
                Err(error) if error.action() == Action::Stop => refused = refused.or(Some(error)),
                Err(error) => return Err(error),
            }
        }
        self.sink.catalogue.forget_expiring(&name);
        if present.is_none() {
            self.adopt(&name).await?;
        }
        refused.map_or(Ok(time), Err)
    }

    async fn index_refused(
        &self,
        name: &Namespace,
        target: NamespaceId,
        present: Option<CollectionInfo>,
        spec: &Bytes,
        e: mongodb::error::Error,
    ) -> Result<Option<OpTime>> {
        match classify::code(&e) {
            // A later entry gave the index another form already, and its drop or change follows; or the target has one of
            // its own, which is seen at the mark.
            Some(INDEX_OPTIONS_CONFLICT | INDEX_KEY_SPECS_CONFLICT) if self.overlap => {
                self.postpone(name, target, spec).await;
                Ok(None)
            }
            // No room for a second text index, or a 65th one, before a later entry drops another. What the target takes at
            // no time says the same, and is to be left out at once where the settings say so.
            Some(CANNOT_CREATE_INDEX) if self.overlap && self.sink.options.ddl_refused == DdlRefused::Stop => {
                self.postpone(name, target, spec).await;
                Ok(None)
            }
            // A document in between does not fit it.
            Some(code) if self.overlap && (code == DUPLICATE_KEY || is_by_index(code)) => {
                self.postpone(name, target, spec).await;
                Ok(None)
            }
            // Options of other versions.
            Some(INVALID_INDEX_OPTION) => {
                let w = index_command(name, present, &[spec], self.concern, true)?;
                self.run(name.database(), "createIndexes", name, w, &[]).await
            }
            _ => Err(classify::error(Side::Sink, &format!("run createIndexes on {name}"), e)),
        }
    }

    /// Where the collection of a repeated entry stands, whose name it has no longer.
    pub(super) fn elsewhere(&self, source: Option<CollectionUuid>) -> Option<Namespace> {
        let source = source.filter(|_| self.overlap && !self.is_in_copy())?;
        self.sink.catalogue.place_of(source)
    }

    /// Leaves an index to the overlap mark.
    async fn postpone(&self, name: &Namespace, target: NamespaceId, spec: &Bytes) {
        tracing::info!(namespace = %name, "an index waits for the end of the overlap");
        self.sink.postponed.lock().await.push(Postponed { target, spec: spec.clone(), time: self.time });
        self.postponed.store(true, std::sync::atomic::Ordering::Relaxed);
    }

    /// What waits for the mark goes with its collection.
    pub(super) async fn forget_all_postponed(&self, name: &Namespace) {
        let namespaces = &self.sink.namespaces;
        self.sink.postponed.lock().await.retain(|waits| {
            let at = namespaces.name(waits.target);
            visible(&at) != visible(name) || at.database() != name.database()
        });
    }

    /// What waits for the mark gets its collection's new name.
    pub(super) async fn move_postponed(&self, from: &Namespace, to: &Namespace) {
        self.forget_all_postponed(to).await;
        let namespaces = &self.sink.namespaces;
        let to = namespaces.intern(to.as_str());
        for waits in self.sink.postponed.lock().await.iter_mut() {
            if namespaces.name(waits.target) == *from {
                waits.target = to;
            }
        }
    }

    /// A `collMod` of an index that waits for the mark changes what is built there. Whether one does.
    pub(super) async fn modify_postponed(&self, name: &Namespace, options: &[u8]) -> Result<bool> {
        let Some(change) = raw::find(options, "index")?.filter(|index| index.kind == kind::DOCUMENT) else {
            return Ok(false);
        };
        let mut waits = false;
        for Postponed { target, spec, .. } in self.sink.postponed.lock().await.iter_mut() {
            if self.sink.namespaces.name(*target) == *name && is_meant(change.value, spec)? {
                *spec = modified(spec, change.value)?;
                waits = true;
            }
        }
        Ok(waits)
    }

    /// An index that is to become unique does not hold yet: it becomes so at the mark. Until then it stays as it is.
    pub(super) async fn convert_at_mark(&self, name: &Namespace, options: &[u8]) -> Result<()> {
        let Some(change) = raw::find(options, "index")?.filter(|index| index.kind == kind::DOCUMENT) else {
            return Ok(());
        };
        let failed = |e| classify::error(Side::Sink, &format!("list the indexes of {name} (needs `listIndexes`)"), e);
        let command = bson::doc! { "listIndexes": name.collection() };
        let database = self.sink.client.database(name.database());
        let list = async { database.run_cursor_command(command).await?.with_type().try_collect().await };
        let doing = &format!("list the indexes of {name}");
        let listed: Vec<RawDocumentBuf> = answered(Side::Sink, doing, list).await?.map_err(failed)?;
        for spec in listed {
            if !is_meant(change.value, spec.as_bytes())? || is_unique(spec.as_bytes())? {
                continue;
            }
            let spec = modified(spec.as_bytes(), change.value)?;
            self.postpone(name, self.sink.namespaces.intern(name.as_str()), &spec).await;
        }
        Ok(())
    }

    /// Makes an index that stands the unique one of `spec`; a conflict where documents stand in its way.
    async fn convert(&self, name: &Namespace, spec: &[u8]) -> Result<()> {
        let index = index_name(spec).unwrap_or_default();
        let mut w = self.command("collMod", name.collection());
        w.document("index", |w| {
            w.string("name", &index);
            w.boolean("unique", true);
        });
        command::write_concern(&mut w, self.concern);
        match self.try_run(name.database(), w).await? {
            Ok(_) => Ok(()),
            Err(e) => {
                let doing = format!("make the index {} of {name} unique", String::from_utf8_lossy(&index));
                let stands = classify::code(&e) == Some(CANNOT_CONVERT_INDEX_TO_UNIQUE);
                let error = classify::error(Side::Sink, &doing, e);
                Err(if stands { Error::new(Side::Sink, Kind::Conflict, error.to_string()) } else { error })
            }
        }
    }

    pub(super) async fn drop_index(&self, name: &Namespace, index: &str) -> Result<Option<OpTime>> {
        if self.overlap && !self.is_in_copy() {
            self.sink.dropped_indexes.lock().await.note(self.source, index);
        }
        let elsewhere;
        let name = match self.turn(name).await? {
            Turn::Run => name,
            // As it is made under the collection's new name, so it goes. One that was made again is still to come.
            Turn::Done => match self.elsewhere(self.source) {
                Some(place) => {
                    elsewhere = place;
                    &elsewhere
                }
                None => return Ok(skipped("dropIndexes", name)),
            },
        };
        self.sink.forget_postponed(name, index).await;
        let mut w = self.command("dropIndexes", name.collection());
        w.string("index", index);
        command::write_concern(&mut w, self.concern);
        self.run(name.database(), "dropIndexes", name, w, &[INDEX_NOT_FOUND, NAMESPACE_NOT_FOUND]).await
    }
}

/// The indexes that the stream has dropped since the last overlap mark. If one stands on the source all the same it was
/// made again, which the stream has repeated or will repeat.
#[derive(Debug, Default)]
pub struct DroppedIndexes(HashMap<CollectionUuid, HashSet<Vec<u8>>>);

impl DroppedIndexes {
    fn note(&mut self, source: Option<CollectionUuid>, index: &str) {
        if let Some(source) = source {
            self.0.entry(source).or_default().insert(index.as_bytes().to_vec());
        }
    }

    /// What the stream says of a collection's indexes ends with it: one that comes back is copied, indexes and all.
    pub(super) fn forget(&mut self, source: Option<CollectionUuid>) {
        source.and_then(|source| self.0.remove(&source));
    }

    /// Whether the index of `spec` is one of them.
    #[must_use]
    pub fn contains(&self, source: Option<CollectionUuid>, spec: &[u8]) -> bool {
        let dropped = source.and_then(|source| self.0.get(&source));
        dropped.zip(index_name(spec)).is_some_and(|(dropped, index)| dropped.contains(&index))
    }
}

impl MongoSink {
    /// The indexes that were dropped since this was last asked.
    pub async fn take_dropped_indexes(&self) -> DroppedIndexes {
        std::mem::take(&mut *self.dropped_indexes.lock().await)
    }

    /// Builds indexes that could not stand in overlap. Called at the overlap mark, with the namespaces drained.
    ///
    /// # Errors
    /// `Conflict` when an index cannot stand even now.
    pub async fn build_postponed_indexes(&self) -> Result<()> {
        let target = self.target().await?;
        // What follows may note that it is done.
        let concern = if target.is_replicated { Concern::Majority } else { self.concern(target) };
        Executor::new(self, None, true, concern).meet_all_unplaced().await?;
        let mut postponed = self.postponed.lock().await;
        while let Some(Postponed { target, spec, time }) = postponed.last() {
            let name = self.namespaces.name(*target);
            let mut built = self.build_indexes(&name, &[spec], concern).await.map(|_| ());
            // Where it stands and is not unique yet, it is made so.
            if built.as_ref().is_err_and(|error| error.kind() == Kind::CannotApply) && is_unique(spec)? {
                built = Executor::new(self, None, false, concern).convert(&name, spec).await;
            }
            match built {
                Ok(()) => {}
                // What is in its way may be gone at the next mark; what the target takes at no time is not.
                Err(error) if error.kind() == Kind::Conflict => return Err(error.context(format!("entry at {time}"))),
                Err(error) => self.refused("createIndexes", &name, *time, error)?,
            }
            postponed.pop();
        }
        Ok(())
    }

    async fn forget_postponed(&self, name: &Namespace, index: &str) {
        self.postponed.lock().await.retain(|waits| {
            self.namespaces.name(waits.target) != *name || index_name(&waits.spec).as_deref() != Some(index.as_bytes())
        });
    }

    /// Builds indexes, all in one command and, when that is refused, one by one, so that the message names each that
    /// failed.
    pub(in crate::mongodb) async fn build_indexes(
        &self,
        name: &Namespace,
        specs: &[&Bytes],
        concern: Concern,
    ) -> Result<Option<OpTime>> {
        let built = self.build_all(name, specs, concern).await;
        self.catalogue.forget_expiring(name);
        built
    }

    async fn build_all(&self, name: &Namespace, specs: &[&Bytes], concern: Concern) -> Result<Option<OpTime>> {
        let executor = Executor::new(self, None, false, concern);
        let present = self.catalogue.refresh(name).await?;
        let wanted = index_specs(specs)?;
        if wanted.is_empty() {
            return Ok(None);
        }
        let w = index_command(name, present, &wanted, concern, false)?;
        if let Ok(time) = executor.try_run(name.database(), w).await? {
            return Ok(time);
        }
        let mut time = None;
        let mut failed: Vec<(Kind, String)> = Vec::new();
        for spec in wanted {
            let w = index_command(name, present, &[spec], concern, true)?;
            match executor.try_run(name.database(), w).await? {
                Ok(at) => time = at.max(time),
                Err(e) => {
                    let index = index_name(spec).unwrap_or_default();
                    let doing = format!("build index {}", String::from_utf8_lossy(&index));
                    let error = classify::error(Side::Sink, &doing, e);
                    failed.push((error.kind(), error.to_string()));
                }
            }
        }
        match failed.first() {
            None => Ok(time),
            Some((kind, _)) => {
                let all: Vec<&str> = failed.iter().map(|(_, text)| text.as_str()).collect();
                Err(Error::new(Side::Sink, *kind, format!("build indexes of {name}: {}", all.join("; "))))
            }
        }
    }
}

/// Whether a `collMod` makes an index unique.
pub(super) fn makes_unique(options: &[u8]) -> Result<bool, Malformed> {
    let change = raw::find(options, "index")?.filter(|index| index.kind == kind::DOCUMENT);
    change.map_or(Ok(false), |change| is_unique(change.value))
}

fn is_unique(spec: &[u8]) -> Result<bool, Malformed> {
    Ok(raw::find(spec, "unique")?.is_some_and(|unique| unique.kind == kind::BOOLEAN && unique.value == [1]))
}

/// Whether documents expire by this index.
fn expires(spec: &[u8]) -> Result<bool, Malformed> {
    Ok(raw::find(spec, "expireAfterSeconds")?.is_some())
}

/// Whether a `collMod`'s `index`, by name or by keys, is the one of `spec`.
fn is_meant(change: &[u8], spec: &[u8]) -> Result<bool, Malformed> {
    for (given, own) in [("name", "name"), ("keyPattern", "key")] {
        if let Some(given) = raw::find(change, given)? {
            return Ok(raw::find(spec, own)?.is_some_and(|own| own.value == given.value));
        }
    }
    Ok(false)
}

/// `spec` with the options of a `collMod`'s `index` in place of its own. A unique index is prepared no more.
fn modified(spec: &[u8], change: &[u8]) -> Result<Bytes, Malformed> {
    let mut w = RawWriter::with_capacity(spec.len() + change.len());
    let becomes_unique = find(change, b"unique")?.is_some();
    for option in Elements::new(spec)? {
        let option = option?;
        if option.name == b"prepareUnique" && becomes_unique {
            continue;
        }
        if find(change, option.name)?.is_none_or(|_| option.name == b"name") {
            w.element(&option);
        }
    }
    for option in Elements::new(change)? {
        let option = option?;
        if !matches!(option.name, b"name" | b"keyPattern") {
            w.element(&option);
        }
    }
    Ok(Bytes::from(w.finish()))
}

fn find<'a>(document: &'a [u8], name: &[u8]) -> Result<Option<raw::Element<'a>>, Malformed> {
    for element in Elements::new(document)? {
        let element = element?;
        if element.name == name {
            return Ok(Some(element));
        }
    }
    Ok(None)
}

/// The specifications to build: all but the `_id` index and the one of a clustered collection.
pub(crate) fn index_specs<'a>(specs: &[&'a Bytes]) -> Result<Vec<&'a Bytes>, Malformed> {
    let mut wanted = Vec::new();
    for spec in specs {
        let is_id = index_name(spec).as_deref() == Some(b"_id_".as_slice());
        if !is_id && raw::find(spec, "clustered")?.is_none() {
            wanted.push(*spec);
        }
    }
    Ok(wanted)
}

fn index_name(spec: &[u8]) -> Option<Vec<u8>> {
    let name = raw::find(spec, "name").ok()??;
    let text = name.value.get(4..)?.strip_suffix(b"\0")?;
    (name.kind == kind::STRING).then(|| text.to_vec())
}

fn index_command(
    name: &Namespace,
    present: Option<CollectionInfo>,
    specs: &[&Bytes],
    concern: Concern,
    ignore_unknown: bool,
) -> Result<RawWriter, Malformed> {
    let collated = present.is_some_and(|info| info.collated);
    let mut w = RawWriter::with_capacity(specs.iter().map(|spec| spec.len() + 64).sum::<usize>() + 128);
    w.string("createIndexes", name.collection());
    w.begin_array("indexes");
    for spec in specs {
        w.begin_document("");
        let mut has_collation = false;
        for option in Elements::new(spec)? {
            let option = option?;
            has_collation |= option.name == b"collation";
            if option.name != b"ns" {
                w.element(&option);
            }
        }
        // An index of simple collation names none, and would inherit the collection's.
        if collated && !has_collation {
            w.document("collation", |w| w.string("locale", "simple"));
        }
        w.end();
    }
    w.end();
    if ignore_unknown {
        w.boolean("ignoreUnknownIndexOptions", true);
    }
    command::write_concern(&mut w, concern);
    Ok(w)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bson::{Document, doc, rawdoc};

    fn bytes(document: bson::RawDocumentBuf) -> Bytes {
        Bytes::from(document.into_bytes())
    }

    #[test]
    fn the_id_index_and_the_clustered_one_are_not_built() {
        let id = bytes(rawdoc! { "v": 2, "key": { "_id": 1 }, "name": "_id_" });
        let clustered = bytes(rawdoc! { "v": 2, "key": { "_id": 1 }, "name": "mine", "clustered": true });
        let a = bytes(rawdoc! { "v": 2, "key": { "a": 1 }, "name": "a_1" });
        assert_eq!(index_specs(&[&id, &clustered, &a]).unwrap(), [&a]);
    }

    #[test]
    fn a_simple_index_on_a_collated_collection_says_so() {
        let info = CollectionInfo {
            uuid: None,
            shape: crate::mongodb::identity::Shape::Collection,
            capped: false,
            collated: true,
        };
        let spec = bytes(rawdoc! { "v": 2, "key": { "a": 1 }, "name": "a_1", "ns": "old.c" });
        let w = index_command(&Namespace::new("a.c"), Some(info), &[&spec], Concern::One, false).unwrap();
        assert_eq!(
            Document::from_reader(w.finish().as_slice()).unwrap(),
            doc! { "createIndexes": "c",
            "indexes": [{ "v": 2, "key": { "a": 1 }, "name": "a_1", "collation": { "locale": "simple" } }],
            "writeConcern": { "w": 1 } }
        );
    }
}
