//! `$v: 1` updates of servers before 5.0: what they do to a document, and where they need care.
//!
//! Such an entry holds `$set` and `$unset` with dotted paths, in the order in which the source carried them out. It
//! is written as it is, but three facts need care: a path's meaning depends on the document it meets, newer servers
//! carry the operators out in another order, and a removal that is replayed over a newer document moves fields. The
//! evaluation here serves where a document must be known before it is written. Nothing is ever decoded.

use oplogue_engine::model::raw::{Element, Elements, Malformed, kind};
use thiserror::Error;

use crate::mongodb::writer::RawWriter;

/// What the server's `$set` pads an array with at most.
const PADDING_MAX: usize = 1_500_000;

/// Why modifiers have no result.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub(crate) enum ModifiersError {
    /// Not BSON.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// An operator that servers of 3.6 to 4.4 do not log.
    #[error("the update holds an unknown operator `{0}`")]
    Unknown(String),
    /// A path leads through a value that has no fields, as it does on the server (`PathNotViable`).
    #[error("the update's path cannot be followed in this document")]
    NotViable,
}

/// The document after the update.
pub(crate) fn apply(document: &[u8], modifiers: &[u8]) -> Result<Vec<u8>, ModifiersError> {
    let mut document = document.to_vec();
    for operator in Elements::new(modifiers)? {
        let operator = operator?;
        for change in changes(&operator)? {
            let change = change?;
            let path: Vec<&[u8]> = change.name.split(|byte| *byte == b'.').collect();
            let mut w = RawWriter::with_capacity(document.len() + change.value.len() + 64);
            if operator.name == b"$set" {
                set(&mut w, &document, None, &path, &change)?;
            } else {
                unset(&mut w, &document, &path)?;
            }
            document = w.finish();
        }
    }
    Ok(document)
}

fn changes<'a>(operator: &Element<'a>) -> Result<Elements<'a>, ModifiersError> {
    if !matches!(operator.name, b"$set" | b"$unset") || operator.kind != kind::DOCUMENT {
        return Err(ModifiersError::Unknown(String::from_utf8_lossy(operator.name).into_owned()));
    }
    Ok(Elements::new(operator.value)?)
}

/// Copies `container` with the value at `path`; `array` is its number of elements where it is an array.
fn set(
    w: &mut RawWriter,
    container: &[u8],
    array: Option<usize>,
    path: &[&[u8]],
    value: &Element<'_>,
) -> Result<(), ModifiersError> {
    let Some((head, rest)) = path.split_first() else { return Err(ModifiersError::NotViable) };
    let mut found = false;
    for element in Elements::new(container)? {
        let element = element?;
        if found || element.name != *head {
            w.element(&element);
            continue;
        }
        found = true;
        match (rest, element.kind) {
            ([], _) => w.value(head, value.kind, value.value),
            (_, kind::DOCUMENT) => w.document(head, |w| set(w, element.value, None, rest, value))?,
            (_, kind::ARRAY) => {
                let length = Elements::new(element.value)?.count();
                w.array(head, |w| set(w, element.value, Some(length), rest, value))?;
            }
            _ => return Err(ModifiersError::NotViable),
        }
    }
    if found {
        return Ok(());
    }
    if let Some(length) = array {
        let index = index(head).filter(|index| *index >= length && index - length <= PADDING_MAX);
        (length..index.ok_or(ModifiersError::NotViable)?).for_each(|_| w.null(""));
    }
    append(w, head, rest, value);
    Ok(())
}

/// A new field, with the objects that its path asks for.
fn append(w: &mut RawWriter, head: &[u8], rest: &[&[u8]], value: &Element<'_>) {
    match rest.split_first() {
        None => w.value(head, value.kind, value.value),
        Some((next, rest)) => w.document(head, |w| append(w, next, rest, value)),
    }
}

/// Copies `container` without the value at `path`; an array's element becomes null.
fn unset(w: &mut RawWriter, container: &[u8], path: &[&[u8]]) -> Result<(), ModifiersError> {
    copy_without(w, container, false, path)
}

fn copy_without(w: &mut RawWriter, container: &[u8], array: bool, path: &[&[u8]]) -> Result<(), ModifiersError> {
    let mut wanted = path.split_first();
    for element in Elements::new(container)? {
        let element = element?;
        let Some((head, rest)) = wanted.filter(|(head, _)| element.name == **head) else {
            w.element(&element);
            continue;
        };
        wanted = None;
        match (rest, element.kind) {
            ([], _) if array => w.null(""),
            ([], _) => {}
            (_, kind::DOCUMENT) => w.document(head, |w| copy_without(w, element.value, false, rest))?,
            (_, kind::ARRAY) => w.array(head, |w| copy_without(w, element.value, true, rest))?,
            _ => w.element(&element),
        }
    }
    Ok(())
}

