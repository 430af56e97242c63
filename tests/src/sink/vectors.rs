//! Kept cases: what other replicators lose, what was once wrong here, and the facts of docs that a run must confirm.
//!
//! Each is tried in overlap and after it, from the state before and from every later one. Those written by hand stand
//! here; `vectors/updates.txt` holds what the property test found, a line each. A case never leaves. Diffs that no source
//! is made to log stand in `rules`.

use bson::{Bson, Document, RawDocumentBuf, Timestamp, cstr, doc};
use oplogue_tests::cases::{Case, Operation, raw};

use super::pair::Pair;
use super::update_oracle::{Capture, try_kept};

const FOUND: &str = include_str!("../../vectors/updates.txt");

fn case(name: &str, start: Document, updates: Vec<Document>) -> (String, Case) {
    let mut whole = doc! { "_id": 1 };
    whole.extend(start);
    // What is not touched must be long, or the server logs a whole value instead of a diff.
    whole.insert("filler", "f".repeat(400));
    (name.to_owned(), Case { id: 1, start: raw(&whole), operations: updates.iter().map(operation).collect() })
}

fn operation(update: &Document) -> Operation {
    if update.keys().next().is_some_and(|name| name == "$replaceWith") {
        return Operation::stage(raw(update));
    }
    Operation::update(raw(update))
}

fn stage(fields: Document) -> Document {
    doc! { "$replaceWith": { "$mergeObjects": ["$$ROOT", fields] } }
}

fn long(items: i32) -> Vec<Bson> {
    (0..items).map(|n| Bson::String(format!("{n}{}", "x".repeat(60)))).collect()
}

fn arrays() -> Vec<(String, Case)> {
    let start = || doc! { "x": 0, "arr": long(5), "two": long(4), "obj": { "k": 0, "rest": "r".repeat(80) } };
    let cut = |items: i32| doc! { "$slice": ["$arr", items] };
    vec![
        case("a cut array beside a changed field", start(), vec![stage(doc! { "x": 1, "arr": cut(2) })]),
        case(
            "a cut array with a changed element",
            start(),
            vec![stage(doc! { "arr": { "$concatArrays": [["new"], { "$slice": ["$arr", 1, 2] }] } })],
        ),
        case(
            "a cut array beside a changed object",
            start(),
            vec![stage(doc! { "arr": cut(2), "obj": { "$mergeObjects": ["$obj", { "k": 9 }] } })],
        ),
        case("two cut arrays", start(), vec![stage(doc! { "arr": cut(2), "two": { "$slice": ["$two", 1] } })]),
        case(
            "an array that grows, shrinks and grows",
            start(),
            vec![
                doc! { "$push": { "arr": { "$each": long(3) } } },
                doc! { "$push": { "arr": { "$each": [], "$slice": 2 } } },
                doc! { "$set": { "arr.6": "far" } },
            ],
        ),
        case(
            "elements that change inside",
            doc! { "arr": [{ "a": 1, "pad": "p".repeat(90) }, { "a": 2, "pad": "p".repeat(90) }, 3] },
            vec![
                doc! { "$inc": { "arr.0.a": 1, "arr.1.a": 1 } },
                doc! { "$set": { "arr.1.n": 1 }, "$unset": { "arr.0.a": 1 } },
            ],
        ),
        case("ten and more elements", doc! { "arr": long(9) }, vec![doc! { "$push": { "arr": { "$each": long(4) } } }]),
    ]
}

