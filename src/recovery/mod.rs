//! What a boot makes of what it finds: decided from values, then carried out, files first and data later.

#[cfg(feature = "update")]
pub mod data;
pub mod decide;
pub mod link;
