//! One final image a document, out of its writes in source order.
//!
//! A whole document or a delete makes everything before it irrelevant; diffs line up behind it. Pure.

use std::borrow::Cow;
use std::collections::BTreeMap;

use bytes::Bytes;
use oplogue_engine::error::Result;
use oplogue_engine::model::DocumentKey;
use oplogue_engine::sink::{Content, Patch, Write};

use crate::mongodb::command::Statement;
use crate::mongodb::literal::has_zero_time;
use crate::mongodb::patch::modifiers;
use crate::mongodb::sink::plan::computed;

/// Where a document's final state starts from.
#[derive(Debug, Clone, Copy)]
enum Base<'a> {
    /// What the target has.
    Target,
    Document(&'a Bytes),
    Gone,
}

/// A document's final state.
#[derive(Debug)]
pub(super) struct Image<'a> {
    /// The writes it stands for: (index in the group, write), in source order; none when it was taken along.
    pub(super) writes: Vec<(usize, &'a Write)>,
    first: Cow<'a, Write>,
    base: Base<'a>,
    patches: Vec<&'a Patch>,
    /// It is taken from the source as that has it now: the target could not compute it, or it collided with a document
    /// of another moment.
    pub(super) from_source: bool,
    /// It is written over what stands in its way: so it was ruled.
    pub(super) overrules: bool,
    /// It was put behind the rest of its group, with which it collides.
    pub(super) waited: bool,
    /// Nothing may stand under its `_id` ([`MongoSink::images_of`](super::MongoSink)).
    pub(super) is_new: bool,
}

/// Where a final state comes from.
#[derive(Debug)]
pub(super) enum Origin<'a> {
    /// It stands in the image.
    Known,
    /// Diffs over this document, or over what the target has.
    Diffs(Option<&'a [u8]>, Vec<&'a [u8]>),
    /// Modifiers, likewise.
    Modifiers(Option<&'a [u8]>, Vec<&'a [u8]>),
    /// Only the source has the result.
    Source,
}

/// What an origin led to.
#[derive(Debug)]
pub(super) enum Computed {
    /// Nothing beside what the image holds.
    Nothing,
    /// The source has no such document.
    Absent,
    /// A plugin keeps the source's document from the target.
    Dropped,
    Document(Bytes),
    /// The pipeline that makes the document.
    Stages(Vec<u8>),
}

/// Reduces writes to one image a document.
///
/// # Errors
/// `Malformed`.
pub(super) fn images<'a>(writes: &[(usize, &'a Write)]) -> Result<Vec<Image<'a>>> {
    let mut places: BTreeMap<DocumentKey, usize> = BTreeMap::new();
    let mut images: Vec<Image<'a>> = Vec::new();
    for (index, write) in writes {
        let key = DocumentKey::of_document(&write.key)?;
        let at = *places.entry(key).or_insert(images.len());
        if at == images.len() {
            images.push(Image::new(Cow::Borrowed(write)));
        }
        if let Some(image) = images.get_mut(at) {
            image.add(*index, write);
        }
    }
    Ok(images)
}

impl<'a> Image<'a> {
    fn new(first: Cow<'a, Write>) -> Self {
        Self {
            writes: Vec::new(),
            first,
            base: Base::Target,
            patches: Vec::new(),
            from_source: false,
            overrules: false,
            waited: false,
            is_new: false,
        }
    }

    /// The image of one write, which is to be written over what stands in its way. An update that the target refuses
    /// comes from the source: what it would be applied to is in the way.
    pub(super) fn overruling(index: usize, write: &'a Write) -> Self {
        let mut image = Self::new(Cow::Borrowed(write));
        image.add(index, write);
        image.overrules = true;
        image.from_source = !image.patches.is_empty();
        image
    }

    /// The document of `key`, which no write is about: it is taken along as the source has it, so that it and `beside`
    /// are of one moment.
    pub(super) fn taken_along(key: Bytes, beside: &Write) -> Self {
        let write = Write { key, content: Content::Patch(Vec::new()), ..beside.clone() };
        let mut image = Self::new(Cow::Owned(write));
        image.from_source = true;
        image
    }

