//! Keeps the components of an appliance up to date.

pub mod config;
pub mod decision;
pub mod digest;
pub mod durable;
pub mod error;
pub mod fetch;
pub mod health;
pub mod host;
pub mod log;
pub mod manifest;
pub mod migrate;
pub mod plan;
pub mod process;
pub mod prove;
pub mod publish;
pub mod recover;
pub mod repository;
pub mod select;
pub mod service;
pub mod slot;
pub mod state;
pub mod store;
pub mod tree;
pub mod trust;
pub mod unpack;
pub mod update;
