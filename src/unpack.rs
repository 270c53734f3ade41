//! From an artifact to an installed component.
