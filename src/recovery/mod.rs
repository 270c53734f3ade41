//! Recovery at boot: decided by a pure function, then carried out, first the files, later the data.

#[cfg(feature = "update")]
pub mod data;
pub mod decide;
pub mod link;
