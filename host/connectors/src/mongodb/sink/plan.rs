//! What a write becomes: which statements, and in which form.
//!
//! The rules stand in correctness.md §1. Pure: it reads bytes and decides; it sends nothing.

use oplogue_engine::error::{Error, Kind, Result, Side};
use oplogue_engine::model::raw::Elements;
use oplogue_engine::sink::{Content, Patch, Write};

use crate::mongodb::command::Statement;
use crate::mongodb::literal::has_zero_time;
use crate::mongodb::patch::{self, CompileError, Dialect, ObjectDiff, fast, modifiers, shape};

/// The road a write takes.
#[derive(Debug)]
pub(crate) enum Plan<'a> {
    /// One statement, which can share a command with others.
    One(Statement<'a>),
    /// Several statements, one after the other: `$v: 1` modifiers cannot be joined, and not everything fits in one.
    Steps(Vec<Statement<'a>>),
    /// The whole document, read from the source.
    Refetch,
    /// Nothing to write.
    Nothing,
}

/// Which forms may be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Form {
    /// The target's document may already contain the change.
    pub(crate) overlap: bool,
    /// Classic modifiers may be used for diffs.
    pub(crate) fast: bool,
    /// An update may create its document.
    pub(crate) upsert: bool,
    /// What the target understands.
    pub(crate) dialect: Dialect,
}

/// Plans one write.
///
/// # Errors
/// `CannotApply` with the reason when the content is not understood.
pub(crate) fn plan(write: &Write, form: Form) -> Result<Plan<'_>> {
    let key = key(write);
    match &write.content {
        Content::Insert(document) if !form.overlap && !has_zero_time(document)? => {
            Ok(Plan::One(Statement::Insert(document)))
        }
        Content::Insert(document) | Content::Replace(document) => whole(key, document),
        Content::Delete => Ok(Plan::One(Statement::Delete { key })),
        // What came of it is not in the log.
        Content::Patch(_) if write.creates => Ok(Plan::Refetch),
        Content::Patch(patches) => updating(key, None, patches, form),
        // Somebody else's document must not be taken for the base, so the base is inserted first.
        Content::Patched { base, patches, inserted: true } if !form.overlap => {
            let insert = if has_zero_time(base)? { whole(key, base)? } else { Plan::One(Statement::Insert(base)) };
            steps(key, Some(insert), patches, form)
        }
        Content::Patched { base, patches, .. } => updating(key, Some(base), patches, form),
    }
}

/// The write of a whole document with diffs over it as one of the document that they come to; `None` when it is none, or
/// when a server must say what they come to.
pub(crate) fn computed(write: &Write) -> Option<Write> {
    let Content::Patched { base, patches, inserted } = &write.content else { return None };
    let diffs: Vec<&[u8]> = patches.iter().map(as_diff).collect::<Option<_>>()?;
    let document = bytes::Bytes::from(patch::over::apply(base, diffs)?);
    let content = if *inserted { Content::Insert(document) } else { Content::Replace(document) };
    Some(Write { content, ..write.clone() })
}

/// The document that selects the target's document.
pub(crate) fn key(write: &Write) -> &[u8] {
    &write.key
}

/// The whole document.
///
/// A literal with two fields of one name must not meet a document: the server would compute their difference, and
/// 5.0.4 aborts there. So what stands in the way goes first.
pub(crate) fn whole<'a>(key: &'a [u8], document: &'a [u8]) -> Result<Plan<'a>> {
    let statement = Statement::replace(key, document)?;
    Ok(match statement {
        Statement::Literal { .. } if shape::of(document).twins => {
            Plan::Steps(vec![Statement::Delete { key }, statement])
        }
        one @ (Statement::Insert(_)
        | Statement::Update { .. }
        | Statement::Modify { .. }
        | Statement::Literal { .. }
        | Statement::Pipeline { .. }
        | Statement::Routed { .. }
        | Statement::Delete { .. }) => Plan::One(one),
    })
}

