//! Passes or drops whole namespaces by a black list or a white list, as MongoShake's `filter.namespace.*` do.
//!
//! A rule is `db` or `db.collection`; it also covers everything below it with a dot (`a.b` covers `a.b.c`). The
//! buckets of a time-series collection follow the collection. The server's own databases, the checkpoint database
//! and `system.views` are dropped unless `pass_special_db` names them. `db.$cmd`, which is how the host asks for
//! `dropDatabase`, passes only when the whole database passes: a list that touches a part of a database never lets
//! the whole of it be dropped.

use oplogue_plugin::{Failure, Filter, Json, Route};

/// Special whatever the checkpoint's database is called: MongoShake's own, and the documented name of its conflict
/// database, whose real one is the checkpoint database's name with `__conflict`.
const MONGOSHAKE: [&str; 2] = ["mongoshake", "mongoshake_conflict"];

struct NamespaceFilter {
    black: Vec<String>,
    white: Vec<String>,
    pass_special: Vec<String>,
    special: Vec<String>,
}

impl Filter for NamespaceFilter {
    fn new(config: &Json) -> Result<Self, Failure> {
        let list = |name| config.texts(name).map(str::to_owned).collect::<Vec<_>>();
        let (black, white) = (list("black"), list("white"));
        if !black.is_empty() && !white.is_empty() {
            return Err(Failure::new("black and white are both set; only one of the lists may be"));
        }
        let checkpoint = config.text("checkpoint_db").unwrap_or("mongoshake");
        let conflict = format!("{checkpoint}__conflict");
        let special = ["admin", "local", "config", checkpoint, &conflict].into_iter().chain(MONGOSHAKE);
        Ok(Self { black, white, pass_special: list("pass_special_db"), special: special.map(str::to_owned).collect() })
    }

    fn decide(&self, namespace: &str) -> Route {
        if self.passes(namespace) { Route::Pass } else { Route::Drop }
    }
}

impl NamespaceFilter {
    fn passes(&self, namespace: &str) -> bool {
        if namespace == "admin.$cmd" {
            return true;
        }
        if self.is_special(namespace) {
            return false;
        }
        if let Some(database) = namespace.strip_suffix(".$cmd") {
            return self.passes_whole(database);
        }
        let logical = logical_name(namespace);
        let listed = |rules: &[String]| rules.iter().any(|r| covers(r, namespace) || covers(r, &logical));
        if self.white.is_empty() { !listed(&self.black) } else { listed(&self.white) }
    }

    /// Whether every collection that the database could have passes.
    fn passes_whole(&self, database: &str) -> bool {
        if self.white.is_empty() {
            return !self.black.iter().any(|rule| rule == database || covers(database, rule));
        }
        self.white.iter().any(|rule| rule == database)
    }

    fn is_special(&self, namespace: &str) -> bool {
        let passed = |name: &str| self.pass_special.iter().any(|p| p == name);
        let database = namespace.split_once('.').map_or(namespace, |(database, _)| database);
        (self.special.iter().any(|s| s == database) && !passed(database))
            || (namespace.split_once('.').is_some_and(|(_, name)| name == "system.views") && !passed("system.views"))
    }
}

/// Whether `rule` names `namespace` or a dotted part of its front.
fn covers(rule: &str, namespace: &str) -> bool {
    namespace.strip_prefix(rule).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

/// The name that a user knows: `db.X` for the buckets `db.system.buckets.X` of a time-series collection.
fn logical_name(namespace: &str) -> String {
    match namespace.split_once('.') {
        Some((database, collection)) => match collection.strip_prefix("system.buckets.") {
            Some(name) => format!("{database}.{name}"),
            None => namespace.to_owned(),
        },
        None => namespace.to_owned(),
    }
}

oplogue_plugin::export_filter!(NamespaceFilter, manifest = "manifest.json");

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(config: &str) -> NamespaceFilter {
        NamespaceFilter::new(&Json::parse(config).unwrap()).unwrap()
    }

    fn check(config: &str, passes: &[&str], drops: &[&str]) {
        let filter = filter(config);
        for ns in passes {
            assert_eq!(filter.decide(ns), Route::Pass, "{config} {ns}");
        }
        for ns in drops {
            assert_eq!(filter.decide(ns), Route::Drop, "{config} {ns}");
        }
    }

    #[test]
    fn without_lists_only_the_special_databases_are_dropped() {
        check(
            "{}",
            &["a.b", "a.$cmd", "admin.$cmd", "administration.x", "a.system.js", "configs.x", "a.ecosystem.views"],
            &["admin.x", "local.x", "config.x", "config.$cmd", "mongoshake.ckpt_default", "mongoshake__conflict.a.b"],
        );
        check("{}", &[], &["mongoshake_conflict.x", "a.system.views"]);
        check(r#"{"checkpoint_db":"ck"}"#, &["mongoshake2.x"], &["ck.x", "ck__conflict.x", "mongoshake.x"]);
        check(r#"{"checkpoint_db":"ck","pass_special_db":["mongoshake"]}"#, &["mongoshake.x"], &["ck.x"]);
        check(r#"{"pass_special_db":["admin","system.views"]}"#, &["admin.x", "a.system.views"], &["local.x"]);
    }

    #[test]
    fn a_white_list() {
        check(
            r#"{"white":["a","b.c"]}"#,
            &["a.x", "a.x.y", "a.$cmd", "b.c", "b.c.d", "b.system.buckets.c", "admin.$cmd"],
            &["ab.x", "b.x", "b.cd", "b.$cmd", "b.system.buckets.x", "x.$cmd", "b.system.views"],
        );
    }

    #[test]
    fn a_black_list() {
        check(
            r#"{"black":["a","b.c"]}"#,
            &["ab.x", "b.x", "b.cd", "b.system.buckets.x", "x.$cmd"],
            &["a.x", "a.$cmd", "b.c", "b.c.d", "b.system.buckets.c", "b.$cmd"],
        );
    }

    #[test]
    fn both_lists_are_refused() {
        assert!(NamespaceFilter::new(&Json::parse(r#"{"white":["a"],"black":["b"]}"#).unwrap()).is_err());
    }
}
