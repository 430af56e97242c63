//! Names of databases, collections and files, and the rules that are made of them.
//!
//! Patterns are refused here: MongoShake documents plain names and escapes only dots, so `db.*` there matches by
//! accident or not at all. A rule that would match nothing must not look like one that protects something.

use super::super::report::Fault;

/// Characters that no database name holds (server manual, "Naming Restrictions").
const NOT_IN_DATABASE: [char; 12] = ['/', '\\', ' ', '"', '$', '*', '<', '>', ':', '|', '?', '\0'];

const DATABASE_BYTES_MAX: usize = 63;

pub(super) fn each(items: Vec<String>, rule: fn(&str) -> Result<(), Fault>) -> Result<Vec<String>, Fault> {
    for item in &items {
        rule(item)?;
    }
    Ok(items)
}

pub(super) fn no_blank(item: &str) -> Result<(), Fault> {
    if item.is_empty() { Err(Fault::new("must not hold a blank item")) } else { Ok(()) }
}

pub(super) fn file_name(text: &str) -> Result<String, Fault> {
    let legal = |c: char| c.is_alphanumeric() || matches!(c, '.' | '-' | '_');
    if text.chars().all(legal) && !text.starts_with('.') {
        Ok(text.to_owned())
    } else {
        Err(Fault::new("must be a plain name of letters, digits, '-', '_' and '.'"))
    }
}

pub(super) fn database(text: &str) -> Result<String, Fault> {
    if text.contains('.') {
        return Err(Fault::new("must be the name of a database, which holds no dot"));
    }
    database_part(text)?;
    Ok(text.to_owned())
}

fn database_part(text: &str) -> Result<(), Fault> {
    if text.is_empty() {
        return Err(Fault::new("lacks the name of a database"));
    }
    if text.contains(NOT_IN_DATABASE) {
        return Err(Fault::new(format!("holds {text:?}, which is no legal name of a database"))
            .suggest("rules are plain names, not patterns"));
    }
    if text.len() > DATABASE_BYTES_MAX {
        return Err(Fault::new(format!("holds a name of a database longer than {DATABASE_BYTES_MAX} bytes")));
    }
    Ok(())
}

pub(super) fn collection(text: &str) -> Result<String, Fault> {
    if text.contains(['$', '\0']) || text.starts_with("system.") {
        return Err(Fault::new("must be the name of a collection: no '$', not beginning with \"system.\""));
    }
    Ok(text.to_owned())
}

/// `db` or `db.collection`.
pub(super) fn filter_rule(item: &str) -> Result<(), Fault> {
    match item.split_once('.') {
        None => database_part(item),
        Some((database, collection)) => {
            database_part(database)?;
            if collection.is_empty() {
                return Err(Fault::new(format!("holds {item:?}, which ends with a dot"))
                    .suggest(format!("write {database} for the whole database")));
            }
            if collection.contains(['*', '\0']) {
                return Err(Fault::new(format!("holds {item:?}: rules are plain names, not patterns"))
                    .suggest(format!("write {database} for the whole database")));
            }
            Ok(())
        }
    }
}

/// `a.b:c.d` (collections) or `a:c` (databases), each source once.
pub(super) fn renames(items: Vec<String>) -> Result<Vec<String>, Fault> {
    let mut sources: Vec<&str> = Vec::new();
    for item in &items {
        let Some((from, to)) = item.split_once(':') else {
            return Err(Fault::new(format!("holds {item:?}, which lacks the ':' between source and target"))
                .suggest("write fromDb.fromCollection:toDb.toCollection or fromDb:toDb"));
        };
        filter_rule(from)?;
        filter_rule(to)?;
        if from.contains('.') != to.contains('.') {
            return Err(Fault::new(format!(
                "holds {item:?}, which names a database on one side and a collection on the other"
            )));
        }
        if sources.contains(&from) {
            return Err(Fault::new(format!("renames {from:?} twice")));
        }
        sources.push(from);
    }
    Ok(items)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_plain_names() {
        for good in ["shop", "shop.orders", "shop.orders.2024", "a.b:c"] {
            assert!(filter_rule(good).is_ok(), "{good}");
        }
        for bad in ["", "shop.", ".orders", "sh*p", "shop.*", "a/b.c", "a b"] {
            assert!(filter_rule(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn renames_have_two_like_sides() {
        let read = |items: &[&str]| renames(items.iter().map(|s| (*s).to_owned()).collect());
        assert!(read(&["a.b:c.d", "a:c", "x.y.z:x.w"]).is_ok());
        for bad in [&["a.b"][..], &["a.b:c"], &["a:"], &[":c"], &["a:b", "a:c"]] {
            assert!(read(bad).is_err(), "{bad:?}");
        }
    }
}
