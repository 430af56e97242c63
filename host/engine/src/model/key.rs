//! Which document a change is about: the `_id` reduced to 128 bits, equal exactly when the server calls two ids equal.
//!
//! The server compares numbers by value across types (`1`, `1.0`, `NumberLong(1)` and `NumberDecimal("1.00")` are one
//! key), knows one NaN, no negative zero, and compares sub-documents field by field with the same rules
//! (correctness.md §4). Hashing raw bytes instead would send a delete of `1` and an insert of `NumberLong(1)` to two
//! lanes and lose the document. The reduction is a SipHash with a random key of this process, so that nobody can
//! craft two ids that collide; the value is never stored.

use std::hash::Hasher as _;
use std::sync::OnceLock;

use bytes::Bytes;
use siphasher::sip128::{Hasher128 as _, SipHasher13};

use super::raw::{self, Elements, Malformed, kind};

/// The identity of a document inside one collection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DocumentKey(u128);

impl DocumentKey {
    /// The key of the `_id` found in `document` (a key document or a whole body).
    ///
    /// A document without `_id` (possible only in capped collections of very old servers) is an error: it cannot be
    /// addressed.
    pub fn of_document(document: &[u8]) -> Result<Self, Malformed> {
        let id = raw::find(document, "_id")?.ok_or(Malformed { offset: 0, reason: "the document has no _id" })?;
        Self::of_value(id.kind, id.value)
    }

    /// The key of one `_id` value.
    pub fn of_value(kind: u8, value: &[u8]) -> Result<Self, Malformed> {
        let mut hasher = hasher();
        feed(&mut hasher, kind, value, 0)?;
        Ok(Self(hasher.finish128().as_u128()))
    }

    /// A lane out of `lanes` (at least 1).
    #[must_use]
    pub fn lane(self, salt: u64, lanes: usize) -> usize {
        let mixed = (self.0 as u64) ^ salt.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (mixed % lanes.max(1) as u64) as usize
    }
}

/// A selector document `{_id: …}` out of a whole document.
///
/// # Errors
/// `Malformed` when the document has no `_id`.
pub fn selector(document: &[u8]) -> Result<Bytes, Malformed> {
    let id = raw::find(document, "_id")?.ok_or(Malformed { offset: 0, reason: "the document has no _id" })?;
    let length = 4 + 1 + 4 + id.value.len() + 1;
    let mut out = Vec::with_capacity(length);
    out.extend_from_slice(&i32::try_from(length).unwrap_or(i32::MAX).to_le_bytes());
    out.push(id.kind);
    out.extend_from_slice(b"_id\0");
    out.extend_from_slice(id.value);
    out.push(0);
    Ok(Bytes::from(out))
}

/// The selector without the fields of a shard key that the source logged beside the `_id`: the `_id` alone names the
/// document, while a shard key is the one of the moment of the change.
///
/// # Errors
/// `Malformed` when it has no `_id`.
pub fn id_alone(key: Bytes) -> Result<Bytes, Malformed> {
    let mut elements = Elements::new(&key)?;
    match (elements.next().transpose()?, elements.next()) {
        (Some(only), None) if only.name == b"_id" => Ok(key),
        _ => selector(&key),
    }
}

fn hasher() -> SipHasher13 {
    static KEY: OnceLock<[u8; 16]> = OnceLock::new();
    SipHasher13::new_with_key(KEY.get_or_init(rand::random))
}

/// Sub-documents deeper than the server allows (it refuses more than 180 levels) are malformed.
const DEPTH_MAX: usize = 200;

const TAG_INTEGER: u8 = 1;
const TAG_BINARY_FRACTION: u8 = 2;
const TAG_DECIMAL_FRACTION: u8 = 3;
const TAG_NAN: u8 = 4;
const TAG_INFINITY: u8 = 5;
const TAG_OTHER: u8 = 6;
const TAG_END: u8 = 7;

