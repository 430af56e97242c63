//! The keys of the full copy, rows of the key table.
//!
//! They stand apart from incremental because the two have keys of like names that mean different things. Rows only: what a
//! key does is decided by its shape and status, and rules between keys are in `checked::build`. Nothing reads a file here.

use super::Shape::{Bool, Int, OneOf, Size, Text, Texts};
use super::Since::{Conf, Hidden, Newer};
use super::Status::{DefaultOnly, Hint, Inert, Supported};
use super::{KeySpec, SizeUnit, key};

#[rustfmt::skip]
pub(super) const KEYS: &[KeySpec] = &[
    key("full_sync.reader.collection_parallel", Int(1, 1_024), "6", Conf(4), Supported,
        "Readers: collections, or ranges of a large collection, that are copied at once."),
    key("full_sync.reader.write_document_parallel", Int(1, 256), "8", Conf(4), Supported,
        "Writers of one collection."),
    // The server takes at most 100,000 statements in one command (maxWriteBatchSize).
    key("full_sync.reader.document_batch_size", Int(1, 100_000), "5000", Conf(4), Supported,
        "Most documents of one insert command."),
    key("full_sync.reader.fetch_batch_size", Int(1, 1_000_000), "1024", Conf(10), Hint("replies are asked for by bytes, not by documents"),
        "Documents in one reply of the source."),
    key("full_sync.reader.parallel_thread", Int(1, 128), "1", Conf(10), Hint("a large collection is always cut into ranges of _id, which the readers of collection_parallel share"),
        "Ranges of one collection that MongoShake reads at once."),
    key("full_sync.reader.parallel_index", Text, "_id", Conf(10), Hint("ranges are always cut on _id"),
        "Index on which MongoShake cuts ranges."),
    key("full_sync.reader.split_max_chunk_size", Int(1, 1_024), "1024", Newer("version 12"), Hint("ranges are cut by samples of _id, not by size"),
        "Largest range, in MB."),
    key("full_sync.reader.read_document_count", Int(0, i64::MAX), "0", Conf(5), Hint("a large collection is always cut into ranges of _id; MongoShake itself refuses the key since 2.6.4"),
        "Documents of one range of a collection that MongoShake cuts."),
    key("full_sync.reader.oplog_store_disk", Bool, "false", Hidden, DefaultOnly("keeping the oplog on local disk during the full copy"),
        "Keep the oplog on local disk during the full copy."),
    key("full_sync.reader.oplog_store_disk_max_size", Size(SizeUnit::Megabytes, 1, 1 << 30), "256000", Hidden, Inert("it matters only with full_sync.reader.oplog_store_disk = true"),
        "Most disk space for that."),
    key("full_sync.collection_exist_drop", Bool, "true", Conf(4), Supported,
        "true: a collection of the target that has the name of a source collection is DROPPED before the copy. false: it is an error."),
    key("full_sync.create_index", OneOf(&["none", "foreground", "background"]), "foreground", Conf(4), Supported,
        "none; foreground: after the data; background: before the data. Unique ones always when the copy is consistent."),
    key("full_sync.do_not_shard_destination", Bool, "false", Newer("version 11"), Supported,
        "Where source and target are clusters: do not shard the target's collections as the source's are. From a replica set nothing is sharded anyway."),
    key("full_sync.executor.insert_on_dup_update", Bool, "false", Conf(4), Hint("the copy always replaces a document with the same _id, so that it can be repeated; see collection_exist_drop for collections that stand there before"),
        "Replace documents with the same _id."),
    key("full_sync.executor.filter.orphan_document", Bool, "false", Conf(4), Hint("orphans are always left out: each shard is read only where it owns the documents"),
        "Leave out orphaned documents of a sharded source."),
    key("full_sync.executor.majority_enable", Bool, "false", Conf(4), Supported,
        "Write with majority concern."),
    key("full_sync.executor.immutable_shard_key_fallback", Bool, "false", Newer("2.8.9"), Supported,
        "On a sharded target, a document that the copy meets again under another value of the target's shard key: delete it there and write it anew. false: the copy stops and names it."),
    key("full_sync.executor.debug", Bool, "false", Hidden, DefaultOnly("reading without writing"),
        "Read without writing."),
    key("full_sync.field.whitelist", Texts, "", Newer("2.8.9"), DefaultOnly("copying only some fields (a plugin can)"),
        "Fields that are copied."),
];
