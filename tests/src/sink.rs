//! The MongoDB sink against real servers: exact updates with the server as oracle, flushes, DDL, settling.
//!
//! Source and target are two databases of one server where that is enough, which halves the time. What the server
//! wrote to its oplog is applied through the sink's public contract and compared as bytes.

mod border;
mod claim;
mod copy;
mod ddl;
mod flush;
mod full_copy;
mod indexes;
mod limits;
mod marks;
mod pair;
mod primary;
mod rules;
mod rulings;
mod settle;
mod sharded;
mod support;
mod together;
mod update_oracle;
mod vectors;
