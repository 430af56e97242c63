//! One final image a document, out of its writes in source order.
//!
//! A whole document or a delete makes everything before it irrelevant; diffs line up behind it. Pure.

use std::collections::BTreeMap;

use bytes::Bytes;
use oplogue_engine::error::{Error, Kind, Result, Side};
use oplogue_engine::model::DocumentKey;
use oplogue_engine::sink::{Content, Patch, Write};

use crate::mongodb::command::Statement;
use crate::mongodb::patch;

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
    /// The writes it stands for: (index in the group, write), in source order; at least one.
    pub(super) writes: Vec<(usize, &'a Write)>,
    first: &'a Write,
    base: Base<'a>,
    patches: Vec<&'a Bytes>,
}

/// Reduces writes to one image a document.
///
/// # Errors
/// `Unsupported` for `$v: 1` modifiers: they have no form that could be computed without being written.
pub(super) fn images<'a>(writes: &[(usize, &'a Write)]) -> Result<Vec<Image<'a>>> {
    let mut places: BTreeMap<DocumentKey, usize> = BTreeMap::new();
    let mut images: Vec<Image<'a>> = Vec::new();
    for (index, write) in writes {
        let key = DocumentKey::of_document(&write.key)?;
        let at = *places.entry(key).or_insert(images.len());
        if at == images.len() {
            images.push(Image { writes: Vec::new(), first: write, base: Base::Target, patches: Vec::new() });
        }
        if let Some(image) = images.get_mut(at) {
            image.add(*index, write)?;
        }
    }
    Ok(images)
}

impl<'a> Image<'a> {
    fn add(&mut self, index: usize, write: &'a Write) -> Result<()> {
        self.writes.push((index, write));
        match &write.content {
            Content::Insert(document) | Content::Replace(document) => self.start(Base::Document(document)),
            Content::Delete => self.start(Base::Gone),
            Content::Patch(patches) => self.extend(patches)?,
            Content::Patched { base, patches } => {
                self.start(Base::Document(base));
                self.extend(patches)?;
            }
        }
        Ok(())
    }

    fn start(&mut self, base: Base<'a>) {
        self.base = base;
        self.patches.clear();
    }

    fn extend(&mut self, patches: &'a [Patch]) -> Result<()> {
        for patch in patches {
            match patch {
                Patch::Diff(diff) => self.patches.push(diff),
                Patch::Modifiers(_) => {
                    let text = "settle unique keys: updates in the form of servers before 5.0 are not supported here";
                    return Err(Error::new(Side::Sink, Kind::Unsupported, text));
                }
            }
        }
        Ok(())
    }

    /// The newest write.
    pub(super) fn last(&self) -> &'a Write {
        self.writes.last().map_or(self.first, |(_, write)| write)
    }

    /// The selector of the document.
    pub(super) fn key(&self) -> &'a [u8] {
        &self.last().key
    }

    /// The diffs to be computed over what the target has; `None` when that does not matter.
    pub(super) fn diffs_over_target(&self) -> Option<Vec<&'a [u8]>> {
        matches!(self.base, Base::Target).then(|| self.patches.iter().copied().map(Bytes::as_ref).collect())
    }

    /// The statement that writes the image where there is no document; `None` when there shall be none.
    pub(super) fn statement<'b>(&'b self, computed: Option<&'b [u8]>) -> Result<Option<Statement<'b>>> {
        let key = self.key();
        Ok(match self.base {
            Base::Gone => None,
            Base::Target => computed.map(|document| Statement::replace(key, document)).transpose()?,
            Base::Document(base) if self.patches.is_empty() => Some(Statement::replace(key, base)?),
            Base::Document(base) => {
                let diffs = self.patches.iter().map(|diff| diff.as_ref());
                let stages = patch::pipeline(Some(base), diffs)
                    .map_err(|e| Error::new(Side::Sink, Kind::CannotApply, "settle unique keys").caused_by(e))?;
                Some(Statement::Pipeline { key, stages, upsert: true })
            }
        })
    }
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
        assert!(images[0].diffs_over_target().is_none());
        assert!(matches!(images[0].statement(None).unwrap(), Some(Statement::Pipeline { upsert: true, .. })));
        assert!(images[1].statement(None).unwrap().is_none());
    }

    #[test]
    fn updates_alone_are_computed_over_the_target() {
        let writes = [write(1, diff()), write(1, diff())];
        let indexed: Vec<(usize, &Write)> = writes.iter().enumerate().collect();
        let images = images(&indexed).unwrap();
        assert_eq!(images[0].diffs_over_target().map(|diffs| diffs.len()), Some(2));
        assert!(images[0].statement(None).unwrap().is_none(), "absent on the target and in overlap: nothing");
    }
}
