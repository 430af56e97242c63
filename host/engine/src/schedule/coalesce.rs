//! Two writes to one document made one, where the result is provably the same.
//!
//! The proof rests on three facts: a whole document makes what was before it irrelevant; a delete does too; and the
//! exact form of an update is an aggregation pipeline, whose stages one after the other are by definition one update
//! after the other. What does not fit these stays two writes: modifiers of old servers are not pipelines, and a write
//! in overlap is judged by other rules than one after the mark (correctness.md §1).

use crate::model::{Change, Operation};
use crate::sink::{Content, Patch};

/// Patches in one write; the server refuses pipelines of more than 1,000 stages.
const PATCHES_MAX: usize = 100;

/// Bytes of patches in one write, far below the 16 MB of a command's document.
const PATCH_BYTES_MAX: usize = 4 << 20;

/// The content of a single change; `None` for DDL, which is no write.
#[must_use]
pub fn content(change: &Change) -> Option<Content> {
    Some(match change.operation {
        Operation::Insert => Content::Insert(change.body.clone()),
        Operation::Snapshot | Operation::Replace => Content::Replace(change.body.clone()),
        Operation::UpdateDiff => Content::Patch(vec![Patch::Diff(change.body.clone())]),
        Operation::UpdateModifiers => Content::Patch(vec![Patch::Modifiers(change.body.clone())]),
        Operation::Delete => Content::Delete,
        Operation::Ddl => return None,
    })
}

/// What merging came to.
#[derive(Debug)]
pub enum Merge {
    /// One write does what the two did.
    Merged(Content),
    /// They must stay two writes: `(earlier, later)`.
    Apart(Content, Content),
}

/// Merges `later` into `earlier`, both of one document. `same_side` = both in overlap, or both after it.
#[must_use]
pub fn merge(earlier: Content, later: Content, same_side: bool) -> Merge {
    match (earlier, later) {
        // A delete needs nothing of what was before, and neither does a whole document.
        (_, Content::Delete) => Merge::Merged(Content::Delete),
        (Content::Insert(_) | Content::Patched { inserted: true, .. }, Content::Replace(document)) if same_side => {
            Merge::Merged(Content::Insert(document))
        }
        (_, Content::Replace(document) | Content::Insert(document)) => Merge::Merged(Content::Replace(document)),
        // What was before is replaced.
        (_, Content::Patched { base, patches, .. }) => {
            Merge::Merged(Content::Patched { base, patches, inserted: false })
        }
        (Content::Insert(base), Content::Patch(patches)) if same_side && pipeline(&patches) => {
            Merge::Merged(Content::Patched { base, patches, inserted: true })
        }
        (Content::Replace(base), Content::Patch(patches)) if same_side && pipeline(&patches) => {
            Merge::Merged(Content::Patched { base, patches, inserted: false })
        }
        (Content::Patched { base, patches, inserted }, Content::Patch(more)) => match join(patches, more, same_side) {
            Ok(patches) => Merge::Merged(Content::Patched { base, patches, inserted }),
            Err((patches, more)) => Merge::Apart(Content::Patched { base, patches, inserted }, Content::Patch(more)),
        },
        (Content::Patch(patches), Content::Patch(more)) => match join(patches, more, same_side) {
            Ok(patches) => Merge::Merged(Content::Patch(patches)),
            Err((patches, more)) => Merge::Apart(Content::Patch(patches), Content::Patch(more)),
        },
        (earlier @ (Content::Insert(_) | Content::Replace(_) | Content::Delete), later @ Content::Patch(_)) => {
            Merge::Apart(earlier, later)
        }
    }
}

/// Whether two writes of one document may become one where its place among the others is data (capped collections): an
/// insert takes the last place, so it may not become a write to what stands there, nor be replaced by one.
#[must_use]
pub fn keeps_place(earlier: &Content, later: &Content) -> bool {
    match (earlier, later) {
        (_, Content::Insert(_)) | (Content::Insert(_), Content::Patch(_) | Content::Patched { .. }) => false,
        (_, Content::Replace(_) | Content::Patch(_) | Content::Patched { .. } | Content::Delete) => true,
    }
}

