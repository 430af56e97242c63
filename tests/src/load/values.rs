//! Random values of every BSON type, `_id`s of every type the server takes, and documents made of them.
//!
//! The rare ones are where replicators lose data: NaN with a payload, negative zero, an empty old-style binary,
//! `Timestamp(0,0)` at the top level, deprecated types, numbers equal across types. Document bodies have some
//! fixed fields, so that the update operators find something to work on. Nothing here talks to a server.

use bson::oid::ObjectId;
use bson::spec::BinarySubtype;
use bson::{Binary, Bson, DateTime, Decimal128, Document, JavaScriptCodeWithScope, Regex, Timestamp, doc};
use rand::Rng as _;
use rand::rngs::StdRng;

/// The number of value kinds that [`value_of`] knows.
pub const KINDS: u32 = 27;

/// A random value; documents and arrays nest at most `depth` levels.
pub fn value(rng: &mut StdRng, depth: u32) -> Bson {
    let kind = rng.random_range(0..KINDS);
    value_of(rng, kind, depth)
}

/// A value of one kind, below [`KINDS`]: together they cover every BSON type and its awkward values.
pub fn value_of(rng: &mut StdRng, kind: u32, depth: u32) -> Bson {
    match kind {
        0 => Bson::Double(rng.random_range(-1e9..1e9)),
        1 => Bson::Double(odd_double(rng)),
        2 => Bson::String(text(rng, 24)),
        3 => Bson::Document(document(rng, depth)),
        4 => Bson::Array((0..rng.random_range(0..5)).map(|_| shallow(rng, depth)).collect()),
        5 => binary(rng, BinarySubtype::Generic, 12),
        6 => binary(rng, BinarySubtype::BinaryOld, 0),
        7 => binary(rng, BinarySubtype::Uuid, 16),
        8 => binary(rng, BinarySubtype::UserDefined(0x80), 3),
        9 => Bson::Undefined,
        10 => Bson::ObjectId(ObjectId::from_bytes(rng.random())),
        11 => Bson::Boolean(rng.random()),
        12 => Bson::DateTime(DateTime::from_millis(rng.random_range(-1 << 45..1 << 45))),
        13 => Bson::Null,
        14 => {
            Bson::RegularExpression(Regex { pattern: bson::cstr!("^a.*b$").into(), options: bson::cstr!("im").into() })
        }
        15 => db_pointer(rng),
        16 => Bson::JavaScriptCode("function () { return 1; }".to_owned()),
        17 => Bson::Symbol(text(rng, 6)),
        18 => Bson::JavaScriptCodeWithScope(JavaScriptCodeWithScope {
            code: "return x".to_owned(),
            scope: doc! { "x": rng.random::<i32>() },
        }),
        19 => Bson::Int32(rng.random()),
        20 => Bson::Timestamp(Timestamp { time: rng.random_range(1..=u32::MAX), increment: rng.random() }),
        21 => Bson::Int64(rng.random()),
        22 => decimal(&format!("{}.{}", rng.random::<i32>(), rng.random::<u16>())),
        23 => decimal(["NaN", "-Infinity", "1.00", "0E-6176", "-0"][rng.random_range(0..5)]),
        24 => Bson::MinKey,
        25 => Bson::MaxKey,
        _ => Bson::Int32(rng.random_range(-3..3)),
    }
}

/// A document of random fields with unique names.
pub fn document(rng: &mut StdRng, depth: u32) -> Document {
    let fields = rng.random_range(0..5);
    let names = ["k", "zeta", "alpha", "0", "10", "ключ", ""];
    let from = rng.random_range(0..names.len());
    (0..fields).map(|at| (names[(from + at) % names.len()].to_owned(), shallow(rng, depth))).collect()
}

/// An `_id` that no other call with another `serial` gives, of every type that the server takes.
///
/// The values that exist once (null, true, false, NaN, infinity, MinKey, MaxKey) are the first serials.
pub fn id(rng: &mut StdRng, serial: u64) -> Bson {
    let number = i32::try_from(serial).unwrap_or_default();
    match serial {
        0 => return Bson::Null,
        1 => return Bson::Boolean(true),
        2 => return Bson::Boolean(false),
        3 => return Bson::Double(f64::NAN),
        4 => return Bson::Double(f64::NEG_INFINITY),
        5 => return Bson::MinKey,
        6 => return Bson::MaxKey,
        _ => {}
    }
    match rng.random_range(0..13) {
        0 | 1 => Bson::ObjectId(ObjectId::from_bytes(rng.random())),
        2 => Bson::Int32(number),
        3 => Bson::Int64(i64::from(number)),
        4 => Bson::Double(f64::from(number)),
        5 => Bson::Double(f64::from(number) + 0.25),
        6 => decimal(&format!("{number}.00")),
        7 => Bson::String(format!("id-{serial}-é")),
        8 => Bson::Binary(Binary { subtype: BinarySubtype::Uuid, bytes: rng.random::<[u8; 16]>().to_vec() }),
        9 => Bson::Binary(Binary { subtype: BinarySubtype::Generic, bytes: serial.to_be_bytes().to_vec() }),
        10 => Bson::Document(doc! { "region": "eu", "number": number, "deep": { "n": f64::from(number) } }),
        11 => Bson::DateTime(DateTime::from_millis(i64::from(number) * 1_000)),
        _ => Bson::Timestamp(Timestamp { time: 1_700_000_000, increment: serial.try_into().unwrap_or(1) }),
    }
}

