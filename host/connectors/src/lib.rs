//! Everything of Oplogue that speaks to the outside, one folder a system.
//!
//! A connector implements a contract of `oplogue-engine` (source, snapshot reader, sink, checkpoint store) for one
//! system and knows nothing of the other stages. It turns the system's errors into the engine's kinds in one place
//! and never retries in secret: what to do about a fault is the pipeline's affair.

pub mod mongodb;
