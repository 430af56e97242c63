//! Collisions that are left when everything else is settled: whether, and how, they are written over.
//!
//! Deleting what stands in the way is part of the transaction that writes the images, so a crash leaves both or
//! neither, and a document that belongs to the group is never taken for an obstacle: it is about to move by itself. A
//! collision whose obstacle cannot be found waits until the rest of the group is in place, and is looked at once more.
//! What cannot be written over even then gets the ruling of a conflict without one; nothing is deleted for it.

use oplogue_engine::conflict::{DuplicateKeys, Ruling};
use oplogue_engine::error::Result;
use oplogue_engine::model::{DocumentKey, Namespace};
use oplogue_engine::sink::{Content, FlushReport, Write};

use super::image::Image;
use super::moment::READINGS;
use crate::mongodb::command::StatementError;
use crate::mongodb::sink::cure::is_by_index;
use crate::mongodb::sink::{Loss, MongoSink, Obstacle, Rules, is_own_id, is_unique, refusal};

/// Documents that one group may be written over: each may stand in the way of one unique index.
const OBSTACLES_MAX: usize = 64;

/// A group of one collection on its way.
pub(in crate::mongodb) struct Settlement<'a> {
    pub(super) images: Vec<Image<'a>>,
    /// What is deleted beside the images' own documents, and for whose sake: it stays when that one leaves the group.
    pub(super) obstacles: Vec<(DocumentKey, Obstacle)>,
    /// Images that come behind the others.
    pub(super) waiting: Vec<Image<'a>>,
    /// The errors of those that are written over something.
    overruled: Vec<(DocumentKey, StatementError)>,
    /// Documents that were taken along and could not be placed: they stay where they are.
    pub(super) left: Vec<DocumentKey>,
    /// The target stands where the source stood.
    pub(super) last_word: bool,
    /// How often images may still be read again, because two that collide may be of different moments.
    pub(super) readings: usize,
    pub(super) report: FlushReport,
}

/// What comes of a collision that shall be written over.
enum Way {
    /// Try again: an obstacle more goes, or the image comes from elsewhere.
    Cleared,
    /// The rest of the group goes first.
    Behind,
    /// The same, since it has as much in its way already as one transaction takes.
    Full,
    /// There is none.
    Blocked,
}

impl<'a> Settlement<'a> {
    pub(super) fn new(images: Vec<Image<'a>>, last_word: bool) -> Self {
        Self {
            images,
            obstacles: Vec::new(),
            waiting: Vec::new(),
            overruled: Vec::new(),
            left: Vec::new(),
            last_word,
            readings: READINGS,
            report: FlushReport::default(),
        }
    }

    /// One write that is to be written over what stands in its way.
    pub(in crate::mongodb) fn overruling(index: usize, write: &'a Write, error: &StatementError) -> Result<Self> {
        let mut one = Self::new(vec![Image::overruling(index, write)], false);
        one.overruled.push((DocumentKey::of_document(&write.key)?, error.clone()));
        Ok(one)
    }

    /// Whether a document is about to move by itself, or is deleted already.
    pub(super) fn moves(&self, id: &DocumentKey) -> bool {
        let is_it = |image: &Image<'_>| DocumentKey::of_document(image.key()).is_ok_and(|key| key == *id);
        self.images.iter().chain(&self.waiting).any(is_it)
            || self.obstacles.iter().any(|(_, obstacle)| obstacle.id == *id)
    }
}

impl MongoSink {
    /// The images are in place: counts what was written over, and takes up those that waited.
    pub(super) fn settled(&self, name: &Namespace, open: &mut Settlement<'_>) -> Result<()> {
        for image in open.images.iter().filter(|image| image.overrules) {
            let key = DocumentKey::of_document(image.key())?;
            if let Some((_, error)) = open.overruled.iter().find(|(of, _)| *of == key) {
                for (_, write) in &image.writes {
                    self.count_overwritten(Loss { namespace: name, write, error });
                }
            }
        }
        open.images = std::mem::take(&mut open.waiting);
        open.obstacles.clear();
        Ok(())
    }

