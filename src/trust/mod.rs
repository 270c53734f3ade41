//! TUF: the rules.
