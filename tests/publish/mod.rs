//! The real `qx-publish`, driven as the people of a release team drive it.

mod bundle;
mod carried;
mod check;
mod crash;
mod desk;
mod keys;
mod place;
mod release;
mod roles;
mod withdraw;
mod work;
