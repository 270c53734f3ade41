//! Data that moves with a release: saved, migrated, restored.

pub mod migrate;
pub mod protect;
pub mod snapshot;