fn feed(hasher: &mut SipHasher13, kind: u8, value: &[u8], depth: usize) -> Result<(), Malformed> {
    let short = Malformed { offset: 0, reason: "a value is too short for its type" };
    match kind {
        kind::INT32 => feed_number(hasher, Number::Integer(i64::from(raw::read_i32(value, 0)?))),
        kind::INT64 => feed_number(hasher, Number::Integer(raw::read_i64(value, 0)?)),
        kind::DOUBLE => {
            feed_number(hasher, Number::of_double(f64::from_bits(raw::read_i64(value, 0)?.cast_unsigned())));
        }
        kind::DECIMAL128 => {
            let bytes: [u8; 16] = value.try_into().map_err(|_| short)?;
            feed_number(hasher, Number::of_decimal(u128::from_le_bytes(bytes)));
        }
        kind::DOCUMENT | kind::ARRAY => {
            if depth > DEPTH_MAX {
                return Err(Malformed { offset: 0, reason: "an _id is nested too deeply" });
            }
            hasher.write(&[TAG_OTHER, kind]);
            for element in Elements::new(value)? {
                let element = element?;
                hasher.write(element.name);
                hasher.write(&[0]);
                feed(hasher, element.kind, element.value, depth + 1)?;
            }
            hasher.write(&[TAG_END]);
        }
        other => {
            // The server compares a symbol as a string.
            let kind = if other == kind::SYMBOL { kind::STRING } else { other };
            hasher.write(&[TAG_OTHER, kind]);
            hasher.write(&(value.len() as u64).to_le_bytes());
            hasher.write(value);
        }
    }
    Ok(())
}

/// A number in the one form that all types of equal value share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Number {
    /// A whole number in the range of `i64`.
    Integer(i64),
    /// `mantissa · 2^exponent` with an odd mantissa below 2^53: what a double can hold.
    Binary {
        negative: bool,
        mantissa: u64,
        exponent: i32,
    },
    /// `coefficient · 10^exponent`, not divisible by ten: what only a decimal can hold.
    Decimal {
        negative: bool,
        coefficient: u128,
        exponent: i32,
    },
    Infinity {
        negative: bool,
    },
    NaN,
}

fn feed_number(hasher: &mut SipHasher13, number: Number) {
    match number {
        Number::Integer(n) => {
            hasher.write(&[TAG_INTEGER]);
            hasher.write(&n.to_le_bytes());
        }
        Number::Binary { negative, mantissa, exponent } => {
            hasher.write(&[TAG_BINARY_FRACTION, u8::from(negative)]);
            hasher.write(&mantissa.to_le_bytes());
            hasher.write(&exponent.to_le_bytes());
        }
        Number::Decimal { negative, coefficient, exponent } => {
            hasher.write(&[TAG_DECIMAL_FRACTION, u8::from(negative)]);
            hasher.write(&coefficient.to_le_bytes());
            hasher.write(&exponent.to_le_bytes());
        }
        Number::Infinity { negative } => hasher.write(&[TAG_INFINITY, u8::from(negative)]),
        Number::NaN => hasher.write(&[TAG_NAN]),
    }
}

impl Number {
    fn of_double(value: f64) -> Self {
        if value.is_nan() {
            return Self::NaN;
        }
        if value.is_infinite() {
            return Self::Infinity { negative: value < 0.0 };
        }
        let bits = value.to_bits();
        let fraction = bits & ((1 << 52) - 1);
        let biased = ((bits >> 52) & 0x7ff) as i32;
        let (mantissa, exponent) = if biased == 0 { (fraction, -1074) } else { (fraction | (1 << 52), biased - 1075) };
        Self::of_binary(value.is_sign_negative(), mantissa, exponent)
    }

    fn of_binary(negative: bool, mantissa: u64, exponent: i32) -> Self {
        if mantissa == 0 {
            return Self::Integer(0);
        }
        let zeros = mantissa.trailing_zeros();
        let (odd, exponent) = (mantissa >> zeros, exponent + zeros.cast_signed());
        if (0..=63).contains(&exponent) {
            let magnitude = u128::from(odd) << exponent;
            if let Some(n) = whole(negative, magnitude) {
                return Self::Integer(n);
            }
        }
        Self::Binary { negative, mantissa: odd, exponent }
    }

    /// Decodes the binary-integer form of IEEE 754-2008 decimal128, which BSON uses.
    fn of_decimal(bits: u128) -> Self {
        let negative = bits >> 127 == 1;
        let combination = ((bits >> 122) & 0x1f) as u8;
        if combination == 0x1f {
            return Self::NaN;
        }
        if combination == 0x1e {
            return Self::Infinity { negative };
        }
        let (exponent, mut coefficient) = if combination >> 3 == 3 {
            // A coefficient of this form exceeds 34 digits and is read as zero.
            (((bits >> 111) & 0x3fff) as i32 - 6176, 0)
        } else {
            (((bits >> 113) & 0x3fff) as i32 - 6176, bits & ((1 << 113) - 1))
        };
        if coefficient > 9_999_999_999_999_999_999_999_999_999_999_999 {
            coefficient = 0;
        }
        Self::of_scaled(negative, coefficient, exponent)
    }

