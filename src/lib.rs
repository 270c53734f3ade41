//! Keeps the components of an appliance up to date.

pub mod config;
pub mod decision;
pub mod digest;
pub mod durable;
pub mod error;
pub mod fetch;
pub mod manifest;
pub mod publish;
pub mod repository;
pub mod slot;
pub mod state;
pub mod tree;
pub mod trust;
pub mod unpack;
