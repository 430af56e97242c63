//! Draws cases: documents with every kind of value and name, and every way in which a server can be told to change one.
//!
//! Half of the updates are those of the load, which are what applications send. The other half rewrites the document
//! by a pipeline or a replacement, which reaches every diff that the server can log: fields that move, arrays that
//! shrink and change at once, names with dots and dollars. All of it comes from one random generator, so a seed repeats it.

use bson::{Bson, Document, RawBson, RawDocumentBuf, cstr, doc};
use mongodb::options::UpdateModifications;
use rand::Rng as _;
use rand::rngs::StdRng;

use super::{Case, Operation, raw, raw_value};
use crate::load::{update, values};

/// Operations a case has.
pub const OPERATIONS: usize = 3;

const NAMES: [&str; 14] = ["a", "b", "c", "d1", "zz", "a.b", ".", "", "0", "1", "10", "é", "$x", "$"];

/// Draws cases for sources of one kind.
#[derive(Debug, Clone, Copy)]
pub struct Generator {
    /// Names may begin with `$`: servers before 5.0 refuse most of them.
    pub dollars: bool,
}

impl Generator {
    /// The next case.
    pub fn case(self, rng: &mut StdRng, id: i32) -> Case {
        let mut start = doc! { "_id": id };
        if rng.random() {
            start.extend(values::body(rng, 200, self.dollars));
        } else {
            start.extend(self.document(rng, 4));
            start.insert("filler", "f".repeat(300));
        }
        let mut now = start.clone();
        let operations = (0..OPERATIONS).map(|_| self.operation(rng, &mut now)).collect();
        Case { id, start: raw(&start), operations }
    }

    /// `now` is what the document might be by then; it only has to be like it.
    fn operation(self, rng: &mut StdRng, now: &mut Document) -> Operation {
        let operation = match rng.random_range(0..20) {
            0..=9 => of_load(rng),
            10..=16 => {
                *now = self.changed(rng, now, 4);
                Operation::stage(raw(&doc! { "$replaceWith": { "$literal": now.clone() } }))
            }
            17 => {
                *now = self.changed(rng, now, 3);
                Operation::update(raw(now))
            }
            18 => Operation::delete(),
            _ => Operation::update(raw(&doc! { "$inc": { "n": 1 }, "$setOnInsert": { "v": values::value(rng, 2) } })),
        };
        let operation = if rng.random_ratio(1, 8) { operation.with(cstr!("upsert"), true) } else { operation };
        if rng.random_ratio(1, 20) { operation.with(cstr!("modify"), true) } else { operation }
    }

    fn name(self, rng: &mut StdRng) -> &'static str {
        let count = if self.dollars { NAMES.len() } else { NAMES.len() - 2 };
        NAMES[rng.random_range(0..count)]
    }

    fn document(self, rng: &mut StdRng, depth: u32) -> Document {
        let mut document = Document::new();
        for _ in 0..rng.random_range(0..6) {
            let name = self.name(rng);
            document.insert(name, self.value(rng, depth));
        }
        // Long strings make diffs cheaper than whole values, so that the server really logs diffs.
        document.insert("pad", padding(rng));
        document
    }

    fn value(self, rng: &mut StdRng, depth: u32) -> Bson {
        match rng.random_range(0..6) {
            0 | 1 if depth > 0 => Bson::Document(self.document(rng, depth - 1)),
            2 | 3 if depth > 0 => {
                let mut items: Vec<Bson> = (0..rng.random_range(0..6)).map(|_| self.value(rng, depth - 1)).collect();
                items.push(padding(rng));
                Bson::Array(items)
            }
            _ => values::value(rng, 0),
        }
    }

    fn changed(self, rng: &mut StdRng, old: &Document, depth: u32) -> Document {
        let mut new = old.clone();
        for _ in 0..rng.random_range(1..4) {
            let names: Vec<String> = new.keys().filter(|name| *name != "pad" && *name != "_id").cloned().collect();
            let picked = (!names.is_empty()).then(|| names[rng.random_range(0..names.len())].clone());
            match (rng.random_range(0..5), picked) {
                (0, _) => {
                    let name = self.name(rng);
                    let moved = new.remove(name);
                    new.insert(name, moved.unwrap_or_else(|| self.value(rng, depth)));
                }
                (1, Some(name)) => {
                    new.remove(&name);
                }
                (_, Some(name)) => {
                    let inner = new.get(&name).cloned().unwrap_or(Bson::Null);
                    new.insert(name, self.changed_value(rng, &inner, depth.saturating_sub(1)));
                }
                (_, None) => {
                    let name = self.name(rng);
                    new.insert(name, self.value(rng, depth));
                }
            }
        }
        new
    }

    fn changed_value(self, rng: &mut StdRng, value: &Bson, depth: u32) -> Bson {
        if let Bson::Document(inner) = value
            && rng.random_ratio(7, 8)
        {
            return Bson::Document(self.changed(rng, inner, depth));
        }
        let Bson::Array(items) = value else { return self.value(rng, depth) };
        let mut items = items.clone();
        for _ in 0..rng.random_range(1..3) {
            match rng.random_range(0..4) {
                0 if items.len() > 1 => items.truncate(rng.random_range(1..items.len())),
                1 => items.push(self.value(rng, depth)),
                _ if !items.is_empty() => {
                    let at = rng.random_range(0..items.len());
                    items[at] = self.changed_value(rng, &items[at].clone(), depth.saturating_sub(1));
                }
                _ => {}
            }
        }
        Bson::Array(items)
    }
}

/// One of the load's updates.
fn of_load(rng: &mut StdRng) -> Operation {
    let update = update::random(rng);
    let what: RawBson = match update.modifications {
        UpdateModifications::Document(document) => raw(&document).into(),
        UpdateModifications::Pipeline(stages) => {
            raw_value(Bson::Array(stages.into_iter().map(Bson::Document).collect()))
        }
        // The driver's enum may grow; what the load sends does not.
        _ => RawDocumentBuf::new().into(),
    };
    let mut operation = Operation::update(what);
    if !update.filter.is_empty() {
        operation = operation.with(cstr!("filter"), raw(&update.filter));
    }
    if let Some(filters) = update.array_filters {
        let filters: Vec<Bson> = filters.into_iter().map(Bson::Document).collect();
        operation = operation.with(cstr!("arrayFilters"), raw_value(Bson::Array(filters)));
    }
    operation
}

fn padding(rng: &mut StdRng) -> Bson {
    Bson::String("p".repeat(rng.random_range(40..80)))
}
