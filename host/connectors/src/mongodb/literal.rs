//! Which whole documents a plain insert or replacement would change.
//!
//! Two cases are known from real servers (correctness.md §1): a top-level `Timestamp(0, 0)` is replaced by the
//! server's clock, and a replacement with a top-level name that begins with `$` is refused. Such documents go as a
//! pipeline, `[{$replaceWith: {$literal: document}}]`. The walk only skips over values, so it is part of every copy.

use oplogue_engine::model::raw::{self, Elements, Malformed, kind};

/// Whether `document` must be written under `$literal`.
///
/// # Errors
/// When the bytes are no BSON document.
pub fn needs_literal(document: &[u8]) -> Result<bool, Malformed> {
    for element in Elements::new(document)? {
        let element = element?;
        if is_zero_time(&element) || element.name.first() == Some(&b'$') {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether a server puts its own time into an insert of it.
///
/// # Errors
/// When the bytes are no BSON document.
pub(crate) fn has_zero_time(document: &[u8]) -> Result<bool, Malformed> {
    for element in Elements::new(document)? {
        if is_zero_time(&element?) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn is_zero_time(element: &raw::Element<'_>) -> bool {
    element.kind == kind::TIMESTAMP && element.value == [0; 8]
}

#[cfg(test)]
mod tests {
    use super::*;
    use bson::{Timestamp, rawdoc};

    #[test]
    fn only_top_level_zero_times_and_dollar_names_count() {
        let zero = Timestamp { time: 0, increment: 0 };
        assert!(needs_literal(rawdoc! { "_id": 1, "t": zero }.as_bytes()).unwrap());
        assert!(needs_literal(rawdoc! { "_id": 1, "$x": 1 }.as_bytes()).unwrap());
        assert!(!needs_literal(rawdoc! { "_id": 1, "a": { "t": zero, "$x": 1 } }.as_bytes()).unwrap());
        assert!(!needs_literal(rawdoc! { "t": Timestamp { time: 0, increment: 1 } }.as_bytes()).unwrap());
    }
}