fn names() -> Vec<(String, Case)> {
    let pad = "p".repeat(90);
    vec![
        case(
            "dotted, empty and numeric names inside",
            doc! { "obj": { "a.b": 0, "": 0, "0": 0, "pad": &pad } },
            vec![stage(doc! { "obj": { "$literal": { "a.b": 1, "": 1, "0": 1, "pad": &pad, "10": 1, "9": 1 } } })],
        ),
        case(
            "a diff below a dotted name",
            doc! { "a.b": { "k": 0, "pad": &pad }, "": { "k": 0, "pad": &pad } },
            vec![doc! { "$replaceWith": { "$literal": {
                "_id": 1, "a.b": { "k": 1, "pad": &pad }, "": { "pad": &pad }, "filler": "f".repeat(400),
            } } }],
        ),
        case(
            "numeric names in an object and in an array",
            doc! { "obj": { "0": 0, "1": { "k": 0, "pad": &pad } }, "arr": [0, { "k": 0, "pad": &pad }] },
            vec![doc! { "$set": { "obj.0": 1, "obj.1.k": 1, "obj.2": 1, "arr.0": 1, "arr.1.k": 1, "arr.2": 1 } }],
        ),
        case(
            "new names in the server's own order",
            doc! {},
            vec![doc! { "$set": { "zz": 1, "10": 1, "9": 1, "aa": 1, "1a": 1 } }],
        ),
        case(
            "new names by a pipeline, in its order",
            doc! { "o": { "pad": &pad } },
            vec![stage(
                doc! { "zz": 1, "aa": 1, "10": 1, "9": 1, "o": { "$mergeObjects": ["$o", { "z": 1, "b": 2 }] } },
            )],
        ),
    ]
}

fn order() -> Vec<(String, Case)> {
    vec![
        case(
            "a field that moves to the end",
            doc! { "a": 1, "b": 2 },
            vec![doc! { "$unset": { "a": 1 } }, doc! { "$set": { "a": 3 } }, doc! { "$set": { "c": 4 } }],
        ),
        case(
            "a renamed field",
            doc! { "a": 1, "b": { "c": 2 } },
            vec![
                doc! { "$rename": { "a": "z" } },
                doc! { "$rename": { "b.c": "a" } },
                doc! { "$set": { "b.c": 1, "m": 1 } },
            ],
        ),
        case(
            "a replacement by a pipeline, which logs the _id last",
            doc! { "a": 1 },
            vec![doc! { "$replaceWith": { "$literal": { "only": 1 } } }, doc! { "$set": { "a": 1 } }],
        ),
        case(
            "a value that becomes an object, an array and nothing",
            doc! { "a": 1 },
            vec![
                doc! { "$set": { "a": { "b": 1, "pad": "p".repeat(90) } } },
                doc! { "$set": { "a.b": 2 } },
                doc! { "$set": { "a": [1, 2] } },
                doc! { "$set": { "a.3": 2 } },
                doc! { "$unset": { "a": 1 } },
            ],
        ),
    ]
}

fn values() -> Vec<(String, Case)> {
    let zero = Timestamp { time: 0, increment: 0 };
    let odd = doc! { "nan": f64::from_bits(0x7ff8_0000_dead_beef), "minus": -0.0, "old": Bson::Binary(bson::Binary {
        subtype: bson::spec::BinarySubtype::BinaryOld, bytes: Vec::new(),
    }) };
    vec![
        case(
            "a zero timestamp below the top",
            doc! { "n": { "t": 1, "pad": "p".repeat(90) } },
            vec![doc! { "$set": { "n.t": zero } }, doc! { "$set": { "n": { "t": zero } } }],
        ),
        case(
            "a zero timestamp at the top, by a pipeline",
            doc! { "t": 1 },
            vec![
                doc! { "$replaceWith": { "$mergeObjects": ["$$ROOT", { "$literal": { "t": zero, "u": zero } }] } },
                doc! { "$set": { "x": 1 } },
            ],
        ),
        case(
            "values that do not survive decoding",
            odd.clone(),
            vec![stage(doc! { "$literal": odd.clone() }), doc! { "$set": { "in": odd } }],
        ),
        case(
            "bits and numbers that change their type",
            doc! { "n": 5, "m": 1 },
            vec![
                doc! { "$bit": { "n": { "xor": 3_i64 } } },
                doc! { "$mul": { "m": 1.5 } },
                doc! { "$inc": { "m": 1_i64 } },
            ],
        ),
    ]
}

