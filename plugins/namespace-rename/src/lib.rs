//! Renames namespaces, as MongoShake's `transform.namespace` does.
//!
//! A rule is `a.b:c.d` for a collection or `a:c` for a database, and takes along what lies below it with a dot: `a.b`
//! also renames `a.b.x`, to `c.d.x`. The first rule of the list that fits a name holds, and each name is renamed once:
//! rules do not chain. The buckets of a time-series collection follow the collection, and `a.$cmd` (`dropDatabase`)
//! follows the database rule. Both names of a `renameCollection` are asked by the host one by one.

use oplogue_plugin::{Failure, Filter, Json, Route};

struct NamespaceRename {
    rules: Vec<(String, String)>,
}

impl Filter for NamespaceRename {
    fn new(config: &Json) -> Result<Self, Failure> {
        let mut rules: Vec<(String, String)> = Vec::new();
        for rule in config.texts("rules") {
            let (from, to) = rule.split_once(':').ok_or_else(|| refuse(rule, "it has no colon"))?;
            if [from, to].iter().any(|n| n.is_empty() || n.starts_with('.') || n.ends_with('.')) {
                return Err(refuse(rule, "a name is empty"));
            }
            if from.contains('.') != to.contains('.') {
                return Err(refuse(rule, "one side is a database, the other one a collection"));
            }
            if rules.iter().any(|(known, _)| known == from) {
                return Err(refuse(rule, "the name on the left has a rule already"));
            }
            rules.push((from.to_owned(), to.to_owned()));
        }
        Ok(Self { rules })
    }

    fn decide(&self, namespace: &str) -> Route {
        let Some((database, collection)) = namespace.split_once('.') else { return Route::Pass };
        let logical = collection.strip_prefix(BUCKETS).map(|name| format!("{database}.{name}"));
        let name = logical.as_deref().unwrap_or(namespace);
        let below = |from: &str| name.strip_prefix(from).filter(|rest| rest.is_empty() || rest.starts_with('.'));
        let Some(renamed) = self.rules.iter().find_map(|(from, to)| Some(format!("{to}{}", below(from)?))) else {
            return Route::Pass;
        };
        Route::Rename(match renamed.split_once('.') {
            Some((database, name)) if logical.is_some() => format!("{database}.{BUCKETS}{name}"),
            Some(_) | None => renamed,
        })
    }
}

const BUCKETS: &str = "system.buckets.";

fn refuse(rule: &str, reason: &str) -> Failure {
    Failure::new(format!("rule {rule:?}: {reason}"))
}

oplogue_plugin::export_filter!(NamespaceRename, manifest = "manifest.json");

#[cfg(test)]
mod tests {
    use super::*;

    fn decide(rules: &str, ns: &str) -> Route {
        NamespaceRename::new(&Json::parse(&format!(r#"{{"rules":{rules}}}"#)).unwrap()).unwrap().decide(ns)
    }

    #[test]
    fn a_rule_takes_along_what_lies_below_it() {
        let rules = r#"["a.b:c.d","a:z"]"#;
        for (ns, to) in [
            ("a.b", "c.d"),
            ("a.bc", "z.bc"),
            ("a.x", "z.x"),
            ("a.b.files", "c.d.files"),
            ("a.$cmd", "z.$cmd"),
            ("a.system.buckets.b.x", "c.system.buckets.d.x"),
            ("a.system.buckets.b", "c.system.buckets.d"),
            ("a.system.buckets.x", "z.system.buckets.x"),
        ] {
            assert_eq!(decide(rules, ns), Route::Rename(to.to_owned()), "{ns}");
        }
        assert_eq!(decide(rules, "b.a"), Route::Pass);
        assert_eq!(decide(rules, "z.b"), Route::Pass);
    }

    #[test]
    fn the_first_rule_that_fits_holds() {
        let rules = r#"["a:z","a.b:c.d","x.y.z:x.w","x.y:v.w"]"#;
        for (ns, to) in [("a.b", "z.b"), ("x.y.z", "x.w"), ("x.y.zz", "v.w.zz"), ("x.y", "v.w")] {
            assert_eq!(decide(rules, ns), Route::Rename(to.to_owned()), "{ns}");
        }
    }

    #[test]
    fn unclear_rules_are_refused() {
        for rule in ["a", "a:b.c", "a.b:c", ":x", "a.:b.c"] {
            let config = Json::parse(&format!(r#"{{"rules":["{rule}"]}}"#)).unwrap();
            assert!(NamespaceRename::new(&config).is_err(), "{rule}");
        }
        assert!(NamespaceRename::new(&Json::parse(r#"{"rules":["a:b","a:c"]}"#).unwrap()).is_err());
    }
}
