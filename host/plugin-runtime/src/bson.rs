//! Checks of BSON that a guest wrote, before it may reach the target.
//!
//! The server would refuse broken bytes, but with an error that blames the wrong party and at a moment when the
//! plugin's policy can no longer be applied. So every replaced body is walked here, nested documents included.

use oplogue_engine::model::raw::{self, Elements, Malformed, kind};

/// The server's limit for a user's document.
const DOCUMENT_BYTES_MAX: usize = 16 * 1024 * 1024;
/// The server refuses more than 180 levels.
const DEPTH_MAX: usize = 180;

/// The first document in `bytes` from `at` on, by its length prefix.
pub(crate) fn document_at(bytes: &[u8], at: usize) -> Result<&[u8], String> {
    let rest = bytes.get(at..).unwrap_or_default();
    let length = raw::read_i32(rest, 0).map_err(|_| "edits.out ends before all replaced bodies".to_owned())?;
    usize::try_from(length)
        .ok()
        .filter(|n| *n >= 5)
        .and_then(|n| rest.get(..n))
        .ok_or_else(|| format!("a body in edits.out claims {length} bytes, {} are left", rest.len()))
}

/// Checks that `document` is well-formed in full.
pub(crate) fn check(document: &[u8]) -> Result<(), String> {
    if document.len() > DOCUMENT_BYTES_MAX {
        return Err(format!("a replaced body has {} bytes, more than the server's 16 MiB", document.len()));
    }
    walk(document, 0).map_err(|e| format!("a replaced body is {e}"))
}

fn walk(document: &[u8], depth: usize) -> Result<(), Malformed> {
    if depth > DEPTH_MAX {
        return Err(Malformed { offset: 0, reason: "nested deeper than the server allows" });
    }
    for element in Elements::new(document)? {
        let element = element?;
        let wrong = |reason| Malformed { offset: element.offset, reason };
        match element.kind {
            kind::DOCUMENT | kind::ARRAY => walk(element.value, depth + 1)?,
            kind::STRING | kind::JAVASCRIPT | kind::SYMBOL => {
                let text = element.value.get(4..).and_then(<[u8]>::split_last);
                match text {
                    Some((0, text)) if std::str::from_utf8(text).is_ok() => {}
                    Some((0, _)) => return Err(wrong("a string is not UTF-8")),
                    _ => return Err(wrong("a string does not end with NUL")),
                }
            }
            kind::BOOLEAN if element.value.first().is_none_or(|b| *b > 1) => {
                return Err(wrong("a boolean is neither 0 nor 1"));
            }
            _ => {}
        }
    }
    Ok(())
}

/// The `_id` of a document, as type byte and value.
pub(crate) fn id(document: &[u8]) -> Result<Option<(u8, &[u8])>, Malformed> {
    Ok(raw::find(document, "_id")?.map(|e| (e.kind, e.value)))
}

/// Whether a `$v: 2` diff touches the top-level `_id`.
pub(crate) fn diff_touches_id(diff: &[u8]) -> Result<bool, Malformed> {
    for element in Elements::new(diff)? {
        let element = element?;
        let touches = match element.name {
            b"u" | b"i" | b"d" => raw::find(element.value, "_id")?.is_some(),
            name => name == b"s_id",
        };
        if touches {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether `$v: 1` modifiers touch the top-level `_id`.
pub(crate) fn modifiers_touch_id(modifiers: &[u8]) -> Result<bool, Malformed> {
    for element in Elements::new(modifiers)? {
        let element = element?;
        if element.kind != kind::DOCUMENT {
            continue;
        }
        for field in Elements::new(element.value)? {
            let name = field?.name;
            if name == b"_id" || name.starts_with(b"_id.") {
                return Ok(true);
            }
        }
    }
    Ok(false)
}