    fn of_scaled(negative: bool, mut coefficient: u128, mut exponent: i32) -> Self {
        if coefficient == 0 {
            return Self::Integer(0);
        }
        while coefficient.is_multiple_of(10) {
            coefficient /= 10;
            exponent += 1;
        }
        if exponent >= 0 {
            let power = u32::try_from(exponent).ok().and_then(|e| 10_u128.checked_pow(e));
            if let Some(n) = power.and_then(|p| coefficient.checked_mul(p)).and_then(|m| whole(negative, m)) {
                return Self::Integer(n);
            }
        }
        Self::as_double(negative, coefficient, exponent).unwrap_or(Self::Decimal { negative, coefficient, exponent })
    }

    /// The binary form of `coefficient · 10^exponent`, if a double can hold that value exactly.
    fn as_double(negative: bool, coefficient: u128, exponent: i32) -> Option<Self> {
        let fives = 5_u128.checked_pow(exponent.unsigned_abs())?;
        let scaled = if exponent >= 0 {
            coefficient.checked_mul(fives)?
        } else if coefficient.is_multiple_of(fives) {
            coefficient / fives
        } else {
            return None;
        };
        let zeros = scaled.trailing_zeros();
        let odd = u64::try_from(scaled >> zeros).ok().filter(|odd| *odd < 1 << 53)?;
        let exponent = exponent + zeros.cast_signed();
        // 5^49 already exceeds 128 bits, so the exponent is far inside a double's range here.
        Some(Self::of_binary(negative, odd, exponent))
    }
}

fn whole(negative: bool, magnitude: u128) -> Option<i64> {
    let n = i128::try_from(magnitude).ok()?;
    i64::try_from(if negative { -n } else { n }).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use bson::{Bson, Decimal128, doc};

    fn key(id: impl Into<Bson>) -> DocumentKey {
        let doc = bson::RawDocumentBuf::try_from(&doc! { "_id": id.into() }).unwrap();
        DocumentKey::of_document(doc.as_bytes()).unwrap()
    }

    fn decimal(text: &str) -> Bson {
        Bson::Decimal128(text.parse::<Decimal128>().unwrap())
    }

    #[test]
    fn numbers_of_equal_value_are_one_key() {
        for same in [
            vec![Bson::Int32(1), Bson::Int64(1), Bson::Double(1.0), decimal("1.00"), decimal("1")],
            vec![Bson::Int32(0), Bson::Double(-0.0), decimal("-0"), decimal("0E+10")],
            vec![Bson::Double(0.5), decimal("0.5"), decimal("0.500")],
            vec![Bson::Int64(i64::MAX), decimal("9223372036854775807")],
            vec![Bson::Double(9_223_372_036_854_775_808.0), decimal("9223372036854775808")],
            vec![Bson::Double(f64::NAN), decimal("NaN"), Bson::Double(-f64::NAN)],
            vec![Bson::Double(f64::INFINITY), decimal("Infinity")],
            vec![Bson::Double(1e22), decimal("1E22")],
        ] {
            for other in &same {
                assert_eq!(key(same[0].clone()), key(other.clone()), "{} and {other}", same[0]);
            }
        }
    }

    #[test]
    fn values_the_server_tells_apart_are_two_keys() {
        let all = [
            Bson::Int32(1),
            Bson::Int32(-1),
            Bson::Boolean(true),
            Bson::String("1".into()),
            Bson::Double(0.1),
            decimal("0.1"),
            Bson::Double(1e23),
            decimal("1E23"),
            Bson::Double(f64::INFINITY),
            Bson::Double(f64::NEG_INFINITY),
            Bson::Null,
            Bson::DateTime(bson::DateTime::from_millis(1)),
            Bson::Document(doc! { "a": 1 }),
            Bson::Document(doc! { "a": 1, "b": 1 }),
            Bson::Document(doc! { "b": 1, "a": 1 }),
            Bson::MinKey,
            Bson::MaxKey,
        ];
        for (i, a) in all.iter().enumerate() {
            for b in all.iter().skip(i + 1) {
                assert_ne!(key(a.clone()), key(b.clone()), "{a} and {b}");
            }
        }
    }

    #[test]
    fn a_selector_holds_the_id_alone() {
        let doc = bson::rawdoc! { "a": 1, "_id": { "b": 2 } };
        let selector = selector(doc.as_bytes()).unwrap();
        assert_eq!(bson::deserialize_from_slice::<bson::Document>(&selector).unwrap(), doc! { "_id": { "b": 2 } });
    }

    #[test]
    fn sub_documents_compare_by_value_inside() {
        assert_eq!(key(doc! { "a": { "b": 1 } }), key(doc! { "a": { "b": 1.0 } }));
    }
}