fn updating<'a>(key: &'a [u8], base: Option<&'a [u8]>, patches: &'a [Patch], form: Form) -> Result<Plan<'a>> {
    match (base, patches) {
        (None, []) => return Ok(Plan::Nothing),
        (Some(base), []) => return whole(key, base),
        (None, [Patch::Modifiers(modifiers)]) => return modifiers_plan(key, modifiers, form),
        (None, [Patch::Diff(diff)]) => return one_diff(key, diff, form),
        _ => {}
    }
    let diffs: Option<Vec<&[u8]>> = patches.iter().map(as_diff).collect();
    if let Some(diffs) = diffs {
        match patch::pipeline(form.dialect, base, diffs) {
            Ok(stages) => return Ok(Plan::One(pipeline(key, stages, base.is_some() || form.upsert))),
            // One by one they may fit.
            Err(e) => unreadable(e)?,
        }
    }
    steps(key, base.map(|base| whole(key, base)).transpose()?, patches, form)
}

fn one_diff<'a>(key: &'a [u8], diff: &'a [u8], form: Form) -> Result<Plan<'a>> {
    if form.fast && !form.overlap {
        let tree = ObjectDiff::parse(diff).ok();
        if let Some(modifiers) = tree.as_ref().and_then(fast::modifiers) {
            return Ok(Plan::One(Statement::Modify { key, modifiers }));
        }
    }
    match patch::pipeline(form.dialect, None, [diff]) {
        Ok(stages) => Ok(Plan::One(pipeline(key, stages, form.upsert))),
        Err(e) => unreadable(e).map(|()| Plan::Refetch),
    }
}

fn pipeline(key: &[u8], stages: Vec<u8>, upsert: bool) -> Statement<'_> {
    Statement::Pipeline { key, stages, upsert }
}

/// Tells a diff that nobody can read from one that has no form as a pipeline.
fn unreadable(e: CompileError) -> Result<()> {
    match e {
        CompileError::TooDeep | CompileError::TooLarge | CompileError::Twins => Ok(()),
        CompileError::Diff(e) => Err(Error::new(Side::Source, Kind::CannotApply, "read an update's diff").caused_by(e)),
    }
}

fn as_diff(patch: &Patch) -> Option<&[u8]> {
    match patch {
        Patch::Diff(diff) => Some(diff),
        Patch::Modifiers(_) => None,
    }
}

fn modifiers_plan<'a>(key: &'a [u8], modifiers: &'a [u8], form: Form) -> Result<Plan<'a>> {
    let mut names = Elements::new(modifiers)?;
    match names.next().transpose()? {
        None => Ok(Plan::Nothing),
        Some(first) if first.name.first() == Some(&b'$') => {
            if form.overlap && modifiers::removes(modifiers)? {
                return Ok(Plan::Refetch);
            }
            let runs = if form.dialect == Dialect::V4_4 { None } else { modifiers::in_order(modifiers)? };
            Ok(match runs {
                None => Plan::One(Statement::Update { key, update: modifiers, upsert: form.upsert }),
                Some(runs) => {
                    Plan::Steps(runs.into_iter().map(|modifiers| Statement::Modify { key, modifiers }).collect())
                }
            })
        }
        Some(_) => {
            let text = "read an update's modifiers: the first name is no operator";
            Err(Error::new(Side::Source, Kind::CannotApply, text))
        }
    }
}

/// Each patch on its own, in order, behind the base.
pub(crate) fn steps<'a>(key: &'a [u8], base: Option<Plan<'a>>, patches: &'a [Patch], form: Form) -> Result<Plan<'a>> {
    let mut steps = Vec::with_capacity(patches.len() + 1);
    // Over a base that was just written the update can only be in its right state.
    let form = if base.is_some() { Form { overlap: false, fast: false, ..form } } else { form };
    let updates = patches.iter().map(|patch| match patch {
        Patch::Diff(diff) => one_diff(key, diff, Form { fast: false, ..form }),
        Patch::Modifiers(modifiers) => modifiers_plan(key, modifiers, form),
    });
    for plan in base.map(Ok).into_iter().chain(updates) {
        match plan? {
            Plan::One(statement) => steps.push(statement),
            Plan::Steps(more) => steps.extend(more),
            Plan::Refetch => return Ok(Plan::Refetch),
            Plan::Nothing => {}
        }
    }
    Ok(Plan::Steps(steps))
}

#[cfg(test)]
mod tests {
    use super::*;
    use bson::rawdoc;
    use bytes::Bytes;
    use oplogue_engine::model::{Namespaces, OpTime};

    fn write(content: Content) -> Write {
        let id = Namespaces::default().intern("a.b");
        Write {
            target: id,
            source: id,
            key: Bytes::from(rawdoc! { "_id": 1 }.into_bytes()),
            content,
            overlap: false,
            time: OpTime::default(),
            collection: None,
            origin: None,
            moved: false,
            creates: false,
            in_order: false,
        }
    }