    /// Whether what the target has of it stays: a plugin drops what it became, or it was only taken along and the source
    /// does not have it.
    pub(super) fn stays(&self, computed: &Computed) -> bool {
        match computed {
            Computed::Dropped => true,
            Computed::Absent => self.writes.is_empty(),
            Computed::Nothing | Computed::Document(_) | Computed::Stages(_) => false,
        }
    }

    /// The write that makes the document new, where it begins with that.
    pub(super) fn making(&self) -> Option<&Write> {
        let (_, first) = self.writes.first()?;
        let whole = match &first.content {
            Content::Insert(_) => true,
            // Otherwise its base is written first, and may stand there.
            Content::Patched { inserted: true, .. } => computed(first).is_some(),
            Content::Patched { .. } | Content::Replace(_) | Content::Patch(_) | Content::Delete => false,
        };
        whole.then_some(*first)
    }

    /// Whether the source has another answer to what it shall become.
    pub(super) fn can_come_from_source(&self) -> bool {
        !self.patches.is_empty() && !self.from_source
    }

    fn add(&mut self, index: usize, write: &'a Write) {
        self.writes.push((index, write));
        match &write.content {
            Content::Insert(document) | Content::Replace(document) => self.start(Base::Document(document)),
            Content::Delete => self.start(Base::Gone),
            Content::Patch(patches) => {
                self.patches.extend(patches);
                self.from_source |= write.creates;
            }
            Content::Patched { base, patches, .. } => {
                self.start(Base::Document(base));
                self.patches.extend(patches);
            }
        }
    }

    fn start(&mut self, base: Base<'a>) {
        self.base = base;
        self.patches.clear();
    }

    /// The newest write.
    pub(super) fn last(&self) -> &Write {
        self.writes.last().map_or(self.first.as_ref(), |(_, write)| write)
    }

    /// The selector of the document.
    pub(super) fn key(&self) -> &[u8] {
        &self.last().key
    }

    /// Where its state comes from.
    pub(super) fn origin(&self) -> Origin<'a> {
        if self.from_source { Origin::Source } else { self.own_origin() }
    }

    /// The same without the source's present state.
    pub(super) fn own_origin(&self) -> Origin<'a> {
        let base = match self.base {
            Base::Gone => return Origin::Known,
            Base::Document(_) if self.patches.is_empty() => return Origin::Known,
            Base::Document(base) => Some(base.as_ref()),
            Base::Target => None,
        };
        let (mut diffs, mut modifiers) = (Vec::new(), Vec::new());
        for patch in &self.patches {
            match patch {
                Patch::Diff(diff) => diffs.push(diff.as_ref()),
                Patch::Modifiers(update) => modifiers.push(update.as_ref()),
            }
        }
        // A source that was upgraded in between logs both kinds. A removal that is replayed would move fields.
        let mixed = !diffs.is_empty() && !modifiers.is_empty();
        let replayed = base.is_none() && self.writes.iter().any(|(_, write)| write.overlap);
        let moves = replayed && modifiers.iter().any(|update| modifiers::removes(update).unwrap_or(true));
        if mixed || moves {
            Origin::Source
        } else if modifiers.is_empty() {
            Origin::Diffs(base, diffs)
        } else {
            Origin::Modifiers(base, modifiers)
        }
    }

    /// The statement that writes the image where there is no document; `None` when there shall be none.
    pub(super) fn statement<'b>(&'b self, computed: &'b Computed) -> Result<Option<Statement<'b>>> {
        let key = self.key();
        Ok(match (computed, self.base) {
            (Computed::Document(document), _) => Some(whole(key, document)?),
            (Computed::Stages(stages), _) => Some(Statement::Pipeline { key, stages: stages.clone(), upsert: true }),
            (Computed::Nothing, Base::Document(base)) if self.patches.is_empty() => Some(whole(key, base)?),
            (Computed::Nothing | Computed::Absent | Computed::Dropped, _) => None,
        })
    }
}