/// The same number in another type; none for an `_id` that is no integer.
pub fn same_number_in_another_type(id: &Bson) -> Option<Bson> {
    if let Some(number) = id.as_i32() {
        return Some(Bson::Int64(i64::from(number)));
    }
    if let Some(number) = id.as_i64() {
        return i32::try_from(number).ok().map(|number| Bson::Double(f64::from(number)));
    }
    let number = id.as_f64().filter(|number| number.fract() == 0.0 && number.abs() < 1e9)?;
    Some(decimal(&format!("{number:.0}.0")))
}

/// A new document's body, without `_id`: fixed fields for the updates and random ones.
pub fn body(rng: &mut StdRng, padding_max: usize, odd_names: bool) -> Document {
    let status = ["new", "paid", "sent"][rng.random_range(0..3)];
    let mut body = doc! {
        "n": rng.random_range(0..1_000),
        "total": rng.random_range(0_i64..1_000_000),
        "price": rng.random_range(0.0..100.0),
        "status": status,
        "obj": { "a": { "b": rng.random_range(0..10), "c": text(rng, 8) }, "list": [1, 2, 3] },
        "arr": (0..rng.random_range(0..8)).map(|_| Bson::Int32(rng.random_range(0..20))).collect::<Vec<_>>(),
        "items": [
            { "sku": "x", "q": rng.random_range(0..5) },
            { "sku": "y", "q": rng.random_range(0..5) },
        ],
        "email": format!("{}@example.test", rng.random::<u32>()),
        "pad": "p".repeat(rng.random_range(0..=padding_max)),
    };
    for number in 0..rng.random_range(0..6) {
        body.insert(format!("f{number}"), value(rng, 3));
    }
    if rng.random_ratio(1, 50) {
        body.insert("stamp", Timestamp { time: 0, increment: 0 });
    }
    if odd_names && rng.random_ratio(1, 5) {
        body.insert("dotted.name", value(rng, 1));
        body.insert("nested", doc! { "$price": 1, "a.b": value(rng, 1) });
    }
    body
}

/// A string of mixed scripts, at most `max` characters.
pub fn text(rng: &mut StdRng, max: usize) -> String {
    let alphabet = ['a', 'b', 'Z', '7', ' ', '.', '$', '"', '\\', '\0', 'é', '中', '😀', '\n'];
    (0..rng.random_range(0..=max)).map(|_| alphabet[rng.random_range(0..alphabet.len())]).collect()
}

fn shallow(rng: &mut StdRng, depth: u32) -> Bson {
    // Kinds 3 and 4 nest; at the bottom another kind stands in their place.
    match (rng.random_range(0..KINDS), depth) {
        (3 | 4, 0) => Bson::Int32(0),
        (kind, _) => value_of(rng, kind, depth.saturating_sub(1)),
    }
}

fn odd_double(rng: &mut StdRng) -> f64 {
    let odd = [f64::NAN, f64::from_bits(0x7ff8_0000_dead_beef), f64::INFINITY, -0.0, 0.0, 5e-324, 1e308, 1.0];
    odd[rng.random_range(0..odd.len())]
}

fn binary(rng: &mut StdRng, subtype: BinarySubtype, length: usize) -> Bson {
    let bytes = (0..length).map(|_| rng.random()).collect();
    Bson::Binary(Binary { subtype, bytes })
}

fn decimal(text: &str) -> Bson {
    text.parse::<Decimal128>().map_or(Bson::Null, Bson::Decimal128)
}

/// The deprecated DBPointer type, which the bson crate reads but gives no constructor for.
fn db_pointer(rng: &mut StdRng) -> Bson {
    let mut bytes = vec![0, 0, 0, 0, 0x0c, b'p', 0, 5, 0, 0, 0];
    bytes.extend_from_slice(b"db.c\0");
    bytes.extend_from_slice(&rng.random::<[u8; 12]>());
    bytes.push(0);
    let length = u8::try_from(bytes.len()).unwrap_or_default();
    if let Some(first) = bytes.first_mut() {
        *first = length;
    }
    let parsed = Document::from_reader(bytes.as_slice());
    parsed.ok().and_then(|mut document| document.remove("p")).unwrap_or(Bson::Null)
}
