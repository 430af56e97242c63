//! What the lists and the renames do to names, as far as it can be said without asking the plugins.
//!
//! A rule covers its name and everything below it with a dot, here as in the plugins `namespace-filter` and
//! `namespace-rename`. Where source and target are one cluster, the two together must take every name that passes to one
//! that does not: anything else would be written over itself, or read again.

/// Characters of patterns and of lists of other forms, which hardly a name has.
pub(super) const NOT_OF_NAMES: [char; 16] =
    [',', '#', '(', ')', '[', ']', '{', '}', '|', '+', '?', '^', '$', '\\', '*', '\t'];

/// What to do about names that are not kept apart.
pub const HINT: &str = "to copy inside one cluster, give every name of filter.namespace.white a rule in \
                        transform.namespace that takes it to a name outside of the list";

/// Whether a rule for `rule` holds for `name`.
#[must_use]
pub fn covers(rule: &str, name: &str) -> bool {
    name.strip_prefix(rule).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

/// Whether nothing that passes the white list keeps its name or gets one that passes too. The other way, why not.
///
/// # Errors
/// The reason, in words.
pub fn kept_apart(white: &[String], renames: &[String]) -> Result<(), String> {
    if white.is_empty() || renames.is_empty() {
        return Err("every write would come back as a change".to_owned());
    }
    let rules = || renames.iter().filter_map(|rule| rule.split_once(':'));
    for name in white {
        if !rules().any(|(from, _)| covers(from, name)) {
            return Err(format!("{name} passes and keeps its name, so that it would be written over itself"));
        }
    }
    for (at, (from, to)) in rules().enumerate() {
        // One that holds for nothing that passes takes nothing anywhere.
        let holds = !rules().take(at).any(|(earlier, _)| covers(earlier, from));
        if !holds || !white.iter().any(|name| covers(from, name) || covers(name, from)) {
            continue;
        }
        if let Some(name) = white.iter().find(|name| covers(name, to) || covers(to, name)) {
            return Err(format!("{from} goes to {to}, where {name} passes too: its writes would be read again"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_passes_must_go_where_nothing_passes() {
        let list = |items: &[&str]| items.iter().map(|item| (*item).to_owned()).collect::<Vec<_>>();
        let apart = |white: &[&str], renames: &[&str]| kept_apart(&list(white), &list(renames));
        assert_eq!(apart(&["shop", "crm.people"], &["shop:archive", "crm.people:crm.people_copy"]), Ok(()));
        assert_eq!(apart(&["app.fs"], &["app.fs:arch.fs"]), Ok(()));
        assert_eq!(apart(&["shop"], &["shop:archive", "old:shop", "shop.a:shop.b"]), Ok(()));
        for (white, renames, reason) in [
            (&[][..], &["a:b"][..], "come back"),
            (&["a"], &[], "come back"),
            (&["shop"], &["shop.orders:archive.orders"], "shop passes and keeps its name"),
            (&["shop.orders", "shop.users"], &["shop.orders:archive.orders"], "shop.users passes and keeps"),
            (&["app.fs"], &["app.fs.files:arch.fs.files"], "app.fs passes and keeps"),
            (&["shop"], &["shop:shop"], "where shop passes too"),
            (&["shop"], &["shop.a:shop.b", "shop:x"], "shop.a goes to shop.b, where shop passes too"),
            (&["shop", "crm"], &["shop:crm", "crm:x"], "shop goes to crm, where crm passes too"),
            (&["shop", "crm.x"], &["shop:crm", "crm.x:y.x"], "shop goes to crm, where crm.x passes too"),
        ] {
            let error = apart(white, renames).unwrap_err();
            assert!(error.contains(reason), "{white:?} {renames:?}: {error}");
        }
    }
}
