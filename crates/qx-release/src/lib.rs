//! What both sides of an update agree on: who makes a release ([`qx-publish`]) and the appliance that installs it
//! ([`qx-update`]).
//!
//! A release is a [`manifest`] with the digests of its components ([`digest`], measured by [`tree`]), under a name that
//! tells whom it is for ([`offer`]), at a place in a repository ([`layout`]), signed by whom an appliance trusts ([`trust`]). What both
//! need beside it: [`json`] without duplicates, [`durable`] writes, text that is safe to show ([`text`]) and to write
//! ([`output`]), what a [`url`] is, and one [`error`].
//!
//! [`qx-publish`]: ../qx_publish/index.html
//! [`qx-update`]: ../qx_update/index.html

#![warn(unreachable_pub)]

pub mod digest;
pub mod durable;
pub mod error;
pub mod json;
pub mod layout;
pub mod manifest;
pub mod offer;
pub mod output;
pub mod script;
pub mod surroundings;
pub mod text;
pub mod tree;
pub mod trust;
pub mod url;
