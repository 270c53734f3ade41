//! Keeps the components of an appliance up to date.

pub mod config;
pub mod digest;
pub mod error;
pub mod manifest;
