//! Documents that collide because they were read from the source at different moments.
//!
//! A document that is read from the source is ahead of the stream, so at the same time as the rest of the target it is
//! not: another one may still hold the value that it has taken over since. No order of writing helps there. What helps
//! is one moment for all that meet: the whole group and the document that stands in its way are read from the source
//! together, again until they agree. A document that the source does not have is never touched by this: it is somebody
//! else's, or its deletion is on its way, and the collision is ruled over like any other.

use oplogue_engine::error::{Error, Kind, Result, Side};
use oplogue_engine::model::{DocumentKey, Namespace, raw};

use super::image::{Image, Origin};
use super::overrule::Settlement;
use crate::mongodb::command::StatementError;
use crate::mongodb::sink::{MongoSink, is_unique};
use crate::mongodb::writer::RawWriter;

/// How often a group is read anew without another document to take along.
pub(super) const READINGS: usize = 8;

/// Documents that are taken along at most.
const ALONG_MAX: usize = 64;

impl MongoSink {
    /// Whether the group was changed so that it is worth another try: from now on all of it, and what stands in its
    /// way, is read from the source together. Not when nothing that collides can be ahead of the stream.
    pub(super) async fn to_one_moment(
        &self,
        name: &Namespace,
        open: &mut Settlement<'_>,
        error: &StatementError,
    ) -> Result<bool> {
        if !is_unique(error) || !open.last_word {
            return Ok(false);
        }
        let Some(first) = open.images.first().map(|image| image.last().clone()) else { return Ok(false) };
        let found = self.obstacle(name, error).await?;
        let mut read = false;
        for image in &open.images {
            let id = DocumentKey::of_document(image.key())?;
            read |= matches!(image.origin(), Origin::Source) || self.is_ahead(first.target, &id);
        }
        let met_ahead = found.as_ref().is_some_and(|found| self.is_ahead(first.target, &found.id));
        if !read && !met_ahead {
            return Ok(false);
        }
        let along = open.images.iter().filter(|image| image.writes.is_empty()).count();
        let is_new = |id: &DocumentKey| !open.moves(id) && !open.left.contains(id);
        match found.filter(|found| is_new(&found.id) && along < ALONG_MAX) {
            Some(found) => open.images.push(Image::taken_along(id_of(&found.document)?.into(), &first)),
            None if open.readings == 0 => return Ok(false),
            None => open.readings -= 1,
        }
        open.images.iter_mut().for_each(|image| image.from_source = true);
        tracing::debug!(namespace = %name, images = open.images.len(), "documents that collide are read at one moment");
        Ok(true)
    }
}

/// `{_id: ...}` of a document.
fn id_of(document: &[u8]) -> Result<Vec<u8>> {
    let id = raw::find(document, "_id")?;
    let id = id.ok_or_else(|| Error::new(Side::Sink, Kind::Malformed, "read a document that has no _id"))?;
    let mut w = RawWriter::with_capacity(id.value.len() + 16);
    w.element(&id);
    Ok(w.finish())
}