type Patches = Vec<Patch>;

fn join(mut patches: Patches, more: Patches, same_side: bool) -> Result<Patches, (Patches, Patches)> {
    let bytes = |list: &[Patch]| list.iter().map(Patch::bytes).sum::<usize>();
    let fits = patches.len() + more.len() <= PATCHES_MAX && bytes(&patches) + bytes(&more) <= PATCH_BYTES_MAX;
    if same_side && fits && pipeline(&patches) && pipeline(&more) {
        patches.extend(more);
        Ok(patches)
    } else {
        Err((patches, more))
    }
}

/// Whether all of them have a pipeline form.
fn pipeline(patches: &[Patch]) -> bool {
    patches.iter().all(|patch| matches!(patch, Patch::Diff(_)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    fn doc(n: u8) -> Bytes {
        Bytes::from(vec![n])
    }

    fn diff(n: u8) -> Content {
        Content::Patch(vec![Patch::Diff(doc(n))])
    }

    fn merged(earlier: Content, later: Content) -> Content {
        match merge(earlier, later, true) {
            Merge::Merged(content) => content,
            Merge::Apart(a, b) => panic!("{a:?} and {b:?} stayed apart"),
        }
    }

    #[test]
    fn whole_documents_and_deletes_win_over_what_was_before() {
        assert_eq!(merged(diff(1), Content::Delete), Content::Delete);
        assert_eq!(merged(Content::Insert(doc(1)), Content::Replace(doc(2))), Content::Insert(doc(2)));
        assert_eq!(merged(Content::Delete, Content::Insert(doc(2))), Content::Replace(doc(2)));
        assert_eq!(merged(diff(1), Content::Replace(doc(2))), Content::Replace(doc(2)));
    }

    #[test]
    fn diffs_line_up_in_order() {
        let two = merged(diff(1), diff(2));
        assert_eq!(two, Content::Patch(vec![Patch::Diff(doc(1)), Patch::Diff(doc(2))]));
        let over = merged(merged(Content::Insert(doc(9)), diff(1)), diff(2));
        let patches = vec![Patch::Diff(doc(1)), Patch::Diff(doc(2))];
        assert_eq!(over, Content::Patched { base: doc(9), patches, inserted: true });
        assert_eq!(merged(over.clone(), Content::Replace(doc(3))), Content::Insert(doc(3)));
        let replaced = merged(Content::Delete, over);
        assert!(matches!(replaced, Content::Patched { inserted: false, .. }), "it must not meet what it replaces");
        let over = merged(Content::Replace(doc(9)), diff(1));
        assert!(matches!(over, Content::Patched { inserted: false, .. }));
    }

    #[test]
    fn an_insert_stays_one_where_its_place_is_data() {
        let (insert, replace) = (Content::Insert(doc(1)), Content::Replace(doc(2)));
        assert!(!keeps_place(&Content::Delete, &insert), "the document would keep the place that it was deleted from");
        assert!(!keeps_place(&insert, &diff(1)), "a repeated insert puts its document at the end, an update does not");
        assert!(keeps_place(&insert, &replace) && matches!(merged(insert.clone(), replace), Content::Insert(_)));
        assert!(keeps_place(&insert, &Content::Delete) && keeps_place(&diff(1), &diff(2)));
    }

    #[test]
    fn stays_apart_where_nothing_is_proved() {
        let modifiers = Content::Patch(vec![Patch::Modifiers(doc(1))]);
        assert!(matches!(merge(diff(1), modifiers.clone(), true), Merge::Apart(..)));
        assert!(matches!(merge(Content::Insert(doc(1)), modifiers, true), Merge::Apart(..)));
        assert!(matches!(merge(diff(1), diff(2), false), Merge::Apart(..)), "across the overlap mark");
        assert!(matches!(merge(Content::Delete, diff(1), true), Merge::Apart(..)));
    }
}
