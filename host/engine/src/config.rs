//! The configuration: from a file with MongoShake's parameter names to values that the engine can trust.
//!
//! A file in TOML or in MongoShake's `key = value` form becomes raw values by key; one key table decides which keys
//! exist, what they mean and whether they are built; the checked form has types and units and nothing to doubt.
//! Reading never touches the network and reads no file but the configuration itself and its `@@` lists: secrets are
//! resolved when a connection is made.

pub mod checked;
pub mod uri;

pub use checked::Config;
pub use uri::MongoUri;
