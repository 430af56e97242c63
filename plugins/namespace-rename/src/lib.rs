//! Renames namespaces, as MongoShake's `transform.namespace` does.
//!
//! A rule is `a.b:c.d` for a collection or `a:c` for a database. Collection rules come before database rules,
//! whatever the order they are written in, and each namespace is renamed once: rules do not chain. The buckets of a
//! time-series collection follow the collection, and `a.$cmd` (`dropDatabase`) follows the database rule. Both names
//! of a `renameCollection` are asked by the host one by one.

use oplogue_plugin::{Failure, Filter, Json, Route};

struct NamespaceRename {
    collections: Vec<(String, String)>,
    databases: Vec<(String, String)>,
}

impl Filter for NamespaceRename {
    fn new(config: &Json) -> Result<Self, Failure> {
        let mut plugin = Self { collections: Vec::new(), databases: Vec::new() };
        for rule in config.texts("rules") {
            let (from, to) = rule.split_once(':').ok_or_else(|| refuse(rule, "it has no colon"))?;
            if [from, to].iter().any(|n| n.is_empty() || n.starts_with('.') || n.ends_with('.')) {
                return Err(refuse(rule, "a name is empty"));
            }
            let rules = match (from.contains('.'), to.contains('.')) {
                (true, true) => &mut plugin.collections,
                (false, false) => &mut plugin.databases,
                _ => return Err(refuse(rule, "one side is a database, the other one a collection")),
            };
            if rules.iter().any(|(known, _)| known == from) {
                return Err(refuse(rule, "the name on the left has a rule already"));
            }
            rules.push((from.to_owned(), to.to_owned()));
        }
        Ok(plugin)
    }

    fn decide(&self, namespace: &str) -> Route {
        let Some((database, collection)) = namespace.split_once('.') else { return Route::Pass };
        let (prefix, name) = match collection.strip_prefix(BUCKETS) {
            Some(name) => (BUCKETS, name),
            None => ("", collection),
        };
        let known = self.collections.iter().find(|(from, _)| from.split_once('.') == Some((database, name)));
        if let Some((database, name)) = known.and_then(|(_, to)| to.split_once('.')) {
            return Route::Rename(format!("{database}.{prefix}{name}"));
        }
        match self.databases.iter().find(|(from, _)| from == database) {
            Some((_, to)) => Route::Rename(format!("{to}.{collection}")),
            None => Route::Pass,
        }
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
    fn collection_rules_come_first() {
        let rules = r#"["a:z","a.b:c.d"]"#;
        for (ns, to) in [
            ("a.b", "c.d"),
            ("a.x", "z.x"),
            ("a.b.c", "z.b.c"),
            ("a.$cmd", "z.$cmd"),
            ("a.system.buckets.b", "c.system.buckets.d"),
            ("a.system.buckets.x", "z.system.buckets.x"),
        ] {
            assert_eq!(decide(rules, ns), Route::Rename(to.to_owned()), "{ns}");
        }
        assert_eq!(decide(rules, "b.a"), Route::Pass);
        assert_eq!(decide(rules, "z.b"), Route::Pass);
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
