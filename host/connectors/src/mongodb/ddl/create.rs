//! `create`: collections, capped and clustered ones, time-series, with the options of the source.
//!
//! It stands apart from the other commands since it alone takes the options of a collection over, without those that a
//! server reports but does not take back. It never empties a collection that stands under the name already.

use oplogue_engine::error::Result;
use oplogue_engine::model::ddl::Routed;
use oplogue_engine::model::raw::{self, Elements, Malformed};
use oplogue_engine::model::{Namespace, OpTime};

use super::{BUCKETS, Executor, NAMESPACE_EXISTS, skipped};
use crate::mongodb::command;
use crate::mongodb::command::Concern;
use crate::mongodb::identity::Standing;
use crate::mongodb::writer::RawWriter;

/// Options that the server reports or logs but does not take back, or that must not be repeated: a temporary
/// collection would vanish at the target's next election; the `_id` index follows from collation and clustering.
const NOT_TAKEN: [&[u8]; 6] = [b"uuid", b"autoIndexId", b"idIndex", b"temp", b"flags", b"create"];

/// Options of the collection behind a time-series that follow from `timeseries` itself.
const NOT_TAKEN_OF_BUCKETS: [&[u8]; 2] = [b"validator", b"clusteredIndex"];

impl Executor<'_> {
    pub(super) async fn create(&self, namespace: Routed, options: &[u8]) -> Result<Option<OpTime>> {
        let name = &self.name(namespace);
        if raw::find(options, "viewOn")?.is_some() {
            return self.create_view(self.name_of(namespace.source), name, options).await;
        }
        let mut present = self.sink.catalogue.refresh(name).await?;
        if self.sink.catalogue.is_view_of_another(name, &self.name_of(namespace.source)) {
            // It went, or the collection takes its place: it holds no data.
            self.drop_now(name).await?;
            present = None;
        }
        // One that is made anew would stand beside what it has become.
        if self.is_in_copy() || self.has_moved() {
            return Ok(skipped("create", name));
        }
        if let Some(source) = self.source {
            match self.sink.catalogue.standing(name, source) {
                // Its collection went, this entry was repeated, and the run that made it again was killed before it could
                // say so.
                Standing::Other
                    if let Some(uuid) = present.and_then(|info| info.uuid)
                        && !self.sink.catalogue.is_claimed(uuid)
                        && !self.sink.catalogue.stands_anywhere(source) =>
                {
                    self.sink.catalogue.must_claim(name, source, uuid).await?;
                    return Ok(skipped("create", name));
                }
                Standing::Own(_) | Standing::Other => return Ok(skipped("create", name)),
                Standing::Unclaimed(uuid) => {
                    self.sink.catalogue.must_claim(name, source, uuid).await?;
                    return Ok(skipped("create", name));
                }
                Standing::Gone if self.sink.catalogue.stands_anywhere(source) => return Ok(skipped("create", name)),
                // A copy that stands nowhere was dropped, and its drop follows; or a fail-over took it back.
                Standing::Gone | Standing::Absent | Standing::Nameless => {}
            }
        } else if present.is_some() && self.overlap {
            return Ok(skipped("create", name));
        }
        let w = create_command(name, options, self.concern)?;
        let time = self.run(name.database(), "create", name, w, &[NAMESPACE_EXISTS]).await?;
        self.adopt(name).await?;
        Ok(time)
    }
}

/// The `create` command for a collection with these raw options.
///
/// # Errors
/// When the options are no BSON.
pub(crate) fn create_command(name: &Namespace, options: &[u8], concern: Concern) -> Result<RawWriter, Malformed> {
    let buckets = name.collection().strip_prefix(BUCKETS);
    let mut w = RawWriter::with_capacity(options.len() + 128);
    w.string("create", buckets.unwrap_or(name.collection()));
    for option in Elements::new(options)? {
        let option = option?;
        let follows = buckets.is_some() && NOT_TAKEN_OF_BUCKETS.contains(&option.name);
        if !follows && !NOT_TAKEN.contains(&option.name) {
            w.element(&option);
        }
    }
    command::write_concern(&mut w, concern);
    Ok(w)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bson::{Document, doc, rawdoc};

    fn created(name: &str, options: &bson::RawDocumentBuf) -> Document {
        let w = create_command(&Namespace::new(name), options.as_bytes(), Concern::One).unwrap();
        Document::from_reader(w.finish().as_slice()).unwrap()
    }

    #[test]
    fn options_go_over_but_for_those_the_server_makes() {
        let options =
            rawdoc! { "capped": true, "size": 4096, "idIndex": { "v": 2 }, "temp": true, "autoIndexId": true };
        assert_eq!(
            created("a.c", &options),
            doc! { "create": "c", "capped": true, "size": 4096, "writeConcern": { "w": 1 } }
        );
    }

    #[test]
    fn buckets_become_their_time_series() {
        let options = rawdoc! { "validator": {}, "clusteredIndex": true, "timeseries": { "timeField": "t" } };
        assert_eq!(
            created("a.system.buckets.ts", &options),
            doc! { "create": "ts", "timeseries": { "timeField": "t" }, "writeConcern": { "w": 1 } }
        );
    }
}