    fn diff() -> Patch {
        Patch::Diff(Bytes::from(rawdoc! { "u": { "x": 1 } }.into_bytes()))
    }

    /// A diff that does not fit the base.
    fn unfit(inserted: bool) -> Write {
        let base = Bytes::from(rawdoc! { "_id": 1 }.into_bytes());
        write(Content::Patched { base, patches: vec![diff()], inserted })
    }

    const AFTER: Form = Form { overlap: false, fast: true, upsert: false, dialect: Dialect::V5_0 };
    const OVERLAP: Form = Form { overlap: true, fast: true, upsert: false, dialect: Dialect::V5_0 };

    #[test]
    fn the_fast_path_is_only_taken_outside_of_overlap_and_for_one_patch() {
        let one = write(Content::Patch(vec![diff()]));
        assert!(matches!(plan(&one, AFTER).unwrap(), Plan::One(Statement::Modify { .. })));
        assert!(matches!(plan(&one, OVERLAP).unwrap(), Plan::One(Statement::Pipeline { upsert: false, .. })));
        let two = write(Content::Patch(vec![diff(), diff()]));
        assert!(matches!(plan(&two, AFTER).unwrap(), Plan::One(Statement::Pipeline { .. })));
    }

    #[test]
    fn an_insert_becomes_a_replacement_in_overlap() {
        let insert = write(Content::Insert(Bytes::from(rawdoc! { "_id": 1 }.into_bytes())));
        assert!(matches!(plan(&insert, AFTER).unwrap(), Plan::One(Statement::Insert(_))));
        assert!(matches!(plan(&insert, OVERLAP).unwrap(), Plan::One(Statement::Update { upsert: true, .. })));
    }

    #[test]
    fn an_insert_with_updates_is_the_insert_of_what_they_come_to() {
        let base = Bytes::from(rawdoc! { "_id": 1, "x": 0 }.into_bytes());
        let after = Bytes::from(rawdoc! { "_id": 1, "x": 1 }.into_bytes());
        let patched = |inserted| write(Content::Patched { base: base.clone(), patches: vec![diff()], inserted });
        assert_eq!(computed(&patched(true)).unwrap().content, Content::Insert(after.clone()));
        assert_eq!(computed(&patched(false)).unwrap().content, Content::Replace(after));
        assert!(computed(&write(Content::Patch(vec![diff()]))).is_none());
    }

    #[test]
    fn an_insert_whose_updates_only_a_server_understands_never_takes_what_stands_for_its_base() {
        assert!(computed(&unfit(true)).is_none());
        let steps = |write: &Write, form| match plan(write, form).unwrap() {
            Plan::Steps(steps) => steps.iter().map(|step| format!("{step:?}")).collect::<Vec<_>>(),
            other @ (Plan::One(_) | Plan::Refetch | Plan::Nothing) => vec![format!("{other:?}")],
        };
        let apart = steps(&unfit(true), AFTER);
        assert!(apart.len() == 2 && apart[0].starts_with("Insert(") && apart[1].contains("upsert: false"), "{apart:?}");
        for (inserted, form) in [(true, OVERLAP), (false, AFTER), (false, OVERLAP)] {
            let one = steps(&unfit(inserted), form);
            assert!(one.len() == 1 && one[0].contains("upsert: true"), "{one:?}");
        }
    }

    #[test]
    fn modifiers_are_written_one_after_the_other() {
        let modifiers = Patch::Modifiers(Bytes::from(rawdoc! { "$set": { "x": 1 } }.into_bytes()));
        let several = write(Content::Patch(vec![modifiers.clone(), diff(), modifiers]));
        assert!(matches!(plan(&several, AFTER).unwrap(), Plan::Steps(steps) if steps.len() == 3));
    }

    #[test]
    fn modifiers_that_would_be_a_replacement_are_refused() {
        let bad = Patch::Modifiers(Bytes::from(rawdoc! { "x": 1 }.into_bytes()));
        assert_eq!(plan(&write(Content::Patch(vec![bad])), AFTER).unwrap_err().kind(), Kind::CannotApply);
        let empty = Patch::Modifiers(Bytes::from(rawdoc! {}.into_bytes()));
        assert!(matches!(plan(&write(Content::Patch(vec![empty])), AFTER).unwrap(), Plan::Nothing));
    }
}
