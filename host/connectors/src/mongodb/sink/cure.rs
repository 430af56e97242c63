//! What an error of one statement means, by its code alone.
//!
//! Pure: the table from (content, code) to what is done next. Codes are those of the server's `error_codes.yml`.

use oplogue_engine::error::Kind;
use oplogue_engine::sink::Content;

use crate::mongodb::classify;
use crate::mongodb::command::{DUPLICATE_KEY, Statement, StatementError};

pub(crate) const ILLEGAL_OPERATION: i32 = 20;
pub(crate) const DOLLAR_PREFIXED: i32 = 52;
const IMMUTABLE_FIELD: i32 = 66;
const DOCUMENT_VALIDATION: i32 = 121;

/// What to do about a refused statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cure {
    /// It is done in effect.
    Accept,
    /// An insert met its own `_id`.
    Duplicate,
    /// Send the same statement again.
    Again,
    /// Delete the document that stands there under an equal key, then write.
    DeleteFirst,
    /// The same, and write it as an insert, which is judged less strictly than an update.
    InsertAnew,
    /// Classic modifiers were refused: use the exact path.
    Exact,
    /// Read the whole document from the source.
    Refetch,
    /// Nothing helps, or nothing here.
    Refuse,
}

/// Decides about one error.
pub(crate) fn cure(content: &Content, statement: &Statement<'_>, error: &StatementError) -> Cure {
    match error.code {
        DUPLICATE_KEY if is_id(error) && matches!(statement, Statement::Insert(_)) => Cure::Duplicate,
        // Two upserts of one key met, and the second finds the document that the first made. Or it is another unique
        // index, and a neighbour of the same flush was about to make room.
        DUPLICATE_KEY => Cure::Again,
        // Servers before 5.0.7 evict documents of capped collections by themselves and refuse deletes.
        ILLEGAL_OPERATION if matches!(content, Content::Delete) => Cure::Accept,
        IMMUTABLE_FIELD if matches!(content, Content::Insert(_) | Content::Replace(_)) => Cure::DeleteFirst,
        // Servers before 5.0 take names that begin with `$` below the top level, but only from an insert.
        DOLLAR_PREFIXED if is_whole(content) && !matches!(statement, Statement::Insert(_)) => Cure::InsertAnew,
        code if classify::of_code(code) == Some(Kind::Unavailable) => Cure::Again,
        // No form of the same change passes these.
        DOCUMENT_VALIDATION => Cure::Refuse,
        code if classify::of_code(code) == Some(Kind::Unauthorized) => Cure::Refuse,
        _ => match (content, statement) {
            (Content::Patch(_), Statement::Modify { .. }) => Cure::Exact,
            // Whatever the server has against the statement or against what stands there: the whole document has the
            // change in it.
            (Content::Patch(_) | Content::Patched { .. }, _) => Cure::Refetch,
            (Content::Insert(_) | Content::Replace(_) | Content::Delete, _) => Cure::Refuse,
        },
    }
}

/// Whether an index, and not a unique one, refuses the document: two arrays, no place on earth, no language. A document
/// that is repeated may be older than the index; a secondary takes it then.
pub(in crate::mongodb) fn is_by_index(code: i32) -> bool {
    // CannotBuildIndexKeys, CannotIndexParallelArrays; 2d, 2dsphere, hashed over an array, text.
    matches!(code, 201 | 171 | 13026 | 13027 | 13067 | 13068 | 16755 | 16756 | 16766 | 16804 | 17261 | 17262)
}

fn is_whole(content: &Content) -> bool {
    matches!(content, Content::Insert(_) | Content::Replace(_))
}

pub(crate) fn is_id(error: &StatementError) -> bool {
    error.key_pattern.as_ref().is_some_and(|pattern| pattern.len() == 1 && pattern.contains_key("_id"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use bson::doc;
    use bytes::Bytes;

    fn error(code: i32, pattern: Option<bson::Document>) -> StatementError {
        StatementError {
            at: std::time::Instant::now(),
            code,
            message: String::new(),
            key_pattern: pattern,
            key_value: None,
        }
    }

    #[test]
    fn duplicates_are_told_apart_by_the_index_and_not_by_text() {
        let content = Content::Insert(Bytes::new());
        let insert = Statement::Insert(&[]);
        assert_eq!(cure(&content, &insert, &error(11000, Some(doc! { "_id": 1 }))), Cure::Duplicate);
        assert_eq!(cure(&content, &insert, &error(11000, Some(doc! { "email": 1 }))), Cure::Again);
        assert_eq!(cure(&content, &insert, &error(11000, Some(doc! { "_id": 1, "x": 1 }))), Cure::Again);
    }

    #[test]
    fn a_whole_document_that_an_update_may_not_write_is_inserted() {
        let content = Content::Replace(Bytes::new());
        let update = Statement::Update { key: &[], update: &[], upsert: true };
        assert_eq!(cure(&content, &update, &error(52, None)), Cure::InsertAnew);
        assert_eq!(cure(&content, &Statement::Insert(&[]), &error(52, None)), Cure::Refuse);
    }

    #[test]
    fn a_refused_fast_path_takes_the_exact_one() {
        let content = Content::Patch(vec![]);
        let fast = Statement::Modify { key: &[], modifiers: vec![] };
        let exact = Statement::Pipeline { key: &[], stages: vec![], upsert: false };
        assert_eq!(cure(&content, &fast, &error(28, None)), Cure::Exact);
        assert_eq!(cure(&content, &exact, &error(28, None)), Cure::Refetch);
        assert_eq!(cure(&content, &exact, &error(40400, None)), Cure::Refetch);
        assert_eq!(cure(&content, &exact, &error(121, None)), Cure::Refuse);
    }
}
