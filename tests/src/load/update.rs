//! Random updates with every operator that the server logs in its own way.
//!
//! The oplog does not carry operators but their effect, and which effect is logged how depends on the operator
//! and on what it meets: a set of a field that exists, that is new, inside an array, a truncation, a pipeline.
//! Some combinations are refused by the server; that is part of the load. Nothing here talks to a server.

use bson::{Bson, Document, doc};
use mongodb::options::UpdateModifications;
use rand::Rng as _;
use rand::rngs::StdRng;

use super::values;

/// An update, what its filter needs beside the `_id`, and its array filters.
pub(crate) struct Update {
    pub(crate) filter: Document,
    pub(crate) modifications: UpdateModifications,
    pub(crate) array_filters: Option<Vec<Document>>,
}

pub(crate) fn random(rng: &mut StdRng) -> Update {
    match rng.random_range(0..10) {
        0..=2 => plain(fields(rng)),
        3..=5 => plain(arrays(rng)),
        6 => positional(rng),
        7 => filtered(rng),
        _ => pipeline(rng),
    }
}

fn plain(update: Document) -> Update {
    Update { filter: doc! {}, modifications: update.into(), array_filters: None }
}

fn fields(rng: &mut StdRng) -> Document {
    let field = format!("f{}", rng.random_range(0..6));
    let value = values::value(rng, 2);
    let small = rng.random_range(-5..5);
    match rng.random_range(0..14) {
        0 => doc! { "$set": { field: value } },
        1 => doc! { "$set": { "obj.a.b": small, "status": "sent", field: value } },
        2 => doc! { "$set": { "obj.new.deep.path": value, "n": small } },
        3 => doc! { "$set": { "zz": 1, "aa": 2, "mm": { "x": value }, "10": 1, "9": 2 } },
        4 => doc! { "$unset": { field: "", "obj.a.c": "" } },
        5 => doc! { "$inc": { "n": small, "total": 1_i64, "obj.a.b": 1 } },
        6 => doc! { "$mul": { "price": 1.5 } },
        7 => doc! { "$rename": { field: format!("f{}", rng.random_range(6..9)) } },
        8 => doc! { "$rename": { "obj.a.b": "moved.b" } },
        9 => doc! { "$currentDate": { "at": true, "stamped": { "$type": "timestamp" } } },
        10 => doc! { "$min": { "n": small }, "$max": { "price": f64::from(small) } },
        11 => doc! { "$set": { "n": small }, "$unset": { field: "" }, "$inc": { "total": 3_i64 } },
        12 => doc! { "$bit": { "n": { "xor": 5 } } },
        _ => doc! { "$set": { "obj": values::document(rng, 2), "status": values::text(rng, 5) } },
    }
}

fn arrays(rng: &mut StdRng) -> Document {
    let value = values::value(rng, 1);
    let small = rng.random_range(0..20);
    let at = rng.random_range(0..5);
    match rng.random_range(0..12) {
        0 => doc! { "$push": { "arr": small } },
        1 => doc! { "$push": { "arr": { "$each": [small, value], "$position": at } } },
        2 => doc! { "$push": { "arr": { "$each": [small, 1], "$slice": -5 } } },
        3 => doc! { "$push": { "arr": { "$each": [], "$slice": 2 } } },
        4 => doc! { "$push": { "arr": { "$each": [small, 9], "$sort": -1, "$slice": 6 } } },
        5 => doc! { "$pull": { "arr": { "$gt": small } } },
        6 => doc! { "$pull": { "items": { "sku": "x" } } },
        7 => doc! { "$addToSet": { "arr": { "$each": [small, small + 1] } } },
        8 => doc! { "$pop": { "arr": if rng.random() { 1 } else { -1 } } },
        9 => doc! { "$set": { format!("arr.{at}"): value, "n": small } },
        10 => doc! { "$set": { format!("items.{at}.q"): small }, "$push": { "obj.list": small } },
        _ => {
            doc! { "$pullAll": { "arr": [1, 2, 3] }, "$push": { "items": { "sku": "y", "q": small } } }
        }
    }
}

fn positional(rng: &mut StdRng) -> Update {
    let all = rng.random::<bool>();
    let path = if all { "items.$[].q" } else { "items.$.q" };
    let filter = if all {
        doc! { "items": { "$type": "array" } }
    } else {
        doc! { "items.sku": "y" }
    };
    Update { filter, modifications: doc! { "$inc": { path: 1 } }.into(), array_filters: None }
}

fn filtered(rng: &mut StdRng) -> Update {
    let update = doc! { "$set": { "items.$[e].q": rng.random_range(0..50), "items.$[e].seen": true } };
    let filters = vec![doc! { "e.q": { "$lt": rng.random_range(0..10) } }];
    Update { filter: doc! {}, modifications: update.into(), array_filters: Some(filters) }
}

fn pipeline(rng: &mut StdRng) -> Update {
    let literal = doc! { "$literal": values::value(rng, 2) };
    let field = format!("f{}", rng.random_range(0..6));
    let stages = match rng.random_range(0..6) {
        0 => vec![doc! { "$set": { "sum": { "$add": [1, { "$ifNull": ["$total", 0_i64] }] }, field: literal } }],
        1 => vec![doc! { "$unset": ["f0", "obj.a.c"] }, doc! { "$set": { "obj.z": literal } }],
        2 => vec![doc! { "$replaceWith": { "$mergeObjects": [{ "front": 1 }, "$$ROOT", { field: literal }] } }],
        3 => vec![doc! { "$set": { "arr": { "$slice": [{ "$cond": [{ "$isArray": "$arr" }, "$arr", []] }, 3] } } }],
        4 => vec![doc! { "$set": { "obj.list": [1, { "x": literal }], "obj.a": { "b": 7 }, "n": 1 } }],
        _ => vec![doc! { "$set": { "items": [{ "sku": "p", "q": 1 }, literal, Bson::Null] } }],
    };
    Update { filter: doc! {}, modifications: UpdateModifications::Pipeline(stages), array_filters: None }
}
