//! The harness of the tests, the demo and the bench: real servers, load, the collector as a child, comparison.
//!
//! It stands in a library of its own because two packages need it: the test binary beside it and `xtask`.
//! Everything it starts is killed by its own pid when its handle drops, and also when this process dies
//! without dropping anything. It never asserts: it returns errors and differences, and the test decides.

pub mod paths;

pub mod seed;

pub mod patience;

pub mod child;

pub mod proxy;

pub mod dressed;

pub mod servers;

pub mod compare;

pub mod load;

pub mod cases;

pub mod prepared;

pub mod collector;

pub mod example;