/// Names at the top level that begin with `$`, which servers take from 5.0 on.
fn dollars() -> Vec<(String, Case)> {
    let pad = "p".repeat(90);
    let start = doc! { "plain": 0, "$a": 0, "$o": { "k": 0, "$in": 0, "pad": &pad }, "$l": long(4) };
    let whole = |fields: Document| {
        let mut whole = doc! { "_id": 1 };
        whole.extend(fields);
        whole.insert("filler", "f".repeat(400));
        doc! { "$replaceWith": { "$literal": whole } }
    };
    vec![case(
        "names that begin with $ are set, change inside, come and go",
        start,
        vec![
            whole(doc! { "plain": 1, "$a": 1, "$o": { "k": 1, "$in": 1, "pad": &pad }, "$l": long(4) }),
            whole(doc! { "plain": 1, "$o": { "k": 1, "pad": &pad, "$new": 2 }, "$l": long(2), "$set": { "x": 1 } }),
            whole(doc! { "$o": { "k": 1, "pad": &pad }, "$l": [], "$a": { "$b": 1 }, "plain": 2 }),
        ],
    )]
}

/// Two fields of one name: drivers do not write them, but the server stores them.
fn twins() -> Vec<(String, Case)> {
    let twin = |first: i32| {
        let mut document = bson::rawdoc! { "a": first };
        document.append(cstr!("a"), first + 1);
        document
    };
    let mut start = bson::rawdoc! { "_id": 1, "y": 0 };
    twin(1).iter().flatten().for_each(|(name, value)| start.append(name, value));
    start.append(cstr!("z"), twin(5));
    start.append(cstr!("filler"), "f".repeat(400));
    let case = |name: &str, start: &RawDocumentBuf, operations: Vec<Operation>| {
        (name.to_owned(), Case { id: 1, start: start.clone(), operations })
    };
    let set = |update: RawDocumentBuf| Operation::update(update);
    let mut holding = RawDocumentBuf::new();
    holding.append(cstr!("v"), twin(8));
    vec![
        case(
            "a document with twins changes beside them",
            &start,
            vec![
                set(bson::rawdoc! { "$set": { "y": 1 } }),
                set(bson::rawdoc! { "$set": { "new": 1 } }),
                set(bson::rawdoc! { "$set": { "z.new": 1 } }),
            ],
        ),
        case(
            "a value with twins is set",
            &bson::rawdoc! { "_id": 1, "filler": "f".repeat(400) },
            vec![set(bson::rawdoc! { "$set": holding }), set(bson::rawdoc! { "$set": { "y": 1 } })],
        ),
    ]
}

fn found() -> Vec<(String, Case)> {
    let lines = FOUND.lines().enumerate().filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
    lines.map(|(at, line)| (format!("updates.txt:{}", at + 1), Case::from_line(line).unwrap())).collect()
}

fn takes_dollars(pair: &Pair) -> bool {
    pair.source.has("names that begin with $", (5, 0)) && pair.target().has("such names", (5, 0))
}

#[tokio::test]
async fn kept_updates_arrive_in_overlap_and_after_it() {
    let pair = Pair::start().await;
    let mut kept = [arrays(), names(), order(), values(), found()].concat();
    if takes_dollars(&pair) {
        kept.extend(dollars());
    }
    try_kept(&pair, &Capture::Oplog, &kept, pair.has_applier()).await;
}

#[tokio::test]
async fn kept_updates_arrive_by_change_stream() {
    let pair = Pair::start().await;
    let mut kept = [arrays(), names(), order(), values(), twins(), found()].concat();
    if takes_dollars(&pair) {
        kept.extend(dollars());
    }
    try_kept(&pair, &Capture::Stream(pair.source.uri()), &kept, false).await;
}

/// The applier of a server makes something else of them than its primary did, so only the source's documents count.
#[tokio::test]
async fn fields_of_one_name_are_all_kept() {
    let pair = Pair::start().await;
    try_kept(&pair, &Capture::Oplog, &twins(), false).await;
}
