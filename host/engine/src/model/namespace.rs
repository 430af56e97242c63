//! Names of collections, and the table that turns each name into a small number.
//!
//! A stream of millions of changes names a few thousand collections. Interning makes a change's namespace four
//! bytes, so that a filter's answer can be remembered in an array and lanes compare numbers instead of strings.
//! The table only grows: an id stays valid for the life of the process.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

/// A `database.collection` name. The database is everything before the first dot (MongoDB database names hold no
/// dot); commands carry the pseudo collection `$cmd`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Namespace {
    text: Arc<str>,
    dot: usize,
}

impl Namespace {
    /// Splits `text` at its first dot. Without a dot the whole text is the database and the collection is empty.
    #[must_use]
    pub fn new(text: &str) -> Self {
        let dot = text.find('.').unwrap_or(text.len());
        Self { text: Arc::from(text), dot }
    }

    /// Joins a database and a collection name.
    #[must_use]
    pub fn of(database: &str, collection: &str) -> Self {
        Self { text: Arc::from(format!("{database}.{collection}")), dot: database.len() }
    }

    /// The full name, `db.collection`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The database part.
    #[must_use]
    pub fn database(&self) -> &str {
        self.text.get(..self.dot).unwrap_or_default()
    }

    /// The collection part, dots included; empty when the name has no dot.
    #[must_use]
    pub fn collection(&self) -> &str {
        self.text.get(self.dot + 1..).unwrap_or_default()
    }

    /// Whether this is a database's command namespace, `db.$cmd`.
    #[must_use]
    pub fn is_command(&self) -> bool {
        self.collection() == "$cmd"
    }
}

impl fmt::Display for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// A namespace's number in the [`Namespaces`] table of this process. Never stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NamespaceId(u32);

impl NamespaceId {
    /// The number as an index into an array with one place a namespace.
    #[must_use]
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

#[derive(Default)]
struct Table {
    ids: HashMap<Arc<str>, NamespaceId>,
    names: Vec<Namespace>,
}

/// The process-wide table of namespaces: shared, append-only.
#[derive(Default)]
pub struct Namespaces {
    table: RwLock<Table>,
}

impl Namespaces {
    /// An empty table, ready to share.
    #[must_use]
    pub fn shared() -> Arc<Self> {
        Arc::new(Self::default())
    }

    /// The id of `name`, given out now if it is new.
    pub fn intern(&self, name: &str) -> NamespaceId {
        if let Some(id) = self.table.read().unwrap_or_else(PoisonError::into_inner).ids.get(name) {
            return *id;
        }
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(id) = table.ids.get(name) {
            return *id;
        }
        let namespace = Namespace::new(name);
        let id = NamespaceId(u32::try_from(table.names.len()).unwrap_or(u32::MAX));
        table.ids.insert(Arc::clone(&namespace.text), id);
        table.names.push(namespace);
        id
    }

    /// The name behind `id`. An id of another table yields an empty name.
    #[must_use]
    pub fn name(&self, id: NamespaceId) -> Namespace {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        table.names.get(id.index()).cloned().unwrap_or_else(|| Namespace::new(""))
    }

    /// How many names the table holds; ids are below this number.
    #[must_use]
    pub fn len(&self) -> usize {
        self.table.read().unwrap_or_else(PoisonError::into_inner).names.len()
    }

    /// Whether no name was interned yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl fmt::Debug for Namespaces {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Namespaces({})", self.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_database_ends_at_the_first_dot() {
        let ns = Namespace::new("shop.orders.2024");
        assert_eq!((ns.database(), ns.collection()), ("shop", "orders.2024"));
        assert!(Namespace::new("shop.$cmd").is_command());
        assert_eq!(Namespace::new("shop").collection(), "");
    }

    #[test]
    fn interning_is_stable() {
        let table = Namespaces::default();
        let a = table.intern("a.b");
        assert_eq!(table.intern("a.b"), a);
        assert_ne!(table.intern("a.c"), a);
        assert_eq!(table.name(a).as_str(), "a.b");
    }
}
