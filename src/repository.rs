//! A repository as an appliance sees it.