    /// Decides about the image that collides. It leaves the group, or something else has changed.
    pub(super) async fn collided(
        &self,
        name: &Namespace,
        open: &mut Settlement<'_>,
        at: usize,
        error: &StatementError,
    ) -> Result<()> {
        let mut image = open.images.remove(at);
        if image.writes.is_empty() {
            open.left.push(DocumentKey::of_document(image.key())?);
            return Ok(());
        }
        if is_unique(error) && !open.last_word {
            open.report.refused.extend(image.writes.iter().map(|(index, _)| (*index, refusal(error))));
            return Ok(());
        }
        // What is repeated may be older than the index: the source's document fits it.
        if is_by_index(error.code) && image.last().overlap && !image.from_source {
            image.from_source = true;
            open.images.insert(at, image);
            return Ok(());
        }
        let ruling = if image.overrules || self.inserts_over(&image, error) {
            Ruling::Overwrite
        } else {
            self.judge(name, image.last(), error).await?
        };
        if ruling == Ruling::Overwrite {
            image.overrules = true;
            let key = DocumentKey::of_document(image.key())?;
            let way = self.make_way(name, open, &mut image, error).await?;
            if matches!(way, Way::Behind | Way::Full | Way::Blocked) {
                open.obstacles.retain(|(owner, _)| *owner != key);
            }
            match way {
                Way::Cleared => {
                    open.overruled.push((key, error.clone()));
                    open.images.insert(at, image);
                    return Ok(());
                }
                Way::Behind | Way::Full => {
                    image.waited |= matches!(way, Way::Behind);
                    open.waiting.push(image);
                    return Ok(());
                }
                Way::Blocked => {}
            }
        }
        for (index, write) in &image.writes {
            let refusal = self.conclude(Loss { namespace: name, write, error }, ruling.clone()).await?;
            open.report.refused.extend(refusal.map(|refusal| (*index, refusal)));
        }
        Ok(())
    }

    /// `incr_sync.executor.insert_on_dup_update` speaks of a document with the same `_id` *or unique index*: an insert
    /// takes the place of either, unless somebody else is to rule over duplicates.
    fn inserts_over(&self, image: &Image<'_>, error: &StatementError) -> bool {
        let inserts =
            |write: &Write| matches!(write.content, Content::Insert(_) | Content::Patched { inserted: true, .. });
        let inserted = || image.writes.iter().any(|(_, write)| inserts(write));
        let rules = matches!(self.rules, Rules::Settings(DuplicateKeys::Ignore));
        self.options.insert_on_dup_update && rules && is_unique(error) && inserted()
    }

    async fn make_way(
        &self,
        name: &Namespace,
        open: &mut Settlement<'_>,
        image: &mut Image<'_>,
        error: &StatementError,
    ) -> Result<Way> {
        let loss = Loss { namespace: name, write: image.last(), error };
        if is_own_id(error) {
            self.name(loss, &Ruling::Overwrite, Some(image.key()));
            return Ok(Way::Cleared);
        }
        if !is_unique(error) {
            // What an update is applied to may be what the target has against it.
            let other = image.can_come_from_source() && (open.last_word || !image.last().overlap);
            if other {
                self.name(loss, &Ruling::Overwrite, None);
                image.from_source = true;
            }
            return Ok(if other { Way::Cleared } else { Way::Blocked });
        }
        let own = DocumentKey::of_document(image.key())?;
        match self.obstacle(name, error).await? {
            Some(found) if found.id != own && !open.moves(&found.id) => {
                if open.obstacles.len() >= OBSTACLES_MAX {
                    return Ok(Way::Full);
                }
                // Said before it is done: nothing is deleted that no line names.
                self.name(loss, &Ruling::Overwrite, Some(&found.document));
                open.obstacles.push((own, found));
                Ok(Way::Cleared)
            }
            Some(_) | None if image.waited => Ok(Way::Blocked),
            Some(_) | None => Ok(Way::Behind),
        }
    }
}