/// Whether the update removes something. Replayed over a newer document, a removal is followed by the same field
/// being appended anew, behind fields that in truth came later; other modifiers leave a newer document's order alone.
pub(crate) fn removes(modifiers: &[u8]) -> Result<bool, Malformed> {
    for operator in Elements::new(modifiers)? {
        if operator?.name == b"$unset" {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The update as several, one after the other, where a server from 5.0 on would append new fields in another order
/// than the one they are logged in; `None` where it would not.
///
/// Since 5.0 servers carry `$set` out by numeric names in the order of their numbers (found on 5.0.4 and 6.0.27);
/// up to 4.4 the order is that of the bytes, which is how the names are logged.
pub(crate) fn in_order(modifiers: &[u8]) -> Result<Option<Vec<Vec<u8>>>, Malformed> {
    let mut runs: Vec<Vec<Element<'_>>> = vec![Vec::new()];
    let mut others = Vec::new();
    for operator in Elements::new(modifiers)? {
        let operator = operator?;
        if operator.name != b"$set" || operator.kind != kind::DOCUMENT {
            others.push(operator);
            continue;
        }
        for change in Elements::new(operator.value)? {
            let change = change?;
            let splits = runs.last().is_some_and(|run| run.iter().any(|earlier| turns(earlier.name, change.name)));
            if splits {
                runs.push(Vec::new());
            }
            if let Some(run) = runs.last_mut() {
                run.push(change);
            }
        }
    }
    if runs.len() == 1 {
        return Ok(None);
    }
    let statements = runs.iter().enumerate().map(|(at, run)| {
        let mut w = RawWriter::with_capacity(modifiers.len() + 32);
        others.iter().filter(|_| at == 0).for_each(|operator| w.element(operator));
        w.document("$set", |w| run.iter().for_each(|change| w.element(change)));
        w.finish()
    });
    Ok(Some(statements.collect()))
}

/// Whether a newer server might carry out `later` before `earlier`, which is logged first.
fn turns(earlier: &[u8], later: &[u8]) -> bool {
    let mut pairs = earlier.split(|byte| *byte == b'.').zip(later.split(|byte| *byte == b'.'));
    let Some((a, b)) = pairs.find(|(a, b)| a != b) else { return false };
    let digit = |name: &[u8]| name.first().is_some_and(u8::is_ascii_digit);
    match (index(a), index(b)) {
        (Some(a), Some(b)) => a > b,
        _ => digit(a) || digit(b) || a > b,
    }
}

/// A number as the server writes array indexes: no sign, no leading zero.
fn index(name: &[u8]) -> Option<usize> {
    let canonical = name == b"0" || (!name.starts_with(b"0") && !name.is_empty());
    if !canonical || !name.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(name).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use bson::{Document, RawDocumentBuf, doc, rawdoc};

    fn applied(document: &RawDocumentBuf, modifiers: &RawDocumentBuf) -> Result<Document, ModifiersError> {
        let bytes = apply(document.as_bytes(), modifiers.as_bytes())?;
        Ok(Document::from_reader(bytes.as_slice()).unwrap())
    }

    #[test]
    fn paths_mean_what_they_meet() {
        let start = rawdoc! { "_id": 1, "a": [1, { "k": 1 }], "o": { "0": 1 } };
        let set = rawdoc! { "$set": { "a.1.k": 2, "a.4": 9, "o.0": 5, "n.x.0": 1 } };
        assert_eq!(
            applied(&start, &set).unwrap(),
            doc! { "_id": 1, "a": [1, { "k": 2 }, null, null, 9], "o": { "0": 5 }, "n": { "x": { "0": 1 } } }
        );
        let unset = rawdoc! { "$unset": { "a.0": true, "o.0": true, "gone.x": true, "_id.x": true } };
        assert_eq!(applied(&start, &unset).unwrap(), doc! { "_id": 1, "a": [null, { "k": 1 }], "o": {} });
    }

    #[test]
    fn what_the_server_refuses_is_refused() {
        let start = rawdoc! { "_id": 1, "a": [1], "s": 1 };
        for set in
            [rawdoc! { "$set": { "a.x": 1 } }, rawdoc! { "$set": { "s.x": 1 } }, rawdoc! { "$set": { "a.01": 1 } }]
        {
            assert_eq!(applied(&start, &set), Err(ModifiersError::NotViable), "{set:?}");
        }
        assert!(matches!(applied(&start, &rawdoc! { "$inc": { "s": 1 } }), Err(ModifiersError::Unknown(_))));
    }

    #[test]
    fn only_orders_that_newer_servers_change_are_split() {
        let split = |modifiers: RawDocumentBuf| in_order(modifiers.as_bytes()).unwrap().map(|runs| runs.len());
        assert_eq!(split(rawdoc! { "$set": { "a": 1, "b.c": 2, "b.d": 3 } }), None);
        assert_eq!(split(rawdoc! { "$set": { "arr.3": 1, "arr.4": 1 }, "$unset": { "x": true } }), None);
        assert_eq!(split(rawdoc! { "$set": { "arr.10": 1, "arr.9": 1 } }), Some(2));
        assert_eq!(split(rawdoc! { "$set": { "-": 1, "9": 1, "a": 1 } }), Some(3));
    }
}