/// Puts a document where none stands. An insert is judged less strictly than an update by servers before 5.0.
fn whole<'b>(key: &'b [u8], document: &'b [u8]) -> Result<Statement<'b>> {
    Ok(if has_zero_time(document)? { Statement::replace(key, document)? } else { Statement::Insert(document) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use bson::rawdoc;
    use oplogue_engine::model::{Namespaces, OpTime};

    fn write(id: i32, content: Content) -> Write {
        let namespace = Namespaces::default().intern("a.b");
        Write {
            target: namespace,
            source: namespace,
            key: Bytes::from(rawdoc! { "_id": id }.into_bytes()),
            content,
            overlap: false,
            time: OpTime::default(),
            collection: None,
            origin: None,
            moved: false,
            creates: false,
            in_order: false,
        }
    }

    fn doc(x: i32) -> Bytes {
        Bytes::from(rawdoc! { "_id": 1, "x": x }.into_bytes())
    }

    fn diff() -> Content {
        Content::Patch(vec![Patch::Diff(Bytes::from(rawdoc! { "u": { "x": 1 } }.into_bytes()))])
    }

    #[test]
    fn a_whole_document_makes_earlier_writes_irrelevant() {
        let writes =
            [write(1, diff()), write(2, Content::Delete), write(1, Content::Replace(doc(5))), write(1, diff())];
        let indexed: Vec<(usize, &Write)> = writes.iter().enumerate().collect();
        let images = images(&indexed).unwrap();
        assert_eq!(images.len(), 2);
        assert_eq!(images[0].writes.iter().map(|(at, _)| *at).collect::<Vec<_>>(), [0, 2, 3]);
        assert!(matches!(images[0].origin(), Origin::Diffs(Some(_), diffs) if diffs.len() == 1));
        assert!(matches!(images[1].origin(), Origin::Known));
        assert!(images[1].statement(&Computed::Nothing).unwrap().is_none());
    }

    #[test]
    fn updates_alone_are_computed_over_the_target() {
        let writes = [write(1, diff()), write(1, diff())];
        let indexed: Vec<(usize, &Write)> = writes.iter().enumerate().collect();
        let images = images(&indexed).unwrap();
        assert!(matches!(images[0].origin(), Origin::Diffs(None, diffs) if diffs.len() == 2));
        let nothing = images[0].statement(&Computed::Nothing).unwrap();
        assert!(nothing.is_none(), "absent on the target and in overlap: nothing");
    }

    #[test]
    fn modifiers_are_evaluated_unless_a_replay_would_move_fields() {
        let modifiers =
            |document: bson::RawDocumentBuf| Content::Patch(vec![Patch::Modifiers(Bytes::from(document.into_bytes()))]);
        let origin = |contents: Vec<Content>, overlap: bool| {
            let mut writes: Vec<Write> = contents.into_iter().map(|content| write(1, content)).collect();
            writes.iter_mut().for_each(|write| write.overlap = overlap);
            let indexed: Vec<(usize, &Write)> = writes.iter().enumerate().collect();
            format!("{:?}", images(&indexed).unwrap()[0].origin())
        };
        let (set, unset) = (rawdoc! { "$set": { "x": 1 } }, rawdoc! { "$unset": { "x": true } });
        assert!(origin(vec![modifiers(set.clone())], true).starts_with("Modifiers(None"));
        assert!(origin(vec![modifiers(unset.clone())], false).starts_with("Modifiers(None"));
        assert_eq!(origin(vec![modifiers(unset.clone())], true), "Source");
        assert!(origin(vec![Content::Insert(doc(1)), modifiers(unset)], true).starts_with("Modifiers(Some"));
        assert_eq!(origin(vec![modifiers(set), diff()], false), "Source");
    }
}
